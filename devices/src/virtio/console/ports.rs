//! The bytes of ports, to and from their rings.

use std::sync::Arc;

use super::handler::{Shared, Turn, work};
use super::metrics::add;
use super::port::{Client, Inlet, PortLine};
use crate::memory::RamGuard;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Buffers;

/// The most that is copied at once. What a line does not take is not read.
pub(super) const CHUNK: usize = 4096;

/// What stays the same of a port.
pub(super) struct Port {
    /// None for the console, and for port 0 of a device with named ports.
    pub(super) name: Option<String>,
    /// None where nobody can be: what the guest sends there is thrown away.
    pub(super) line: Option<Arc<dyn PortLine>>,
    pub(super) inlet: Arc<Inlet>,
}

/// How far a port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes of the next chain of the guest that were taken already.
    pub(super) taken: u64,
    /// The driver is to be told that there is the port.
    pub(super) add: bool,
    /// The driver is to be told the port's name.
    pub(super) tell_name: bool,
    /// The driver has taken the port.
    pub(super) ready: bool,
    /// Who the driver knows to be there.
    pub(super) told: Client,
}

impl Port {
    /// Takes what the guest sends, as far as there is room for it. The rest stays in the ring.
    pub(super) fn transmit(
        &self,
        progress: &mut Progress,
        active: &mut ActiveQueue,
        shared: &Shared,
        memory: &RamGuard,
        scratch: &mut (Buffers, Box<[u8; CHUNK]>),
    ) -> Result<(), virtio_queue::Error> {
        let (buffers, chunk) = scratch;
        work(active, shared, memory, buffers, |buffers| {
            let Some(line) = &self.line else {
                return Ok(Turn::Used(0));
            };
            buffers.skip_front(progress.taken);
            while buffers.readable_len() > 0 {
                let room = line.room();
                if room == 0 {
                    add(&shared.metrics.tx_waits, 1);
                    return Ok(Turn::Wait);
                }
                let left = usize::try_from(buffers.readable_len()).unwrap_or(usize::MAX);
                let part = &mut chunk[..room.min(left).min(CHUNK)];
                buffers.read_front(part)?;
                line.transmit(part);
                progress.taken += part.len() as u64;
                add(&shared.metrics.tx_bytes, part.len() as u64);
            }
            progress.taken = 0;
            Ok(Turn::Used(0))
        })
    }

    /// Gives the guest what is there for it, as far as it has offered buffers.
    pub(super) fn receive(
        &self,
        active: &mut ActiveQueue,
        shared: &Shared,
        memory: &RamGuard,
        scratch: &mut (Buffers, Box<[u8; CHUNK]>),
    ) -> Result<(), virtio_queue::Error> {
        let mut given = false;
        work(active, shared, memory, &mut scratch.0, |buffers| {
            if self.inlet.is_empty() {
                return Ok(Turn::Wait);
            }
            let count = self.inlet.fill(buffers)?;
            given = true;
            add(&shared.metrics.rx_bytes, count as u64);
            // No more than the inlet holds.
            Ok(Turn::Used(count as u32))
        })?;
        if given && let Some(line) = &self.line {
            line.receiver_ready();
        }
        Ok(())
    }

    /// Who the driver shall know to be there. One who has gone is there until all that it left is delivered.
    pub(super) fn client(&self, told: Client) -> Client {
        let client = self
            .line
            .as_ref()
            .map(|line| line.client())
            .unwrap_or_default();
        let leaves = told.present && client != told;
        if leaves && self.inlet.is_open() && !self.inlet.is_empty() {
            return told;
        }
        client
    }
}
