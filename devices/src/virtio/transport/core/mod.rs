//! What every virtio transport does, whatever its registers look like (virtio 1.2, chapters 2 and 3): device status,
//! feature negotiation, queue configuration, and the life of the device between reset and DRIVER_OK.

mod queue;
mod signals;
mod state;

use std::io;
use std::sync::Arc;

use bitflags::bitflags;
use tracing::{debug, warn};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::{Activation, ActiveQueue, Interrupt, StartError, VirtioDevice};
use crate::memory::GuestRam;
use crate::throttle::Throttle;

pub use queue::{QueueFault, QueueRegisters, Ring};
pub use signals::{Isr, Signals};
pub use state::CoreState;

static REFUSALS: Throttle = Throttle::per_minute(10);

bitflags! {
    /// Device status (virtio 1.2, 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest found the device.
        const ACKNOWLEDGE = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
        /// The guest has a driver for it.
        const DRIVER = VIRTIO_CONFIG_S_DRIVER as u8;
        /// The driver is ready: the device runs.
        const DRIVER_OK = VIRTIO_CONFIG_S_DRIVER_OK as u8;
        /// Feature negotiation is complete.
        const FEATURES_OK = VIRTIO_CONFIG_S_FEATURES_OK as u8;
        /// The device cannot go on without a reset.
        const NEEDS_RESET = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        /// The driver gave up.
        const FAILED = VIRTIO_CONFIG_S_FAILED as u8;
    }
}

/// What the device does now.
#[derive(Debug)]
enum Life {
    /// It has no queues: before DRIVER_OK, or after a failed start.
    Idle,
    /// It works on its queues.
    Running,
    /// The machine is paused, and these are the queues to go on with.
    Paused(Vec<ActiveQueue>),
}

/// A device and the state that its driver set up, without registers.
pub struct TransportCore {
    device: Box<dyn VirtioDevice>,
    memory: GuestRam,
    signals: Arc<Signals>,
    interrupt: Arc<dyn Interrupt>,
    notifiers: Vec<EventFd>,
    driver_features: u64,
    queues: Vec<QueueRegisters>,
    life: Life,
}

