//! A machine with one virtio device on PCI, seen from the guest.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::VirtioPci;
use crate::bus::Bus;
use crate::memory::GuestRam;
use crate::pci::{ECAM_LEN, Msi, MsiMessage, Root, Windows};
use crate::state::{Persist, Section, StateError};
use crate::virtio::driver::Ring;
pub(super) use crate::virtio::transport::tests::*;
use crate::virtio::{Doorbell, Notify};

pub(super) const ECAM: u64 = 0xe000_0000;
pub(super) const LOW: u64 = 0xc000_0000;
pub(super) const HIGH: u64 = 0x10_0000_0000;
pub(super) const VECTORS: u16 = 3;

/// Vectors that behave as an interrupt controller's: a connected one takes the count of its eventfd as an interrupt.
pub(super) struct Vectors {
    eventfds: Vec<EventFd>,
    state: Mutex<Vec<(Option<MsiMessage>, u32)>>,
}

impl Vectors {
    pub(super) fn new(vectors: u16) -> Arc<Self> {
        Arc::new(Self {
            eventfds: (0..vectors)
                .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
                .collect(),
            state: Mutex::new(vec![(None, 0); usize::from(vectors)]),
        })
    }

    /// Where `vector` leads, if it is connected, and how often it was raised.
    pub(super) fn vector(&self, vector: u16) -> (Option<MsiMessage>, u32) {
        let mut state = self.state.lock().unwrap();
        let state = &mut state[usize::from(vector)];
        if state.0.is_some() && self.eventfds[usize::from(vector)].read().is_ok() {
            state.1 += 1;
        }
        *state
    }
}

impl Msi for Vectors {
    fn vectors(&self) -> u16 {
        self.eventfds.len() as u16
    }

    fn eventfd(&self, vector: u16) -> &EventFd {
        &self.eventfds[usize::from(vector)]
    }

    fn connect(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        self.state.lock().unwrap()[usize::from(vector)].0 = Some(message);
        self.vector(vector);
        Ok(())
    }

    fn disconnect(&self, vector: u16) -> io::Result<()> {
        self.vector(vector);
        self.state.lock().unwrap()[usize::from(vector)].0 = None;
        Ok(())
    }
}

/// A register of the common configuration: offset and width.
#[derive(Clone, Copy)]
pub(super) struct Register(pub(super) u64, pub(super) usize);

pub(super) const DEVICE_FEATURE_SELECT: Register = Register(0x00, 4);
pub(super) const DEVICE_FEATURE: Register = Register(0x04, 4);
pub(super) const DRIVER_FEATURE_SELECT: Register = Register(0x08, 4);
pub(super) const DRIVER_FEATURE: Register = Register(0x0c, 4);
pub(super) const CONFIG_VECTOR: Register = Register(0x10, 2);
pub(super) const QUEUE_COUNT: Register = Register(0x12, 2);
pub(super) const STATUS: Register = Register(0x14, 1);
pub(super) const GENERATION: Register = Register(0x15, 1);
pub(super) const QUEUE_SELECT: Register = Register(0x16, 2);
pub(super) const QUEUE_SIZE: Register = Register(0x18, 2);
pub(super) const QUEUE_VECTOR: Register = Register(0x1a, 2);
pub(super) const QUEUE_ENABLE: Register = Register(0x1c, 2);
pub(super) const QUEUE_NOTIFY_OFF: Register = Register(0x1e, 2);
pub(super) const QUEUE_DESC: Register = Register(0x20, 8);
pub(super) const QUEUE_DRIVER: Register = Register(0x28, 8);
pub(super) const QUEUE_DEVICE: Register = Register(0x30, 8);

/// A register group by its capability: offset in the BAR and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) offset: u64,
    pub(super) len: u64,
}

pub(in crate::virtio::transport) struct Machine {
    pub(super) memory: GuestRam,
    pub(super) mmio: Arc<Bus>,
    pub(super) root: Root,
    pub(super) log: Arc<Mutex<Log>>,
    pub(super) msi: Arc<Vectors>,
    pub(super) bindings: Arc<Bindings>,
}

