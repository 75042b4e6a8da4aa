//! The worker of one queue pair.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventOps, Events};
use virtio_queue::Error;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::backend::Backend;
use super::control::{Control, Settings};
use super::filter::Filter;
use super::link::{Port, PortState};
use super::metrics::NetMetrics;
use super::pairs::Pairs;
use super::rx::Rx;
use super::tx::Tx;
use crate::memory::GuestRam;
use crate::throttle::Throttle;
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// A guest can break its rings, reset and break them again.
static BROKEN_RINGS: Throttle = Throttle::per_minute(10);

/// The driver offered receive buffers, or the link was set up or down.
const RX_KICK: u32 = 0;
/// The driver offered packets to send, or the link was set up or down.
const TX_KICK: u32 = 1;
/// The port has packets, or room, or is gone.
const PORT: u32 = 2;
/// The port may be gone.
const CHANGES: u32 = 3;
/// The driver offered commands.
const CONTROL_KICK: u32 = 4;
/// There may be a turn to receive.
const RX_TURN: u32 = 5;
/// There may be a turn to send.
const TX_TURN: u32 = 6;
/// There may be a turn for commands.
const CONTROL_TURN: u32 = 7;

/// How a queue's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is nothing to do until the next event.
    Idle,
    /// There is more to do.
    Again,
    /// The host has no room.
    Blocked,
    /// The rate limit has to be waited for; its timer is set.
    HeldBack,
}

/// What both directions use.
pub(super) struct Shared<B> {
    pub(super) backend: Arc<B>,
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) filter: Arc<Filter>,
    pub(super) metrics: Arc<NetMetrics>,
}

/// Where a queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is worked on when something happens.
    Ready,
    /// It waits for the host.
    Waits,
    /// It waits for its rate limit.
    HeldBack,
    /// It is not worked on any more, as the driver broke its ring.
    Broken,
}

/// A receive and a transmit queue over one port, and for the first pair the control queue.
pub(super) struct QueuePair<B> {
    name: String,
    index: u16,
    pairs: Arc<Pairs>,
    shared: Shared<B>,
    port: Port,
    rx: Rx,
    receiving: Standing,
    tx: Tx,
    sending: Standing,
    control: Option<Control<B>>,
    obeying: Standing,
}

