//! The worker of a console device.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::{Error, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::control;
use super::metrics::{ConsoleMetrics, add};
use super::port::WindowSize;
use super::ports::{CHUNK, Port, Progress};
use super::spec::{F_MULTIPORT, F_SIZE, Role};
use crate::memory::{GuestRam, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::chain::{Buffers, ChainError};
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// What all queues use.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) metrics: Arc<ConsoleMetrics>,
    /// Bounds what the driver can have logged, however often it resets the device.
    pub(super) throttle: Arc<Throttle>,
}

/// The queues by what they are for. A driver need not use all.
#[derive(Default)]
pub(super) struct Queues {
    receive: Vec<Option<ActiveQueue>>,
    transmit: Vec<Option<ActiveQueue>>,
    control_receive: Option<ActiveQueue>,
    control_transmit: Option<ActiveQueue>,
}

impl Queues {
    pub(super) fn new(queues: Vec<ActiveQueue>, ports: usize) -> Self {
        let mut sorted = Self::default();
        sorted.receive.resize_with(ports, || None);
        sorted.transmit.resize_with(ports, || None);
        for active in queues {
            let place = match Role::of(active.index) {
                Role::Receive(port) => sorted.receive.get_mut(port),
                Role::Transmit(port) => sorted.transmit.get_mut(port),
                Role::ControlReceive => Some(&mut sorted.control_receive),
                Role::ControlTransmit => Some(&mut sorted.control_transmit),
            };
            // The transport has no more queues than the device told it.
            if let Some(place) = place {
                *place = Some(active);
            }
        }
        sorted
    }

    fn iter(&self) -> impl Iterator<Item = &ActiveQueue> {
        let control = [&self.control_receive, &self.control_transmit];
        let ports = self.receive.iter().chain(&self.transmit);
        ports.chain(control).flatten()
    }

    fn get(&self, index: u16) -> Option<&ActiveQueue> {
        match Role::of(index) {
            Role::Receive(port) => self.receive.get(port)?.as_ref(),
            Role::Transmit(port) => self.transmit.get(port)?.as_ref(),
            Role::ControlReceive => self.control_receive.as_ref(),
            Role::ControlTransmit => self.control_transmit.as_ref(),
        }
    }

    /// In ascending order of index.
    fn into_vec(self) -> Vec<ActiveQueue> {
        let control = [self.control_receive, self.control_transmit];
        let ports = self.receive.into_iter().chain(self.transmit);
        let mut queues: Vec<_> = ports.chain(control).flatten().collect();
        queues.sort_by_key(|active| active.index);
        queues
    }
}

/// Something else than a queue wakes the worker.
const WAKE: u32 = u32::MAX;

/// What became of a chain.
pub(super) enum Turn {
    /// It goes back to the driver, with so many bytes written.
    Used(u32),
    /// It stays in the ring: there is nothing for it now.
    Wait,
}

/// Owns the queues while the device runs.
pub(super) struct ConsoleHandler {
    shared: Shared,
    ports: Arc<[Port]>,
    progress: Vec<Progress>,
    queues: Queues,
    wake: Arc<EventFd>,
    multiport: bool,
    tells_size: bool,
    /// The terminal's size as the driver was last told to look.
    size: Option<WindowSize>,
    scratch: (Buffers, Box<[u8; CHUNK]>),
    /// The driver broke a ring; nothing is worked on any more.
    broken: bool,
}

impl ConsoleHandler {
    pub(super) fn new(
        shared: Shared,
        features: u64,
        ports: Arc<[Port]>,
        progress: Vec<Progress>,
        queues: Queues,
        wake: Arc<EventFd>,
    ) -> Self {
        let multiport = features & 1 << F_MULTIPORT != 0;
        if !multiport && let Some(port) = ports.first() {
            // Such a driver does not tell: its only port is open.
            port.inlet.set_open(true);
            if let Some(line) = &port.line {
                line.receiver_ready();
            }
        }
        Self {
            shared,
            ports,
            progress,
            queues,
            wake,
            multiport,
            tells_size: features & 1 << F_SIZE != 0,
            size: None,
            scratch: (Buffers::new(), Box::new([0; CHUNK])),
            broken: false,
        }
    }

    /// The queues, and how far each port is.
    pub(super) fn into_parts(self) -> (Vec<ActiveQueue>, Vec<Progress>) {
        (self.queues.into_vec(), self.progress)
    }

