//! The control queues: which ports there are, and who has them open (5.3.6.2).

use virtio_queue::Error;
use zerocopy::IntoBytes;

use super::handler::{Shared, Turn, work};
use super::metrics::add;
use super::port::Client;
use super::ports::{Port, Progress};
use super::spec::{FromDriver, Header, ToDriver};
use crate::memory::RamGuard;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Buffers;

/// Takes the driver's messages. What it shall be told in answer is noted with the ports, so that there is no queue which
/// a driver that sends and does not receive could let grow.
pub(super) fn take(
    ports: &[Port],
    progress: &mut [Progress],
    active: &mut ActiveQueue,
    shared: &Shared,
    memory: &RamGuard,
    buffers: &mut Buffers,
) -> Result<(), Error> {
    work(active, shared, memory, buffers, |buffers| {
        let mut header = Header::default();
        buffers.read_front(header.as_mut_bytes())?;
        add(&shared.metrics.control_messages, 1);
        let message = FromDriver::parse(&header);
        if !hear(message, ports, progress) {
            add(&shared.metrics.refused_messages, 1);
            if let Some(suppressed) = shared.throttle.allow() {
                let device = &shared.name;
                tracing::warn!(
                    device,
                    ?message,
                    suppressed,
                    "driver sent a message that means nothing"
                );
            }
        }
        Ok(Turn::Used(0))
    })
}

/// Does what the driver says. False if it means nothing.
fn hear(message: FromDriver, ports: &[Port], progress: &mut [Progress]) -> bool {
    let named = |id: u32| {
        let id = usize::try_from(id).ok()?;
        ports.get(id)?.name.as_ref()?;
        Some(id)
    };
    match message {
        FromDriver::DeviceReady(ready) => {
            for (port, progress) in ports.iter().zip(progress) {
                progress.add = ready && port.name.is_some();
            }
            true
        }
        FromDriver::PortReady { id, taken } => {
            let Some(id) = named(id) else { return false };
            progress[id].ready = taken;
            progress[id].tell_name = taken;
            progress[id].told = Client::default();
            true
        }
        FromDriver::PortOpen { id, open } => {
            let Some(id) = named(id) else { return false };
            ports[id].inlet.set_open(open);
            if let Some(line) = &ports[id].line {
                line.receiver_ready();
            }
            true
        }
        FromDriver::Unknown { .. } => false,
    }
}

/// Tells the driver what it does not know, as far as it has offered buffers.
pub(super) fn tell(
    ports: &[Port],
    progress: &mut [Progress],
    active: &mut ActiveQueue,
    shared: &Shared,
    memory: &RamGuard,
    buffers: &mut Buffers,
) -> Result<(), Error> {
    let mut first = 0;
    work(active, shared, memory, buffers, |buffers| {
        let news = ports[first..]
            .iter()
            .zip(&progress[first..])
            .position(|(port, progress)| next(port, progress).is_some());
        let Some(index) = news.map(|index| first + index) else {
            return Ok(Turn::Wait);
        };
        first = index;
        let (port, progress) = (&ports[index], &mut progress[index]);
        let Some((message, after)) = next(port, progress) else {
            return Ok(Turn::Wait);
        };
        let header = message.header(index as u32);
        let name = match message {
            ToDriver::Name => port.name.as_deref().unwrap_or_default(),
            _ => "",
        };
        let header = header.as_bytes();
        buffers.write_at(header.len() as u64, name.as_bytes())?;
        buffers.write_front(header)?;
        *progress = after;
        // A header and a name of at most 64 bytes.
        Ok(Turn::Used((header.len() + name.len()) as u32))
    })
}

/// The next message about a port, and how far the port is after it.
fn next(port: &Port, progress: &Progress) -> Option<(ToDriver, Progress)> {
    let mut after = *progress;
    if progress.add {
        after.add = false;
        return Some((ToDriver::Add, after));
    }
    if !progress.ready {
        return None;
    }
    if progress.tell_name {
        after.tell_name = false;
        return Some((ToDriver::Name, after));
    }
    let client = port.client(progress.told);
    if client == progress.told {
        return None;
    }
    if progress.told.present {
        after.told.present = false;
        return Some((ToDriver::Open(false), after));
    }
    if client.present {
        after.told = client;
        return Some((ToDriver::Open(true), after));
    }
    None
}
