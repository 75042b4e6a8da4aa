//! The worker of a vsock device.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::{Error, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::host::Host;
use super::metrics::{VsockMetrics, add};
use super::rx::Rx;
use super::spec::TRANSPORT_RESET;
use super::tx::Tx;
use crate::memory::{GuestRam, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::chain::Buffers;
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// A guest can break its rings, reset and break them again.
static BROKEN_RINGS: Throttle = Throttle::per_minute(10);

/// The driver offered receive buffers.
const RX_KICK: u32 = 0;
/// The driver offered packets.
const TX_KICK: u32 = 1;
/// The driver offered room for events.
const EVENT_KICK: u32 = 2;
/// Something happened on the host's side.
const HOST: u32 = 3;

/// How a queue's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is nothing to do until the next event.
    Idle,
    /// There is more to do.
    Again,
    /// The guest has to take answers first.
    Blocked,
}

/// What both directions use.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) guest_cid: u32,
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) metrics: Arc<VsockMetrics>,
}

/// The queues and the host's side of a device.
pub(super) struct VsockHandler {
    shared: Shared,
    host: Host,
    rx: Rx,
    tx: Tx,
    /// Absent if the driver has none.
    event: Option<ActiveQueue>,
    /// The driver has to be told that its connections are gone.
    announces_reset: bool,
    /// There may be packets in the ring.
    sends: bool,
    /// The driver broke a ring; nothing is worked on any more.
    broken: bool,
}

impl VsockHandler {
    pub(super) fn new(
        shared: Shared,
        host: Host,
        rx: Rx,
        tx: Tx,
        event: Option<ActiveQueue>,
        announces_reset: bool,
    ) -> Self {
        Self {
            shared,
            host,
            rx,
            tx,
            event,
            announces_reset,
            sends: false,
            broken: false,
        }
    }

    /// The host's side, the queues, and whether the driver still has to be told that its connections are gone.
    pub(super) fn into_parts(self) -> (Host, Vec<ActiveQueue>, bool) {
        let mut queues = vec![self.rx.active, self.tx.active];
        queues.extend(self.event);
        (self.host, queues, self.announces_reset)
    }

    fn work(&mut self) -> Result<(), Error> {
        let memory = self.shared.memory.memory();
        if self.announces_reset
            && let Some(event) = &mut self.event
        {
            self.announces_reset = !announce_reset(&self.shared, event, &memory)?;
        }
        if self.sends {
            match self.tx.run(&self.shared, &mut self.host, &memory)? {
                Outcome::Idle => self.sends = false,
                // The counter of an eventfd that is read before each turn cannot be full.
                Outcome::Again => drop(self.tx.active.notify.write(1)),
                Outcome::Blocked => {}
            }
        }
        let outcome = self.rx.run(&self.shared, &mut self.host, &memory)?;
        if outcome == Outcome::Again {
            drop(self.rx.active.notify.write(1));
        }
        if self.sends && !self.host.answers_are_full() {
            drop(self.tx.active.notify.write(1));
        }
        Ok(())
    }
}

/// Tells the driver that its connections are gone (virtio 1.2, 5.10.6.7), if it has room for an event.
fn announce_reset(
    shared: &Shared,
    active: &mut ActiveQueue,
    memory: &RamGuard,
) -> Result<bool, Error> {
    let queue = &mut active.queue;
    let mut chain_buffers = Buffers::new();
    let mut announced = false;
    for _ in 0..queue.size() {
        let Some(chain) = queue.iter(&**memory)?.next() else {
            if queue.enable_notification(&**memory)? {
                continue;
            }
            break;
        };
        let head = chain.head_index();
        announced = chain_buffers
            .load(memory, chain)
            .and_then(|()| chain_buffers.write_front(&TRANSPORT_RESET))
            .is_ok();
        let len = if announced { TRANSPORT_RESET.len() } else { 0 };
        queue.add_used(&**memory, head, len as u32)?;
        if announced {
            break;
        }
    }
    if announced && queue.needs_notification(&**memory)? {
        shared.interrupt.queue(active.index);
    }
    Ok(announced)
}

impl Handler for VsockHandler {
    fn init(&mut self, ops: &mut EventOps) {
        let kicks = [
            Some((&self.rx.active.notify, RX_KICK)),
            Some((&self.tx.active.notify, TX_KICK)),
            self.event.as_ref().map(|event| (&event.notify, EVENT_KICK)),
        ];
        for (notify, data) in kicks.into_iter().flatten() {
            ops.add(Events::with_data(notify, data, EventSet::IN))
                .expect("a new epoll instance takes the eventfd of a queue");
        }
        ops.add(Events::with_data_raw(
            self.host.as_raw_fd(),
            HOST,
            EventSet::IN,
        ))
        .expect("a new epoll instance takes another one");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            // A notification only tells that there is something; readable, or the event would not have come.
            RX_KICK => drop(self.rx.active.notify.read()),
            TX_KICK => {
                drop(self.tx.active.notify.read());
                self.sends = true;
            }
            EVENT_KICK => drop(self.event.as_ref().map(|event| event.notify.read())),
            _ if self.broken => {}
            _ => self.host.run(),
        }
        if self.broken {
            return;
        }
        if let Err(error) = self.work() {
            self.broken = true;
            add(&self.shared.metrics.broken_rings, 1);
            if let Some(suppressed) = BROKEN_RINGS.allow() {
                let device = &self.shared.name;
                tracing::warn!(device, %error, suppressed, "ring is broken, the device needs a reset");
            }
            // What happens there would wake this thread all the time.
            let _ = ops.remove(Events::empty_raw(self.host.as_raw_fd()));
            self.shared.interrupt.needs_reset();
        }
    }

    fn drain(&mut self) {
        // No packet is ever half done between two events.
        self.rx.drain();
        self.tx.drain();
    }
}
