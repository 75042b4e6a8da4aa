//! Configuration space of a function with a type 0 header (PCI Local Bus 3.0, chapter 6).

use serde::{Deserialize, Serialize};

use super::BarChange;
use crate::state::StateError;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_ID: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
pub(super) const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const HEADER_LEN: usize = 0x40;

/// I/O decode, memory decode, bus master, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0407;
pub(super) const COMMAND_MEMORY: u16 = 0x0002;
const STATUS_CAPABILITIES: u16 = 0x0010;

/// Length of conventional configuration space. Of the rest up to 4096 bytes nothing is used: it reads as zeros, which is
/// an empty list of extended capabilities.
const LEN: usize = 256;

/// What the header says of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as in `0x020000`.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// The kind of a memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64,
    /// Anywhere, and reads have no side effects.
    Memory64Prefetchable,
}

impl BarKind {
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Memory32 => 0x0,
            Self::Memory64 => 0x4,
            Self::Memory64Prefetchable => 0xc,
        }
    }

    pub(super) fn is_64(self) -> bool {
        self != Self::Memory32
    }
}

/// A capability to be added to the list.
#[derive(Clone, Copy, Debug)]
pub struct Capability<'a> {
    /// Capability ID.
    pub id: u8,
    /// What follows the ID and the next pointer.
    pub body: &'a [u8],
    /// Which bits of `body` the guest can write: a mask for each byte, missing ones being 0.
    pub writable: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    index: u8,
    kind: BarKind,
}

/// The registers of a function: their bytes, and which bits the guest can write.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bars: Vec<Bar>,
    last_capability: Option<usize>,
    end: usize,
}

/// The saved bytes of a [`ConfigSpace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    pub(crate) bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A header without BARs, capabilities or an interrupt pin.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: Vec::new(),
            last_capability: None,
            end: HEADER_LEN,
        };
        space.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(DEVICE_ID, &identity.device.to_le_bytes());
        space.set(REVISION_ID, &[identity.revision]);
        space.set(CLASS, &identity.class.to_le_bytes()[..3]);
        space.set(
            SUBSYSTEM_VENDOR_ID,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        space.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.set_writable(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.set_writable(CACHE_LINE_SIZE, &[0xff]);
        space.set_writable(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives BAR `index` `len` bytes.
    ///
    /// # Panics
    ///
    /// `len` is not a power of two of at least 16, or the registers do not exist or are taken.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, len: u64) {
        let registers = if kind.is_64() { 2 } else { 1 };
        assert!(len.is_power_of_two() && len >= 16 && (kind.is_64() || len <= 1 << 31));
        assert!(index + registers <= 6);
        assert!(
            self.bars
                .iter()
                .all(|bar| bar.index + 1 + u8::from(bar.kind.is_64()) <= index)
        );
        let at = BAR0 + 4 * usize::from(index);
        let mask = (!(len - 1)).to_le_bytes();
        self.set(at, &kind.flags().to_le_bytes());
        self.set_writable(at, &mask[..4 * usize::from(registers)]);
        self.bars.push(Bar { index, kind });
    }

    /// Appends `capability` to the list, and returns the offset of its ID.
    ///
    /// # Panics
    ///
    /// The list does not fit in 256 bytes.
    pub fn add_capability(&mut self, capability: Capability<'_>) -> u16 {
        let at = self.end;
        let len = (2 + capability.body.len()).next_multiple_of(4);
        assert!(at + len <= LEN && capability.writable.len() <= capability.body.len());
        self.set(at, &[capability.id, 0]);
        self.set(at + 2, capability.body);
        self.set_writable(at + 2, capability.writable);
        let pointer = self
            .last_capability
            .map_or(CAPABILITIES_POINTER, |last| last + 1);
        self.set(pointer, &[at as u8]);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_capability = Some(at);
        self.end = at + len;
        at as u16
    }

    /// Gives the function a register of its own at `offset`, 0 after a reset: which of its bits the guest can write.
    ///
    /// # Panics
    ///
    /// It is not after the header and in 256 bytes.
    pub fn add_register(&mut self, offset: u16, writable: &[u8]) {
        let at = usize::from(offset);
        assert!(at >= HEADER_LEN && at + writable.len() <= LEN);
        self.set_writable(at, writable);
    }

    /// Reads at `offset`; bytes after the 256th are zeros.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        let start = usize::from(offset).min(LEN);
        let source = &self.bytes[start..LEN.min(start + data.len())];
        data[..source.len()].copy_from_slice(source);
    }

    /// Writes the writable bits at `offset`, and returns the BARs that this moves.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let before = self.bytes;
        for (at, new) in (usize::from(offset)..LEN).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
        if before[..HEADER_LEN] == self.bytes[..HEADER_LEN] {
            return Vec::new();
        }
        self.bars
            .iter()
            .filter_map(|bar| {
                let to = decoded(&self.bytes, bar);
                (to != decoded(&before, bar)).then_some(BarChange { bar: bar.index, to })
            })
            .collect()
    }

    /// Reads two bytes, for the function itself.
    pub fn word(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Reads four bytes, for the function itself.
    pub fn dword(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The registers as of now.
    pub fn save(&self) -> ConfigSpaceState {
        let Self {
            bytes,
            writable: _,
            bars: _,
            last_capability: _,
            end: _,
        } = self;
        ConfigSpaceState {
            bytes: bytes.to_vec(),
        }
    }

    /// Takes over the bits that a guest can write; the others must be equal.
    ///
    /// # Errors
    ///
    /// The registers are those of another function. Nothing changed then.
    pub fn restore(
        &mut self,
        kind: &'static str,
        state: &ConfigSpaceState,
    ) -> Result<(), StateError> {
        let ConfigSpaceState { bytes } = state;
        let fixed_bits_equal = bytes.len() == LEN
            && (0..LEN).all(|at| (bytes[at] ^ self.bytes[at]) & !self.writable[at] == 0);
        if !fixed_bits_equal {
            return Err(StateError::Field {
                kind,
                field: "config_space",
                value: format!("{bytes:02x?}"),
                expected:
                    "the registers of a function with the same identity, BARs and capabilities"
                        .to_owned(),
            });
        }
        self.bytes.copy_from_slice(bytes);
        Ok(())
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn set_writable(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

/// Where `bar` is decoded by the registers `bytes`.
fn decoded(bytes: &[u8; LEN], bar: &Bar) -> Option<u64> {
    let dword =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if dword(COMMAND) as u16 & COMMAND_MEMORY == 0 {
        return None;
    }
    let at = BAR0 + 4 * usize::from(bar.index);
    let low = u64::from(dword(at) & !0xf);
    let high = if bar.kind.is_64() {
        u64::from(dword(at + 4))
    } else {
        0
    };
    Some(high << 32 | low)
}
