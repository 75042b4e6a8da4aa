//! The worker of one queue pair.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::Error;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::backend::Backend;
use super::link::{Port, PortState};
use super::metrics::NetMetrics;
use super::rx::Rx;
use super::tx::Tx;
use crate::memory::GuestRam;
use crate::throttle::Throttle;
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// A guest can break its rings, reset and break them again.
static BROKEN_RINGS: Throttle = Throttle::per_minute(10);

/// The driver offered receive buffers.
const RX_KICK: u32 = 0;
/// The driver offered packets to send.
const TX_KICK: u32 = 1;
/// The port has packets, or room, or is gone.
const PORT: u32 = 2;

/// How a queue's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is nothing to do until the next event.
    Idle,
    /// There is more to do.
    Again,
    /// The host has no room.
    Blocked,
}

/// What both directions use.
pub(super) struct Shared<B> {
    pub(super) backend: Arc<B>,
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) metrics: Arc<NetMetrics>,
}

/// A receive and a transmit queue over one port.
pub(super) struct QueuePair<B> {
    name: String,
    shared: Shared<B>,
    port: Port,
    rx: Rx,
    tx: Tx,
    /// Sending waits for the host to have room.
    blocked: bool,
    /// The rings that are not worked on any more, as the driver broke them.
    rx_broken: bool,
    tx_broken: bool,
}

impl<B: Backend> QueuePair<B> {
    pub(super) fn new(name: &str, shared: Shared<B>, port: Port, rx: Rx, tx: Tx) -> Self {
        Self {
            name: name.to_owned(),
            shared,
            port,
            rx,
            tx,
            blocked: false,
            rx_broken: false,
            tx_broken: false,
        }
    }

    /// The queues, of which none has a chain in flight.
    pub(super) fn into_queues(self) -> [ActiveQueue; 2] {
        [self.rx.active, self.tx.active]
    }

    /// See [`Rx::offers_enough`].
    pub(super) fn offers_enough(&self) -> bool {
        self.rx.offers_enough()
    }

    fn receive(&mut self) {
        if self.rx_broken || self.port.state() == PortState::Gone {
            return;
        }
        let memory = self.shared.memory.memory();
        match self.rx.run(&self.shared, &mut self.port, &memory) {
            // The counter of an eventfd that is read before each turn cannot be full.
            Ok(Outcome::Again) => drop(self.rx.active.notify.write(1)),
            Ok(Outcome::Idle | Outcome::Blocked) => {}
            Err(error) => {
                self.rx_broken = true;
                self.broken("receive", &error);
            }
        }
    }

    fn transmit(&mut self, ops: &EventOps) {
        if self.tx_broken || self.blocked {
            return;
        }
        let memory = self.shared.memory.memory();
        match self.tx.run(&self.shared, &mut self.port, &memory) {
            Ok(Outcome::Again) => drop(self.tx.active.notify.write(1)),
            Ok(Outcome::Idle) => {}
            Ok(Outcome::Blocked) => {
                self.blocked = true;
                self.watch_port_anew(ops);
            }
            Err(error) => {
                self.tx_broken = true;
                self.broken("transmit", &error);
            }
        }
    }

    fn broken(&self, queue: &'static str, error: &Error) {
        if let Some(suppressed) = BROKEN_RINGS.allow() {
            tracing::warn!(device = self.name, queue, %error, suppressed, "ring is broken, the device needs a reset");
        }
        self.shared.interrupt.needs_reset();
    }

    fn port_event(&mut self, events: EventSet, ops: &mut EventOps) {
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP)
            && !self.shared.backend.is_attached()
        {
            self.port.set(PortState::Gone);
            return;
        }
        if events.contains(EventSet::OUT) {
            let was_down = self.port.state() == PortState::Down;
            if was_down {
                self.port.set(PortState::Up);
            }
            self.blocked = false;
            self.transmit(ops);
            if was_down && self.port.state() == PortState::Down {
                // It went down again at once, which to `process` looks like no change.
                self.watch_port_anew(ops);
            }
        }
        self.receive();
    }

    /// Edge-triggered: an event that cannot be acted on, such as a packet without a buffer for it, does not come back.
    fn port_events(&self) -> Events {
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        Events::with_data_raw(self.shared.backend.as_raw_fd(), PORT, events)
    }

    /// Has the next change of the port reported. A tap tells that it became writable only to those who asked since it was
    /// not; this asks, and reports at once if it became so meanwhile.
    fn watch_port_anew(&self, ops: &EventOps) {
        if let Err(error) = ops.modify(self.port_events()) {
            tracing::error!(
                device = self.name,
                ?error,
                "cannot wait for the network interface"
            );
        }
    }
}

impl<B: Backend> Handler for QueuePair<B> {
    fn init(&mut self, ops: &mut EventOps) {
        let kicks = [
            (&self.rx.active.notify, RX_KICK),
            (&self.tx.active.notify, TX_KICK),
        ];
        for (notify, data) in kicks {
            ops.add(Events::with_data(notify, data, EventSet::IN))
                .expect("a new epoll instance takes the eventfd of a queue");
        }
        if self.port.state() == PortState::Gone {
            return;
        }
        if let Err(error) = ops.add(self.port_events()) {
            tracing::error!(
                device = self.name,
                ?error,
                "cannot wait for the network interface"
            );
            self.port.set(PortState::Gone);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let before = self.port.state();
        match events.data() {
            RX_KICK => {
                // Only tells that there is something; readable, or the event would not have come.
                let _ = self.rx.active.notify.read();
                self.receive();
            }
            TX_KICK => {
                let _ = self.tx.active.notify.read();
                self.transmit(ops);
            }
            _ => self.port_event(events.event_set(), ops),
        }
        let after = self.port.state();
        if before == after {
            return;
        }
        match after {
            PortState::Up => {}
            PortState::Down => self.watch_port_anew(ops),
            PortState::Gone => {
                // It fails if the kernel forgot the descriptor first, which is as well.
                let _ = ops.remove(self.port_events());
                // What waited for room is dropped now.
                self.blocked = false;
                self.transmit(ops);
            }
        }
    }

    fn drain(&mut self) {
        self.rx.hand_back();
    }
}
