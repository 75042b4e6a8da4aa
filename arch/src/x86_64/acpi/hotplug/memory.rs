//! Memory.

use acpi_tables::aml::{
    Add, AddressSpace, AddressSpaceCacheable, Arg, CreateQWordField, EISAName, ONE, Path,
    ResourceTemplate, Return, Store, Subtract,
};

use super::registers::{MEMORY_BASE, MEMORY_LEN, MEMORY_LENGTH};
use super::units::Units;
use super::{Bits, register_window};
use crate::x86_64::acpi::aml::{Raw, device, method, name, serialized, to_bytes};
use crate::x86_64::layout::ACPI_MEMORY_HOTPLUG;

/// The method for [`EVENT_MEMORY_HOTPLUG`](crate::x86_64::layout::EVENT_MEMORY_HOTPLUG).
pub(in crate::x86_64::acpi) const SCAN: &str = "\\_SB_.MHPC.MSCN";

/// Offsets in a QWord address space descriptor (ACPI 6.5, table 6.50).
const DESCRIPTOR_MIN: u8 = 14;
const DESCRIPTOR_MAX: u8 = 22;
const DESCRIPTOR_LENGTH: u8 = 38;

/// A container with a device for each of `slots` slots, whether memory is in it or not.
pub(in crate::x86_64::acpi) fn container(slots: u8) -> Vec<u8> {
    let units = Units {
        letter: 'M',
        count: slots.into(),
    };
    let mut bits = units.bits();
    bits.push(Bits::new("MBAS", MEMORY_BASE, 0, 64));
    bits.push(Bits::new("MLEN", MEMORY_LENGTH, 0, 64));
    let registers = register_window("MREG", ACPI_MEMORY_HOTPLUG, MEMORY_LEN, &bits);
    let devices = (0..units.count).flat_map(|slot| memory(&units, slot));
    device(
        "MHPC",
        &[
            &name("_HID", &EISAName::new("PNP0A06")),
            &name("_UID", &"hotplug memory"),
            &Raw(registers),
            &Raw(units.methods()),
            &resources(&units),
            &Raw(devices.collect()),
        ],
    )
}

fn memory(units: &Units, slot: u32) -> Vec<u8> {
    device(
        &units.device(slot),
        &[
            &name("_HID", &EISAName::new("PNP0C80")),
            &name("_UID", &slot),
            &method("_STA", 0, &[&Return::new(&units.call("STA", slot))]),
            &method("_CRS", 0, &[&Return::new(&units.call("CRS", slot))]),
            &method("_EJ0", 1, &[&units.call("EJ0", slot)]),
        ],
    )
}

/// `MCRS(slot)`: the resources of a slot's memory, which is one range of 64-bit addresses.
fn resources(units: &Units) -> Raw {
    let cacheable = AddressSpaceCacheable::Cacheable;
    let template = Raw(to_bytes(&ResourceTemplate::new(vec![
        &AddressSpace::new_memory(cacheable, true, 0u64, 0u64, None),
    ])));
    let (buffer, base, len) = (Path::new("MRES"), Path::new("MBAS"), Path::new("MLEN"));
    let (min, max, length) = (Path::new("RMIN"), Path::new("RMAX"), Path::new("RLEN"));
    let body = units.locked(&[
        &units.select(&Arg(0)),
        &Store::new(&min, &base),
        &Store::new(&length, &len),
    ]);
    serialized(
        "MCRS",
        1,
        &[
            &name("MRES", &template),
            &CreateQWordField::new(&min, &buffer, &DESCRIPTOR_MIN),
            &CreateQWordField::new(&max, &buffer, &DESCRIPTOR_MAX),
            &CreateQWordField::new(&length, &buffer, &DESCRIPTOR_LENGTH),
            &body,
            &Add::new(&max, &min, &length),
            &Subtract::new(&max, &max, &ONE),
            &Return::new(&buffer),
        ],
    )
}