    fn run(&mut self, role: Role, memory: &RamGuard) -> Result<(), Error> {
        let Self {
            shared,
            ports,
            progress,
            queues,
            scratch,
            ..
        } = self;
        match role {
            Role::Receive(index) => {
                let port = ports.get(index);
                let active = queues.receive.get_mut(index).and_then(Option::as_mut);
                if let (Some(port), Some(active)) = (port, active) {
                    port.receive(active, shared, memory, scratch)?;
                    // A client whose last bytes were delivered has gone.
                    if self.multiport && port.inlet.is_empty() {
                        return self.tell(memory);
                    }
                }
            }
            Role::Transmit(index) => {
                let active = queues.transmit.get_mut(index).and_then(Option::as_mut);
                if let (Some(port), Some(progress), Some(active)) =
                    (ports.get(index), progress.get_mut(index), active)
                {
                    port.transmit(progress, active, shared, memory, scratch)?;
                }
            }
            Role::ControlReceive if self.multiport => self.tell(memory)?,
            Role::ControlTransmit if self.multiport => {
                if let Some(active) = &mut queues.control_transmit {
                    control::take(ports, progress, active, shared, memory, &mut scratch.0)?;
                }
                self.tell(memory)?;
            }
            Role::ControlReceive | Role::ControlTransmit => {}
        }
        Ok(())
    }

    fn tell(&mut self, memory: &RamGuard) -> Result<(), Error> {
        let Some(active) = &mut self.queues.control_receive else {
            return Ok(());
        };
        let buffers = &mut self.scratch.0;
        let progress = &mut self.progress;
        control::tell(&self.ports, progress, active, &self.shared, memory, buffers)
    }

    /// Something has changed at the other ends.
    fn look_around(&mut self, memory: &RamGuard) -> Result<(), Error> {
        for index in 0..self.ports.len() {
            self.run(Role::Receive(index), memory)?;
            self.run(Role::Transmit(index), memory)?;
        }
        if self.multiport {
            self.tell(memory)?;
        } else if self.tells_size {
            let console = self.ports.first().and_then(|port| port.line.as_ref());
            let size = console.and_then(|line| line.size());
            if size != self.size {
                self.size = size;
                self.shared.interrupt.config_changed();
            }
        }
        Ok(())
    }

    fn give_up(&mut self, error: &Error) {
        add(&self.shared.metrics.broken_rings, 1);
        if let Some(suppressed) = self.shared.throttle.allow() {
            let device = &self.shared.name;
            tracing::warn!(device, %error, suppressed, "ring is broken, the device needs a reset");
        }
        self.broken = true;
        self.shared.interrupt.needs_reset();
    }
}

impl Handler for ConsoleHandler {
    fn init(&mut self, ops: &mut EventOps) {
        for active in self.queues.iter() {
            ops.add(Events::with_data(
                &active.notify,
                active.index.into(),
                EventSet::IN,
            ))
            .expect("a new epoll instance takes the eventfd of a queue");
        }
        ops.add(Events::with_data_raw(
            self.wake.as_raw_fd(),
            WAKE,
            EventSet::IN,
        ))
        .expect("a new epoll instance takes another eventfd");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        // Reading makes it wait for the next signal; there is none to read if it was read before.
        let queue = u16::try_from(events.data()).ok();
        match queue.and_then(|index| self.queues.get(index)) {
            Some(active) => drop(active.notify.read()),
            None => drop(self.wake.read()),
        }
        if self.broken {
            return;
        }
        let memory = self.shared.memory.memory();
        let result = match queue {
            Some(index) => self.run(Role::of(index), &memory),
            None => self.look_around(&memory),
        };
        if let Err(error) = result {
            self.give_up(&error);
        }
    }

    fn drain(&mut self) {
        // Nothing is in flight: a chain that waits is in the available ring.
        self.scratch.0.clear();
    }
}

/// Hands the chains of a queue to `each`, until there is none, it waits, or it is enough for one go.
pub(super) fn work(
    active: &mut ActiveQueue,
    shared: &Shared,
    memory: &RamGuard,
    buffers: &mut Buffers,
    mut each: impl FnMut(&mut Buffers) -> Result<Turn, ChainError>,
) -> Result<(), Error> {
    let queue = &mut active.queue;
    let before = queue.next_used();
    let mut chains = queue.size();
    'turn: loop {
        queue.disable_notification(&**memory)?;
        while let Some(chain) = queue.iter(&**memory)?.next() {
            let head = chain.head_index();
            let turn = buffers
                .load(memory, chain)
                .and_then(|()| each(buffers))
                .unwrap_or_else(|error| {
                    add(&shared.metrics.malformed, 1);
                    if let Some(suppressed) = shared.throttle.allow() {
                        let (device, queue) = (&shared.name, active.index);
                        tracing::warn!(device, queue, %error, suppressed, "malformed chain");
                    }
                    Turn::Used(0)
                });
            match turn {
                Turn::Used(len) => queue.add_used(&**memory, head, len)?,
                Turn::Wait => {
                    queue.go_to_previous_position();
                    break 'turn;
                }
            }
            chains -= 1;
            if chains == 0 {
                // Wakes this worker once more, after other events; a full counter wakes as well.
                let _ = active.notify.write(1);
                break 'turn;
            }
        }
        if !queue.enable_notification(&**memory)? {
            break;
        }
    }
    if queue.next_used() != before && queue.needs_notification(&**memory)? {
        shared.interrupt.queue(active.index);
    }
    Ok(())
}
