//! A machine with one device, as a driver sees it through any face.

use std::sync::{Arc, MutexGuard};

use super::{FEATURES, Log};
use crate::memory::GuestRam;
use crate::state::{Section, StateError};
use crate::virtio::Interrupt;
use crate::virtio::driver::Ring;

pub(in crate::virtio::transport) const ACKNOWLEDGE: u64 = 1;
pub(in crate::virtio::transport) const DRIVER: u64 = 2;
pub(in crate::virtio::transport) const DRIVER_OK: u64 = 4;
pub(in crate::virtio::transport) const FEATURES_OK: u64 = 8;
pub(in crate::virtio::transport) const NEEDS_RESET: u64 = 64;

/// A register that both faces have. Those of addresses are 64 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio::transport) enum Field {
    Status,
    Generation,
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    QueueSelect,
    QueueSize,
    QueueEnable,
    Descriptors,
    Available,
    Used,
}

/// The device is [`Idle`](super::Idle), with queues of 16 and 8. Memory is from 0 to 1 MiB but for a hole of 0x10000 bytes
/// at [`HOLE`].
pub(in crate::virtio::transport) trait Face: Sized {
    /// A machine after a reset.
    fn new() -> Self;

    fn memory(&self) -> &GuestRam;

    fn log(&self) -> MutexGuard<'_, Log>;

    fn get(&self, field: Field) -> u64;

    fn set(&self, field: Field, value: u64);

    /// Size of the selected queue as offered.
    fn max_size(&self) -> u64;

    fn read_device_config(&self, offset: u64, data: &mut [u8]);

    fn write_device_config(&self, offset: u64, data: &[u8]);

    /// A notification that no ioeventfd caught.
    fn ring_doorbell(&self, queue: u16);

    fn pause(&mut self);

    fn resume(&mut self);

    fn save(&self) -> Section;

    fn restore(&mut self, section: &Section) -> Result<(), StateError>;

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.log().interrupt.clone().expect("the device runs")
    }

    fn accept_features(&self, features: u64) {
        for page in 0..2 {
            self.set(Field::DriverFeatureSelect, page);
            self.set(Field::DriverFeature, features >> (32 * page) & 0xffff_ffff);
        }
    }

    /// Everything up to the queues, with all features.
    fn negotiate(&self) {
        self.set(Field::Status, 0);
        self.set(Field::Status, ACKNOWLEDGE);
        self.set(Field::Status, ACKNOWLEDGE | DRIVER);
        self.accept_features(FEATURES);
        self.set(Field::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.get(Field::Status), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn set_queue(&self, index: u16, ring: &Ring) {
        self.set(Field::QueueSelect, index.into());
        self.set(Field::QueueSize, ring.size().into());
        self.set(Field::Descriptors, ring.table_address());
        self.set(Field::Available, ring.available_address());
        self.set(Field::Used, ring.used_address());
        self.set(Field::QueueEnable, 1);
    }

    fn driver_ok(&self) {
        self.set(
            Field::Status,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        );
    }

    /// A device that runs with both queues, and the rings.
    fn running() -> (Self, [Ring; 2]) {
        let machine = Self::new();
        let rings = [
            Ring::new(machine.memory(), 0x1000, 16),
            Ring::new(machine.memory(), 0x2000, 4),
        ];
        machine.negotiate();
        machine.set_queue(0, &rings[0]);
        machine.set_queue(1, &rings[1]);
        machine.driver_ok();
        assert_eq!(machine.log().starts, 1);
        (machine, rings)
    }

    /// Whether queue `index`, as the device has it, was notified since it was last asked.
    fn take_notification(&self, index: usize) -> bool {
        self.log().queues[index].notify.read().is_ok()
    }
}

pub(in crate::virtio::transport) const HOLE: u64 = 0x80000;

/// Memory of a [`Face`].
pub(in crate::virtio::transport) fn memory() -> GuestRam {
    crate::virtio::driver::memory(&[(0, HOLE as usize), (0x90000, 0x70000)])
}
