//! Finding out a function's BARs as firmware does: by writing ones and reading back (PCI Local Bus 3.0, 6.2.5.1).

use super::PciFunction;
use super::config_space::{BAR0, COMMAND_MEMORY};

const COMMAND: u16 = 0x04;

/// A BAR as its registers describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbedBar {
    pub(super) index: u8,
    pub(super) len: u64,
    pub(super) is_64: bool,
    pub(super) prefetchable: bool,
}

/// Sizes the memory BARs of `function`, which decodes nothing, and leaves them as they were.
pub(super) fn bars(function: &mut dyn PciFunction) -> Vec<ProbedBar> {
    let mut found = Vec::new();
    let mut index = 0;
    while index < 6 {
        let old = read(function, register(index));
        let is_64 = old & 0x6 == 0x4 && index < 5;
        let mut mask = u64::from(size_register(function, index, old) & !0xf);
        if is_64 {
            let high = read(function, register(index + 1));
            mask |= u64::from(size_register(function, index + 1, high)) << 32;
        } else if mask != 0 {
            mask |= 0xffff_ffff_0000_0000;
        }
        if mask != 0 {
            found.push(ProbedBar {
                index,
                len: (!mask).wrapping_add(1),
                is_64,
                prefetchable: old & 0x8 != 0,
            });
        }
        index += if is_64 { 2 } else { 1 };
    }
    found
}

/// Puts `bar` at `address`. It is decoded once the guest turns memory decoding on.
pub(super) fn place(function: &mut dyn PciFunction, bar: &ProbedBar, address: u64) {
    write(function, register(bar.index), address as u32);
    if bar.is_64 {
        write(function, register(bar.index + 1), (address >> 32) as u32);
    }
}

/// Where `bar` is decoded now.
pub(super) fn decoded(function: &dyn PciFunction, bar: &ProbedBar) -> Option<u64> {
    if read(function, COMMAND) as u16 & COMMAND_MEMORY == 0 {
        return None;
    }
    let low = u64::from(read(function, register(bar.index)) & !0xf);
    let high = if bar.is_64 {
        u64::from(read(function, register(bar.index + 1)))
    } else {
        0
    };
    Some(high << 32 | low)
}

fn size_register(function: &mut dyn PciFunction, index: u8, old: u32) -> u32 {
    write(function, register(index), u32::MAX);
    let mask = read(function, register(index));
    write(function, register(index), old);
    mask
}

fn register(index: u8) -> u16 {
    BAR0 as u16 + 4 * u16::from(index)
}

fn read(function: &dyn PciFunction, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.read_config(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(function: &mut dyn PciFunction, offset: u16, value: u32) {
    // Decoding is off: no write moves a BAR.
    let _ = function.write_config(offset, &value.to_le_bytes());
}