impl Machine {
    /// The device is 00:01.0, with decoding on.
    pub(super) fn new() -> Self {
        let machine = Self::powered_on();
        machine.write_config(0x04, &0x0006_u16.to_le_bytes());
        machine
    }

    /// As [`Machine::new`], with decoding off.
    pub(super) fn powered_on() -> Self {
        let memory = memory();
        let mmio = Arc::new(Bus::new());
        let windows = Windows {
            low: LOW..LOW + 0x100_0000,
            high: HIGH..HIGH + 0x1000_0000,
        };
        let mut root = Root::new(Arc::clone(&mmio), windows);
        mmio.insert(ECAM, ECAM_LEN, root.ecam()).unwrap();
        let device = idle();
        let log = device.log();
        let msi = Vectors::new(VECTORS);
        let bindings = Arc::new(Bindings::default());
        let function = VirtioPci::new(
            Box::new(device),
            memory.clone(),
            Arc::clone(&msi) as Arc<dyn Msi>,
            Arc::clone(&bindings) as Arc<dyn Notify>,
        );
        assert_eq!(root.add(Arc::new(Mutex::new(function.unwrap()))), Ok(1));
        Self {
            memory,
            mmio,
            root,
            log,
            msi,
            bindings,
        }
    }

    pub(super) fn read_config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(ECAM + 0x8000 + offset, &mut data);
        data
    }

    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        self.mmio.write(ECAM + 0x8000 + offset, data);
    }

    /// Where BAR 0 is, by its registers.
    pub(super) fn bar(&self) -> u64 {
        let low = u32::from_le_bytes(self.read_config(0x10));
        let high = u32::from_le_bytes(self.read_config(0x14));
        assert_eq!(low & 0xf, 0x4, "a 64-bit memory BAR");
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    /// Capabilities in order: ID and offset.
    pub(super) fn capabilities(&self) -> Vec<(u8, u64)> {
        let mut found = Vec::new();
        let [mut at] = self.read_config::<1>(0x34);
        while at != 0 {
            let [id] = self.read_config::<1>(u64::from(at));
            found.push((id, u64::from(at)));
            [at] = self.read_config::<1>(u64::from(at) + 1);
        }
        found
    }

    /// The offset of the virtio capability of type `kind`.
    pub(super) fn capability(&self, kind: u8) -> u64 {
        let found = self.capabilities().into_iter().find(|(id, at)| {
            let [found] = self.read_config::<1>(at + 3);
            *id == 0x09 && found == kind
        });
        found.expect("the device has the capability").1
    }

    pub(super) fn msix_capability(&self) -> u64 {
        let found = self.capabilities().into_iter().find(|(id, _)| *id == 0x11);
        found.expect("the device has MSI-X").1
    }

    pub(super) fn group(&self, kind: u8) -> Group {
        let at = self.capability(kind);
        assert_eq!(self.read_config::<1>(at + 4), [0], "in BAR 0");
        Group {
            offset: u64::from(u32::from_le_bytes(self.read_config(at + 8))),
            len: u64::from(u32::from_le_bytes(self.read_config(at + 12))),
        }
    }

    pub(super) fn common(&self) -> u64 {
        self.bar() + self.group(1).offset
    }

    pub(super) fn read(&self, register: Register) -> u64 {
        let mut data = [0; 8];
        self.mmio
            .read(self.common() + register.0, &mut data[..register.1]);
        u64::from_le_bytes(data)
    }

    pub(super) fn write(&self, register: Register, value: u64) {
        self.mmio.write(
            self.common() + register.0,
            &value.to_le_bytes()[..register.1],
        );
    }

    pub(super) fn set_queue(&self, index: u16, ring: &Ring) {
        self.write(QUEUE_SELECT, u64::from(index));
        self.write(QUEUE_SIZE, u64::from(ring.size()));
        self.write(QUEUE_VECTOR, u64::from(index));
        for (register, address) in [
            (QUEUE_DESC, ring.table_address()),
            (QUEUE_DRIVER, ring.available_address()),
            (QUEUE_DEVICE, ring.used_address()),
        ] {
            self.write(Register(register.0, 4), address & 0xffff_ffff);
            self.write(Register(register.0 + 4, 4), address >> 32);
        }
        self.write(QUEUE_ENABLE, 1);
    }

    /// A device that runs with both queues, and the rings.
    pub(super) fn running() -> (Self, [Ring; 2]) {
        let machine = Self::new();
        let rings = [
            Ring::new(&machine.memory, 0x1000, 16),
            Ring::new(&machine.memory, 0x2000, 4),
        ];
        machine.negotiate();
        machine.write(CONFIG_VECTOR, 2);
        machine.set_queue(0, &rings[0]);
        machine.set_queue(1, &rings[1]);
        machine.driver_ok();
        assert_eq!(machine.log().starts, 1);
        (machine, rings)
    }

    /// Addresses that are bound to eventfds.
    pub(super) fn bound(&self) -> Vec<u64> {
        let address = |doorbell| match doorbell {
            Doorbell::Any(address) => address,
            Doorbell::Value { .. } => panic!("{doorbell:?}"),
        };
        let doorbells = self.bindings.doorbells().into_iter();
        doorbells.map(address).collect()
    }

    /// The address of the MSI-X table entry of `vector`.
    pub(super) fn msix_entry(&self, vector: u16) -> u64 {
        let table = u32::from_le_bytes(self.read_config(self.msix_capability() + 4));
        assert_eq!(table & 0x7, 0, "in BAR 0");
        self.bar() + u64::from(table) + 16 * u64::from(vector)
    }

    pub(super) fn pending(&self) -> u64 {
        let pending = u32::from_le_bytes(self.read_config(self.msix_capability() + 8));
        let mut data = [0; 8];
        self.mmio.read(self.bar() + u64::from(pending), &mut data);
        u64::from_le_bytes(data)
    }

    pub(super) fn set_msix_control(&self, control: u16) {
        self.write_config(self.msix_capability() + 2, &control.to_le_bytes());
    }

    pub(super) fn set_vector(&self, vector: u16, message: MsiMessage, masked: bool) {
        let entry = self.msix_entry(vector);
        self.mmio
            .write(entry, &(message.address as u32).to_le_bytes());
        self.mmio
            .write(entry + 4, &((message.address >> 32) as u32).to_le_bytes());
        self.mmio.write(entry + 8, &message.data.to_le_bytes());
        self.mmio
            .write(entry + 12, &u32::from(masked).to_le_bytes());
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
        self.read(register(field))
    }

    fn set(&self, field: Field, value: u64) {
        self.write(register(field), value);
    }

    fn max_size(&self) -> u64 {
        self.read(QUEUE_SIZE)
    }

    fn read_device_config(&self, offset: u64, data: &mut [u8]) {
        let at = self.bar() + self.group(4).offset;
        self.mmio.read(at + offset, data);
    }

    fn write_device_config(&self, offset: u64, data: &[u8]) {
        let at = self.bar() + self.group(4).offset;
        self.mmio.write(at + offset, data);
    }

    fn ring_doorbell(&self, queue: u16) {
        self.write(QUEUE_SELECT, queue.into());
        let multiplier = u32::from_le_bytes(self.read_config(self.capability(2) + 16));
        let offset = self.read(QUEUE_NOTIFY_OFF) * u64::from(multiplier);
        let notify = self.bar() + self.group(2).offset;
        self.mmio.write(notify + offset, &queue.to_le_bytes());
    }

    fn pause(&mut self) {
        self.root.pause();
    }

    fn resume(&mut self) {
        self.root.resume();
    }

    fn save(&self) -> Section {
        self.root.save()
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        self.root.restore(section)
    }
}

fn register(field: Field) -> Register {
    match field {
        Field::Status => STATUS,
        Field::Generation => GENERATION,
        Field::DeviceFeatureSelect => DEVICE_FEATURE_SELECT,
        Field::DeviceFeature => DEVICE_FEATURE,
        Field::DriverFeatureSelect => DRIVER_FEATURE_SELECT,
        Field::DriverFeature => DRIVER_FEATURE,
        Field::QueueSelect => QUEUE_SELECT,
        Field::QueueSize => QUEUE_SIZE,
        Field::QueueEnable => QUEUE_ENABLE,
        Field::Descriptors => QUEUE_DESC,
        Field::Available => QUEUE_DRIVER,
        Field::Used => QUEUE_DEVICE,
    }
}
