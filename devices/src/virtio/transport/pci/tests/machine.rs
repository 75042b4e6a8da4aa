//! A machine with one virtio device on PCI, seen from the guest.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::VirtioPci;
use crate::bus::Bus;
use crate::memory::GuestRam;
use crate::pci::{ECAM_LEN, Msi, MsiMessage, Root, Windows};
use crate::state::{Persist, Section, StateError};
use crate::virtio::driver::{self, Ring};
use crate::virtio::{Activation, ActiveQueue, Interrupt, Notify, StartError, VirtioDevice};

pub(super) const ECAM: u64 = 0xe000_0000;
pub(super) const LOW: u64 = 0xc000_0000;
pub(super) const HIGH: u64 = 0x10_0000_0000;
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << 5;
pub(super) const VECTORS: u16 = 3;
/// A device ID that is neither block nor net.
const DEVICE_ID: u16 = 42;

/// What became of the device, for the test to look at.
#[derive(Default)]
pub(super) struct Log {
    pub(super) starts: u32,
    pub(super) stops: u32,
    pub(super) resets: u32,
    pub(super) features: u64,
    pub(super) fail_start: bool,
    pub(super) queues: Vec<ActiveQueue>,
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
}

/// A device that keeps its queues, and does nothing with them.
pub(super) struct Idle {
    log: Arc<Mutex<Log>>,
    config: [u8; 8],
}

pub(super) fn idle() -> Idle {
    Idle {
        log: Arc::default(),
        config: [1, 2, 3, 4, 5, 6, 7, 8],
    }
}

impl VirtioDevice for Idle {
    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn name(&self) -> &str {
        "idle"
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (value, target) in self.config.iter().skip(offset as usize).zip(data) {
            *target = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (value, new) in self.config.iter_mut().skip(offset as usize).zip(data) {
            *value = *new;
        }
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let mut log = self.log.lock().unwrap();
        if log.fail_start {
            return Err(StartError::QueueMissing(1));
        }
        assert!(log.interrupt.is_none(), "started twice");
        log.starts += 1;
        log.features = activation.features;
        log.queues = activation.queues;
        log.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let mut log = self.log.lock().unwrap();
        if log.interrupt.take().is_none() {
            return Vec::new();
        }
        log.stops += 1;
        std::mem::take(&mut log.queues)
    }

    fn reset(&mut self) {
        let mut log = self.log.lock().unwrap();
        assert!(log.interrupt.is_none(), "reset while running");
        log.resets += 1;
    }
}

#[derive(Serialize, Deserialize)]
struct IdleState {
    config: [u8; 8],
}

impl Persist for Idle {
    fn save(&self) -> Section {
        let Self { log: _, config } = self;
        Section::new("idle", 1, &IdleState { config: *config })
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let IdleState { config } = section.decode("idle", 1)?;
        self.config = config;
        Ok(())
    }
}

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

/// Notification addresses, and the descriptors they signal.
#[derive(Default)]
pub(super) struct Bindings(Mutex<BTreeMap<u64, i32>>);

impl Bindings {
    pub(super) fn addresses(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }
}

impl Notify for Bindings {
    fn bind(&self, address: u64, eventfd: &EventFd) -> io::Result<()> {
        assert_eq!(
            self.0.lock().unwrap().insert(address, eventfd.as_raw_fd()),
            None
        );
        Ok(())
    }

    fn unbind(&self, address: u64, eventfd: &EventFd) -> io::Result<()> {
        assert_eq!(
            self.0.lock().unwrap().remove(&address),
            Some(eventfd.as_raw_fd())
        );
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

pub(super) const ACKNOWLEDGE: u64 = 1;
pub(super) const DRIVER: u64 = 2;
pub(super) const DRIVER_OK: u64 = 4;
pub(super) const FEATURES_OK: u64 = 8;
pub(super) const NEEDS_RESET: u64 = 64;

/// A register group by its capability: offset in the BAR and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) offset: u64,
    pub(super) len: u64,
}

pub(super) struct Machine {
    pub(super) memory: GuestRam,
    pub(super) mmio: Arc<Bus>,
    pub(super) root: Root,
    pub(super) log: Arc<Mutex<Log>>,
    pub(super) msi: Arc<Vectors>,
    pub(super) bindings: Arc<Bindings>,
}

impl Machine {
    /// Memory from 0 to 1 MiB but for a hole at 0x80000 of 0x10000 bytes; the device is 00:01.0, with decoding on.
    pub(super) fn new() -> Self {
        let machine = Self::powered_on();
        machine.write_config(0x04, &0x0006_u16.to_le_bytes());
        machine
    }

    /// As [`Machine::new`], with decoding off.
    pub(super) fn powered_on() -> Self {
        let memory = driver::memory(&[(0, 0x80000), (0x90000, 0x70000)]);
        let mmio = Arc::new(Bus::new());
        let windows = Windows {
            low: LOW..LOW + 0x100_0000,
            high: HIGH..HIGH + 0x1000_0000,
        };
        let mut root = Root::new(Arc::clone(&mmio), windows);
        mmio.insert(ECAM, ECAM_LEN, root.ecam()).unwrap();
        let device = idle();
        let log = Arc::clone(&device.log);
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

    pub(super) fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// How often the device was started and stopped.
    pub(super) fn runs(&self) -> (u32, u32) {
        let log = self.log();
        (log.starts, log.stops)
    }

    pub(super) fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.log().interrupt.clone().expect("the device runs")
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

    pub(super) fn accept_features(&self, features: u64) {
        for page in 0..2 {
            self.write(DRIVER_FEATURE_SELECT, page);
            self.write(DRIVER_FEATURE, features >> (32 * page) & 0xffff_ffff);
        }
    }

    /// Everything up to the queues, with all features.
    pub(super) fn negotiate(&self) {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.accept_features(FEATURES);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.read(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
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

    pub(super) fn driver_ok(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
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

    /// Whether queue `index`, as the device has it, was notified since it was last asked.
    pub(super) fn take_notification(&self, index: usize) -> bool {
        self.log().queues[index].notify.read().is_ok()
    }
}
