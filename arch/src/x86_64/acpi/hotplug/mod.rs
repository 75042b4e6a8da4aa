//! What can come and go while the guest runs: PCI functions, vCPUs and memory.
//!
//! For each of the three there is a page of 32-bit registers, and a method that the generic event device calls. The
//! method reads from the registers what came and what shall go, and tells the operating system by a notification: 1, device
//! check, or 3, eject request (ACPI 6.5, table 5.166). `_STA` and `_EJ0` go to the same registers.

pub(super) mod cpu;
pub(super) mod memory;
pub(super) mod pci;
mod units;

use acpi_tables::aml::{
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, OpRegion, OpRegionSpace,
    Path,
};

use super::aml::to_bytes;
use crate::x86_64::layout::AddressRange;

/// Where the registers are in their pages, in bytes.
pub mod registers {
    /// PCI: slots with a new function, one bit each; a bit that is written as one is taken away.
    pub const PCI_INSERTED: u64 = 0x0;
    /// PCI: slots whose function shall go, one bit each; a bit that is written as one is taken away.
    pub const PCI_REMOVING: u64 = 0x4;
    /// PCI: write-only; the functions in the slots whose bits are ones are given up.
    pub const PCI_EJECT: u64 = 0x8;
    /// PCI: read-only; slots that have a function, one bit each.
    pub const PCI_PRESENT: u64 = 0xc;
    /// Bytes of PCI registers.
    pub const PCI_LEN: u64 = 0x10;

    /// vCPUs and memory: number of the one that the other registers are about.
    pub const SELECT: u64 = 0x0;
    /// vCPUs and memory: status bits to read, commands to write.
    pub const STATUS: u64 = 0x4;
    /// vCPUs and memory: read-only; number of the first one with news, all ones if there is none.
    pub const NEXT: u64 = 0x8;
    /// Status bit: it is there.
    pub const STATUS_ENABLED: u8 = 0;
    /// Status bit: it is new; written as one, the bit is taken away.
    pub const STATUS_INSERTING: u8 = 1;
    /// Status bit: it shall go; written as one, the bit is taken away.
    pub const STATUS_REMOVING: u8 = 2;
    /// Command bit: it is given up.
    pub const STATUS_EJECT: u8 = 3;
    /// Bytes of vCPU registers.
    pub const CPU_LEN: u64 = 0xc;

    /// Memory: read-only; the first address of the selected memory, 64 bits.
    pub const MEMORY_BASE: u64 = 0x10;
    /// Memory: read-only; its length in bytes, 64 bits.
    pub const MEMORY_LENGTH: u64 = 0x18;
    /// Bytes of memory registers.
    pub const MEMORY_LEN: u64 = 0x20;
}

/// Notification value: look whether the device is there.
const DEVICE_CHECK: u8 = 1;
/// Notification value: give the device up.
const EJECT_REQUEST: u8 = 3;

/// Named bits of registers.
struct Bits {
    name: String,
    /// First bit, counted from the start of the page.
    at: u64,
    count: u64,
}

impl Bits {
    /// `count` bits from bit `first` of the register at `offset` on.
    fn new(name: impl Into<String>, offset: u64, first: u8, count: u64) -> Self {
        Self {
            name: name.into(),
            at: 8 * offset + u64::from(first),
            count,
        }
    }
}

/// An operation region over the first `len` bytes of `page`, with `bits` in ascending order.
///
/// Every access is one of 32 bits, and a write leaves the bits that it does not name zero, which is no command.
fn register_window(region: &str, page: AddressRange, len: u64, bits: &[Bits]) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut end = 0;
    for bits in bits {
        if bits.at > end {
            fields.push(FieldEntry::Reserved((bits.at - end) as usize));
        }
        let mut name = [b'_'; 4];
        name.copy_from_slice(bits.name.as_bytes());
        fields.push(FieldEntry::Named(name, bits.count as usize));
        end = bits.at + bits.count;
    }
    let mut aml = to_bytes(&OpRegion::new(
        Path::new(region),
        OpRegionSpace::SystemMemory,
        &page.start,
        &len,
    ));
    aml.extend(to_bytes(&Field::new(
        Path::new(region),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        fields,
    )));
    aml
}