impl<B: Backend> QueuePair<B> {
    /// Pair `index` of `pairs`.
    pub(super) fn new(
        name: &str,
        (index, pairs): (u16, Arc<Pairs>),
        shared: Shared<B>,
        port: Port,
        (rx, tx): (Rx, Tx),
        control: Option<Control<B>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            index,
            pairs,
            shared,
            port,
            rx,
            receiving: Standing::Ready,
            tx,
            sending: Standing::Ready,
            control,
            obeying: Standing::Ready,
        }
    }

    /// The queues, of which none has a chain in flight, and what the driver set on the control queue, if that is one of
    /// them.
    pub(super) fn into_parts(self) -> (Vec<ActiveQueue>, Option<Settings>) {
        let mut queues = vec![self.rx.active, self.tx.active];
        let settings = self.control.map(|control| {
            let (settings, queue) = control.into_parts();
            queues.push(queue);
            settings
        });
        (queues, settings)
    }

    /// See [`Rx::offers_enough`].
    pub(super) fn offers_enough(&self) -> bool {
        self.rx.offers_enough()
    }

    fn receive(&mut self) {
        match self.receiving {
            Standing::Broken => return,
            // A pulled cable waits for nobody, and limits may have changed.
            Standing::HeldBack
                if self.port.is_plugged() && !self.rx.limit().has_turn(Instant::now()) =>
            {
                return;
            }
            Standing::Waits | Standing::HeldBack | Standing::Ready => {}
        }
        self.receiving = Standing::Ready;
        let turn = self.pairs.turn(self.index);
        if self.index >= self.pairs.in_use() || self.port.state() == PortState::Gone {
            return;
        }
        let memory = self.shared.memory.memory();
        let result = self.rx.run(&self.shared, &self.port, &memory);
        drop(turn);
        match result {
            // The counter of an eventfd that is read before each turn cannot be full.
            Ok(Outcome::Again) => drop(self.rx.active.notify.write(1)),
            Ok(Outcome::HeldBack) => self.receiving = Standing::HeldBack,
            Ok(Outcome::Idle | Outcome::Blocked) => {}
            Err(error) => {
                self.receiving = Standing::Broken;
                self.broken("receive", &error);
            }
        }
    }

    fn transmit(&mut self, ops: &EventOps) {
        match self.sending {
            Standing::Broken => return,
            // As for receiving.
            Standing::Waits if self.port.is_plugged() => return,
            Standing::HeldBack
                if self.port.is_plugged() && !self.tx.limit().has_turn(Instant::now()) =>
            {
                return;
            }
            // What waits for the host does so until that says that it has room.
            Standing::Waits | Standing::Ready => {}
            Standing::HeldBack => self.sending = Standing::Ready,
        }
        let turn = self.pairs.turn(self.index);
        let memory = self.shared.memory.memory();
        let result = self.tx.run(&self.shared, &self.port, &memory);
        drop(turn);
        match result {
            Ok(Outcome::Again) => drop(self.tx.active.notify.write(1)),
            Ok(Outcome::Idle) => {}
            Ok(Outcome::HeldBack) => self.sending = Standing::HeldBack,
            Ok(Outcome::Blocked) => {
                self.sending = Standing::Waits;
                self.watch_port_anew(ops);
            }
            Err(error) => {
                self.sending = Standing::Broken;
                self.broken("transmit", &error);
            }
        }
    }

    /// Does what the driver says. Not in a turn of this pair: a command may have to wait for the turns of others.
    fn obey(&mut self) {
        let Some(control) = &mut self.control else {
            return;
        };
        if self.obeying != Standing::Ready {
            return;
        }
        let memory = self.shared.memory.memory();
        match control.run(&memory) {
            Ok(Outcome::Again) => drop(control.active.notify.write(1)),
            Ok(Outcome::HeldBack) => self.obeying = Standing::HeldBack,
            Ok(Outcome::Idle | Outcome::Blocked) => {}
            Err(error) => {
                self.obeying = Standing::Broken;
                self.broken("control", &error);
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
            wait_no_more(&mut self.sending);
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

    fn changes_events(&self) -> Option<Events> {
        let changes = self.shared.backend.changes()?;
        Some(Events::with_data_raw(changes, CHANGES, EventSet::IN))
    }

    /// Has the next change of the port reported. A tap tells that it became writable only to those who asked since it was
    /// not; this asks, and reports at once if it became so meanwhile.
    fn watch_port_anew(&self, ops: &EventOps) {
        if let Err(error) = ops.modify(self.port_events()) {
            self.cannot_wait(&error);
        }
    }

    fn cannot_wait(&self, error: &event_manager::Error) {
        let device = &self.name;
        tracing::error!(device, ?error, "cannot wait for the network interface");
    }
}

fn wait_no_more(standing: &mut Standing) {
    if *standing == Standing::Waits {
        *standing = Standing::Ready;
    }
}

impl<B: Backend> Handler for QueuePair<B> {
    fn init(&mut self, ops: &mut EventOps) {
        let control = self.control.as_ref();
        let kicks = [
            (Some(&self.rx.active.notify), RX_KICK),
            (Some(&self.tx.active.notify), TX_KICK),
            (control.map(|control| &control.active.notify), CONTROL_KICK),
        ];
        for (notify, data) in kicks {
            if let Some(notify) = notify {
                ops.add(Events::with_data(notify, data, EventSet::IN))
                    .expect("a new epoll instance takes the eventfd of a queue");
            }
        }
        let control = self.control.as_mut();
        let limits = [
            (Some(self.rx.limit()), RX_TURN),
            (Some(self.tx.limit()), TX_TURN),
            (control.map(Control::limit), CONTROL_TURN),
        ];
        for (limit, data) in limits {
            if let Some(limit) = limit {
                ops.add(Events::with_data(limit.timer(), data, EventSet::IN))
                    .expect("a new epoll instance takes the timer of a limit");
            }
        }
        if self.port.state() == PortState::Gone {
            return;
        }
        let ports = [Some(self.port_events()), self.changes_events()];
        for events in ports.into_iter().flatten() {
            if let Err(error) = ops.add(events) {
                self.cannot_wait(&error);
                self.port.set(PortState::Gone);
            }
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
            CONTROL_KICK => {
                if let Some(control) = &self.control {
                    let _ = control.active.notify.read();
                }
                self.obey();
            }
            RX_TURN => {
                self.rx.limit().clear();
                self.receive();
            }
            TX_TURN => {
                self.tx.limit().clear();
                self.transmit(ops);
            }
            CONTROL_TURN => {
                if let Some(control) = &mut self.control {
                    control.limit().clear();
                }
                self.obeying = match self.obeying {
                    Standing::Broken => Standing::Broken,
                    _ => Standing::Ready,
                };
                self.obey();
            }
            CHANGES => {
                self.shared.backend.take_changes();
                if !self.shared.backend.is_attached() {
                    self.port.set(PortState::Gone);
                }
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
                if let Some(changes) = self.changes_events() {
                    let _ = ops.remove(changes);
                }
                // What waited for room is dropped now.
                wait_no_more(&mut self.sending);
                self.transmit(ops);
            }
        }
    }

    fn drain(&mut self) {
        self.rx.hand_back();
    }
}
