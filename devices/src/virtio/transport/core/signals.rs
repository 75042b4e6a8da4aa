//! The part of a transport that device threads write: status, interrupt status, and configuration generation.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use bitflags::bitflags;

use super::Status;

bitflags! {
    /// Interrupt status (virtio 1.2, 4.1.4.5 and 4.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Isr: u8 {
        /// A queue has used buffers.
        const QUEUE = 1;
        /// The device's configuration changed.
        const CONFIG = 2;
    }
}

/// Shared by a transport's registers and the interrupt that its device holds.
#[derive(Debug, Default)]
pub struct Signals {
    status: AtomicU8,
    isr: AtomicU8,
    generation: AtomicU32,
}

impl Signals {
    /// Device status.
    pub fn status(&self) -> Status {
        Status::from_bits_truncate(self.status.load(Ordering::Acquire))
    }

    /// Configuration generation, which changes whenever the configuration does.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Interrupt status, which reading clears.
    pub fn take_isr(&self) -> Isr {
        Isr::from_bits_truncate(self.isr.swap(0, Ordering::AcqRel))
    }

    /// Interrupt status, as it is.
    pub fn isr(&self) -> Isr {
        Isr::from_bits_truncate(self.isr.load(Ordering::Acquire))
    }

    /// Clears bits of the interrupt status.
    pub fn acknowledge(&self, isr: Isr) {
        self.isr.fetch_and(!isr.bits(), Ordering::AcqRel);
    }

    /// Sets bits of the interrupt status.
    pub fn add_isr(&self, isr: Isr) {
        self.isr.fetch_or(isr.bits(), Ordering::AcqRel);
    }

    /// The configuration changed.
    pub fn bump_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Sets DEVICE_NEEDS_RESET, and tells whether the driver is to be notified: it is ready, and was not told before
    /// (virtio 1.2, 2.1.2).
    pub fn need_reset(&self) -> bool {
        let before = self.add_status(Status::NEEDS_RESET);
        before.contains(Status::DRIVER_OK) && !before.contains(Status::NEEDS_RESET)
    }

    /// Sets bits of the status and returns the one before.
    pub(super) fn add_status(&self, status: Status) -> Status {
        Status::from_bits_truncate(self.status.fetch_or(status.bits(), Ordering::AcqRel))
    }

    /// Device reset. The generation goes on: a driver that compares two readings must not find a value again.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.isr.store(0, Ordering::Release);
    }

    pub(super) fn save(&self) -> (u8, u8, u32) {
        let Self {
            status,
            isr,
            generation,
        } = self;
        (
            status.load(Ordering::Acquire),
            isr.load(Ordering::Acquire),
            generation.load(Ordering::Acquire),
        )
    }

    pub(super) fn restore(&self, status: Status, isr: u8, generation: u32) {
        self.status.store(status.bits(), Ordering::Release);
        self.isr
            .store(Isr::from_bits_truncate(isr).bits(), Ordering::Release);
        self.generation.store(generation, Ordering::Release);
    }
}