impl TransportCore {
    /// `device` after a reset. `interrupt` is the face's, over the same `signals`.
    ///
    /// # Errors
    ///
    /// The eventfds for notifications, one for each queue, cannot be had.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        signals: Arc<Signals>,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = sizes
            .iter()
            .map(|size| QueueRegisters::new(*size))
            .collect();
        let notifiers = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            memory,
            signals,
            interrupt,
            notifiers,
            driver_features: 0,
            queues,
            life: Life::Idle,
        })
    }

    /// The device behind the registers.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// Number of queues.
    pub fn queue_count(&self) -> u16 {
        self.notifiers.len() as u16
    }

    /// The eventfd of each queue that a notification signals.
    pub fn notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// The driver notified queue `index`; does nothing for a queue that does not exist.
    pub fn notify(&self, index: u16) {
        if let Some(notifier) = self.notifiers.get(usize::from(index)) {
            // Fails only if the counter is full: the queue is notified already.
            let _ = notifier.write(1);
        }
    }

    /// Bits 32 * `page` and up of the offered features.
    pub fn device_features(&self, page: u32) -> u32 {
        match page {
            0 => self.device.features() as u32,
            1 => (self.device.features() >> 32) as u32,
            _ => 0,
        }
    }

    /// Bits 32 * `page` and up of the features that the driver accepts.
    pub fn driver_features(&self, page: u32) -> u32 {
        match page {
            0 => self.driver_features as u32,
            1 => (self.driver_features >> 32) as u32,
            _ => 0,
        }
    }

    /// Sets what [`TransportCore::driver_features`] reads; does nothing once negotiation is complete.
    pub fn set_driver_features(&mut self, page: u32, value: u32) {
        if self.status().contains(Status::FEATURES_OK) {
            return;
        }
        let value = u64::from(value);
        match page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// The registers of queue `index`, if it exists.
    pub fn queue(&self, index: u16) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(index))
    }

    /// The registers of queue `index`, to be set, if it exists and the device does not run on it.
    pub fn queue_mut(&mut self, index: u16) -> Option<&mut QueueRegisters> {
        if self.status().contains(Status::DRIVER_OK) {
            return None;
        }
        self.queues.get_mut(usize::from(index))
    }

    /// Disables queue `index`, for faces whose drivers may do so without a reset. A device that runs finishes what it has
    /// begun, and goes on with the other queues; one that cannot be without this queue needs a reset.
    pub fn disable_queue(&mut self, index: u16) {
        let Some(registers) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        if !registers.enabled() {
            return;
        }
        registers.disable();
        let keep = |queue: &ActiveQueue| queue.index != index;
        match std::mem::replace(&mut self.life, Life::Idle) {
            Life::Idle => {}
            Life::Running => {
                let mut queues = self.device.stop();
                queues.retain(keep);
                self.start(queues);
            }
            Life::Paused(mut queues) => {
                queues.retain(keep);
                self.life = Life::Paused(queues);
            }
        }
    }

    /// Reads device configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Writes device configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// Device status.
    pub fn status(&self) -> Status {
        self.signals.status()
    }

    /// The driver writes device status: 0 resets the device, other values add the bits that are in turn.
    ///
    /// A bit that is out of turn is not set, and the driver, reading the status back, finds that it is not.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let asked = Status::from_bits_truncate(value) - Status::NEEDS_RESET;
        if asked.contains(Status::ACKNOWLEDGE) {
            self.signals.add_status(Status::ACKNOWLEDGE);
        }
        if asked.contains(Status::DRIVER) && self.status().contains(Status::ACKNOWLEDGE) {
            self.signals.add_status(Status::DRIVER);
        }
        if asked.contains(Status::FAILED) {
            self.signals.add_status(Status::FAILED);
        }
        let status = self.status();
        if asked.contains(Status::FEATURES_OK)
            && !status.contains(Status::FEATURES_OK)
            && status.contains(Status::DRIVER)
            && self.features_fit()
        {
            self.signals.add_status(Status::FEATURES_OK);
        }
        let status = self.status();
        if asked.contains(Status::DRIVER_OK)
            && !status.contains(Status::DRIVER_OK)
            && status.contains(Status::FEATURES_OK)
        {
            self.signals.add_status(Status::DRIVER_OK);
            self.driver_ready();
        }
    }

    /// The driver chose another interrupt for queue `index`.
    pub fn interrupt_moved(&mut self, index: u16) {
        if matches!(self.life, Life::Running) {
            self.device.interrupt_moved(index);
        }
    }

    /// The machine pauses: takes the queues back from the device, in-flight requests drained.
    pub fn pause(&mut self) {
        if matches!(self.life, Life::Running) {
            self.life = Life::Paused(self.device.stop());
        }
    }

    /// The mirror of [`TransportCore::pause`].
    pub fn resume(&mut self) {
        match std::mem::replace(&mut self.life, Life::Idle) {
            Life::Paused(queues) => self.start(queues),
            other => self.life = other,
        }
    }

    /// Whether the driver accepted features that make sense: none that was not offered, and VIRTIO_F_VERSION_1, without
    /// which it is a driver for another kind of device.
    fn features_fit(&self) -> bool {
        let unknown = self.driver_features & !self.device.features();
        let fit = unknown == 0 && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        if !fit && let Some(suppressed) = REFUSALS.allow() {
            warn!(
                device = self.device.name(),
                features = format_args!("{:#x}", self.driver_features),
                offered = format_args!("{:#x}", self.device.features()),
                suppressed,
                "driver accepted features that do not fit"
            );
        }
        fit
    }

    /// DRIVER_OK: builds the queues and starts the device.
    fn driver_ready(&mut self) {
        match self.build_queues() {
            Ok(queues) => self.start(queues),
            Err((index, fault)) => {
                if let Some(suppressed) = REFUSALS.allow() {
                    warn!(device = self.device.name(), queue = index, %fault, suppressed, "driver set up an invalid queue");
                }
                self.interrupt.needs_reset();
            }
        }
    }

    fn build_queues(&self) -> Result<Vec<ActiveQueue>, (u16, QueueFault)> {
        let memory = self.memory.memory();
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        (0..)
            .zip(&self.queues)
            .filter(|(_, registers)| registers.enabled())
            .map(|(index, registers)| {
                let built = registers.build(&memory, event_idx).and_then(|queue| {
                    let notify = self.notifiers[usize::from(index)].try_clone()?;
                    Ok(ActiveQueue {
                        index,
                        queue,
                        notify,
                    })
                });
                built.map_err(|fault| (index, fault))
            })
            .collect()
    }

    /// Hands `queues` to the device. On failure the driver is told to reset.
    fn start(&mut self, queues: Vec<ActiveQueue>) {
        for queue in &queues {
            // What was made available before the start is found without a notification.
            self.notify(queue.index);
        }
        let started = self.device.start(Activation {
            memory: self.memory.clone(),
            queues,
            features: self.driver_features,
            interrupt: Arc::clone(&self.interrupt),
        });
        match started {
            Ok(()) => {
                debug!(
                    device = self.device.name(),
                    features = format_args!("{:#x}", self.driver_features),
                    "device runs"
                );
                self.life = Life::Running;
            }
            Err(error) => {
                self.life = Life::Idle;
                self.refuse_start(&error);
                self.interrupt.needs_reset();
            }
        }
    }

    fn refuse_start(&self, error: &StartError) {
        if let Some(suppressed) = REFUSALS.allow() {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            warn!(device = self.device.name(), %error, cause, suppressed, "device did not start");
        }
    }

    /// Stops the device and forgets what the driver set up.
    fn reset(&mut self) {
        drop(self.device.stop());
        self.life = Life::Idle;
        self.device.reset();
        self.driver_features = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.signals.reset();
    }
}

impl Drop for TransportCore {
    /// No worker outlives its device.
    fn drop(&mut self) {
        drop(self.device.stop());
    }
}
