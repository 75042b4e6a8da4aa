//! The two ways to configuration space: memory-mapped (ECAM, PCI Express 7.2.2) and ports 0xcf8 to 0xcff (configuration
//! mechanism 1, PCI Local Bus 3.0, 3.2.2.3.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::root::Slots;
use crate::bus::BusDevice;

/// Length of the ECAM range in bytes: one bus.
pub const ECAM_LEN: u64 = 1 << 20;

const ADDRESS_ENABLE: u32 = 1 << 31;

/// The part of configuration space that an access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) slot: u8,
    pub(super) offset: u16,
}

impl Target {
    /// Bits 19:15 device, 14:12 function, 11:0 register. Only function 0 exists, and accesses are those that a function
    /// answers: 1, 2 or 4 bytes within a dword.
    fn new(address: u64, len: usize) -> Option<Self> {
        let fits = matches!(len, 1 | 2 | 4) && address as usize % 4 + len <= 4;
        let function = address >> 12 & 0x7;
        (fits && function == 0 && address < ECAM_LEN).then_some(Self {
            slot: (address >> 15 & 0x1f) as u8,
            offset: (address & 0xfff) as u16,
        })
    }
}

pub(super) struct Ecam(pub(super) Arc<Slots>);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(target) = Target::new(offset, data.len()) {
            self.0.read_config(target, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(target) = Target::new(offset, data.len()) {
            self.0.write_config(target, data);
        }
    }
}

/// The address port, shared with the root, which saves it.
pub(super) type AddressPort = Arc<AtomicU32>;

pub(super) struct ConfigPorts {
    pub(super) slots: Arc<Slots>,
    pub(super) address: AddressPort,
}

impl ConfigPorts {
    /// What the data port at `offset` (4 to 7) leads to.
    fn target(&self, offset: u64, len: usize) -> Option<Target> {
        let address = self.address.load(Ordering::Relaxed);
        let bus = address >> 16 & 0xff;
        if address & ADDRESS_ENABLE == 0 || bus != 0 {
            return None;
        }
        let device_and_function = u64::from(address >> 8 & 0xff) << 12;
        let register = u64::from(address & 0xfc) + (offset - 4);
        Target::new(device_and_function | register, len)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        } else if offset >= 4
            && let Some(target) = self.target(offset, data.len())
        {
            self.slots.read_config(target, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0
            && let Ok(address) = <[u8; 4]>::try_from(data)
        {
            self.address
                .store(u32::from_le_bytes(address), Ordering::Relaxed);
        } else if offset >= 4
            && let Some(target) = self.target(offset, data.len())
        {
            self.slots.write_config(target, data);
        }
    }
}
