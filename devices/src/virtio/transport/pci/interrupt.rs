//! Interrupts of a virtio device on PCI: MSI-X vectors that the driver chose for its queues and configuration changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::super::core::{Isr, Signals};
use crate::pci::Msi;
use crate::virtio::Interrupt;

/// The vector register that means none.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// The vectors, shared by the registers and the device.
pub(super) struct Vectors {
    msi: Arc<dyn Msi>,
    signals: Arc<Signals>,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
}

impl Vectors {
    pub(super) fn new(msi: Arc<dyn Msi>, signals: Arc<Signals>, queues: usize) -> Self {
        Self {
            msi,
            signals,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    pub(super) fn config(&self) -> u16 {
        self.config.load(Ordering::Relaxed)
    }

    pub(super) fn set_config(&self, vector: u16) {
        self.config.store(self.checked(vector), Ordering::Relaxed);
    }

    pub(super) fn queue(&self, index: u16) -> u16 {
        self.queues
            .get(usize::from(index))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    pub(super) fn set_queue(&self, index: u16, vector: u16) {
        if let Some(register) = self.queues.get(usize::from(index)) {
            register.store(self.checked(vector), Ordering::Relaxed);
        }
    }

    pub(super) fn reset(&self) {
        self.set_config(NO_VECTOR);
        for queue in &self.queues {
            queue.store(NO_VECTOR, Ordering::Relaxed);
        }
    }

    /// A vector that does not exist reads back as none, so that the driver sees the refusal (virtio 1.2, 4.1.5.1.2).
    fn checked(&self, vector: u16) -> u16 {
        if vector < self.msi.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Raises `vector`, and tells whether it is one.
    fn raise(&self, vector: u16) -> bool {
        if vector == NO_VECTOR {
            return false;
        }
        // Fails only if the counter is full: the interrupt is pending already.
        let _ = self.msi.eventfd(vector).write(1);
        true
    }

    fn raise_config(&self) {
        // Set in either case (virtio 1.2, 4.1.4.5.1), and before the notification.
        self.signals.add_isr(Isr::CONFIG);
        self.raise(self.config());
    }
}

impl Interrupt for Vectors {
    fn queue(&self, index: u16) {
        if !self.raise(Vectors::queue(self, index)) {
            // Without a vector the driver can only poll the interrupt status.
            self.signals.add_isr(Isr::QUEUE);
        }
    }

    fn queue_eventfd(&self, index: u16) -> Option<EventFd> {
        // Its count while the vector is masked is the pending bit, whoever wrote it.
        let vector = Vectors::queue(self, index);
        (vector != NO_VECTOR).then(|| self.msi.eventfd(vector).try_clone().ok())?
    }

    fn config_changed(&self) {
        self.signals.bump_generation();
        self.raise_config();
    }

    fn needs_reset(&self) {
        if self.signals.need_reset() {
            self.raise_config();
        }
    }
}
