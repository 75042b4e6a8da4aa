//! A machine with one virtio device on MMIO, seen from the guest.

use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::{SLOT_LEN, Slots};
use crate::bus::Bus;
use crate::interrupt::InterruptLine;
use crate::memory::GuestRam;
use crate::state::{Persist, Section, StateError};
use crate::virtio::Notify;
pub(super) use crate::virtio::transport::tests::*;

pub(super) const BASE: u64 = 0xd000_0000;

pub(super) const MAGIC: u64 = 0x00;
pub(super) const VERSION: u64 = 0x04;
pub(super) const DEVICE_ID: u64 = 0x08;
pub(super) const DEVICE_FEATURES: u64 = 0x10;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(super) const DRIVER_FEATURES: u64 = 0x20;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(super) const QUEUE_SEL: u64 = 0x30;
pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
pub(super) const QUEUE_NUM: u64 = 0x38;
pub(super) const QUEUE_READY: u64 = 0x44;
pub(super) const QUEUE_NOTIFY: u64 = 0x50;
pub(super) const INTERRUPT_STATUS: u64 = 0x60;
pub(super) const INTERRUPT_ACK: u64 = 0x64;
pub(super) const STATUS: u64 = 0x70;
pub(super) const QUEUE_DESC: u64 = 0x80;
pub(super) const QUEUE_DRIVER: u64 = 0x90;
pub(super) const QUEUE_DEVICE: u64 = 0xa0;
pub(super) const GENERATION: u64 = 0xfc;
pub(super) const CONFIG: u64 = 0x100;

pub(in crate::virtio::transport) struct Machine {
    pub(super) memory: GuestRam,
    pub(super) mmio: Arc<Bus>,
    pub(super) slots: Slots,
    pub(super) log: Arc<Mutex<Log>>,
    /// The interrupt controller's end of the line.
    pub(super) line: EventFd,
    pub(super) bindings: Arc<Bindings>,
}

/// A line, and the interrupt controller's end of it.
pub(super) fn line() -> (InterruptLine, EventFd) {
    let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    (InterruptLine::new(eventfd.try_clone().unwrap()), eventfd)
}

impl Machine {
    /// Room for two devices; the first one is there.
    pub(super) fn new() -> Self {
        let memory = memory();
        let mmio = Arc::new(Bus::new());
        let mut slots = Slots::new(Arc::clone(&mmio), BASE..BASE + 2 * SLOT_LEN);
        let device = idle();
        let log = device.log();
        let (device_end, line) = line();
        let bindings = Arc::new(Bindings::default());
        let notify = Arc::clone(&bindings) as Arc<dyn Notify>;
        let added = slots.add(Box::new(device), memory.clone(), device_end, notify);
        assert_eq!(added.unwrap(), 0);
        Self {
            memory,
            mmio,
            slots,
            log,
            line,
            bindings,
        }
    }

    pub(super) fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(BASE + register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&self, register: u64, value: u32) {
        self.mmio.write(BASE + register, &value.to_le_bytes());
    }

    /// Edges on the line since it was last asked.
    pub(super) fn edges(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }
}

impl Face for Machine {
    fn new() -> Self {
        Self::new()
    }

    fn memory(&self) -> &GuestRam {
        &self.memory
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    fn get(&self, field: Field) -> u64 {
        self.read(register(field)).into()
    }

    fn set(&self, field: Field, value: u64) {
        self.write(register(field), value as u32);
        if matches!(field, Field::Descriptors | Field::Available | Field::Used) {
            self.write(register(field) + 4, (value >> 32) as u32);
        }
    }

    fn max_size(&self) -> u64 {
        self.read(QUEUE_NUM_MAX).into()
    }

    fn read_device_config(&self, offset: u64, data: &mut [u8]) {
        self.mmio.read(BASE + CONFIG + offset, data);
    }

    fn write_device_config(&self, offset: u64, data: &[u8]) {
        self.mmio.write(BASE + CONFIG + offset, data);
    }

    fn ring_doorbell(&self, queue: u16) {
        self.write(QUEUE_NOTIFY, queue.into());
    }

    fn pause(&mut self) {
        self.slots.pause();
    }

    fn resume(&mut self) {
        self.slots.resume();
    }

    fn save(&self) -> Section {
        self.slots.save()
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        self.slots.restore(section)
    }
}

fn register(field: Field) -> u64 {
    match field {
        Field::Status => STATUS,
        Field::Generation => GENERATION,
        Field::DeviceFeatureSelect => DEVICE_FEATURES_SEL,
        Field::DeviceFeature => DEVICE_FEATURES,
        Field::DriverFeatureSelect => DRIVER_FEATURES_SEL,
        Field::DriverFeature => DRIVER_FEATURES,
        Field::QueueSelect => QUEUE_SEL,
        Field::QueueSize => QUEUE_NUM,
        Field::QueueEnable => QUEUE_READY,
        Field::Descriptors => QUEUE_DESC,
        Field::Available => QUEUE_DRIVER,
        Field::Used => QUEUE_DEVICE,
    }
}
