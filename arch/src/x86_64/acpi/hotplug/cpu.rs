//! Processors.

use acpi_tables::Aml;
use acpi_tables::aml::{BufferData, Return, ZERO};

use super::register_window;
use super::registers::CPU_LEN;
use super::units::Units;
use crate::x86_64::acpi::aml::{Raw, device, method, name};
use crate::x86_64::acpi::{AcpiCpu, madt};
use crate::x86_64::layout::ACPI_CPU_HOTPLUG;

/// The method for [`EVENT_CPU_HOTPLUG`](crate::x86_64::layout::EVENT_CPU_HOTPLUG).
pub(in crate::x86_64::acpi) const SCAN: &str = "\\_SB_.CPUS.CSCN";

/// A container with a device for each of `cpus`, in the order of their UIDs, whether it is there or not.
pub(in crate::x86_64::acpi) fn container(cpus: &[AcpiCpu]) -> Vec<u8> {
    let units = Units {
        letter: 'C',
        count: cpus.len() as u32,
    };
    let registers = register_window("CREG", ACPI_CPU_HOTPLUG, CPU_LEN, &units.bits());
    let mut processors = Vec::new();
    for (uid, cpu) in (0u32..).zip(cpus) {
        processors.extend(processor(&units, uid, cpu.apic_id));
    }
    device(
        "CPUS",
        &[
            &name("_HID", &"ACPI0010"),
            &name("_UID", &ZERO),
            &Raw(registers),
            &Raw(units.methods()),
            &Raw(processors),
        ],
    )
}

fn processor(units: &Units, uid: u32, apic_id: u32) -> Vec<u8> {
    // Read only once the processor is there, and of no use to the reader unless it says that it is enabled.
    let entry = BufferData::new(madt::processor(uid, apic_id, madt::ENABLED));
    let hid = name("_HID", &"ACPI0007");
    let uid_name = name("_UID", &uid);
    let status = method("_STA", 0, &[&Return::new(&units.call("STA", uid))]);
    let mat = name("_MAT", &entry);
    let eject = method("_EJ0", 1, &[&units.call("EJ0", uid)]);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid_name, &status, &mat];
    // The processor that the machine starts on stays.
    if uid != 0 {
        children.push(&eject);
    }
    device(&units.device(uid), &children)
}
