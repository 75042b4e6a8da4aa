//! The DSDT: PCI host bridge or virtio-mmio devices, event device, power button, serial port, clock, pvpanic, generation,
//! soft-off, and what can be plugged in.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall,
    Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
    ZERO,
};
use acpi_tables::sdt::Sdt;

use super::aml::{Raw, device, name, to_bytes};
use super::{
    AcpiConfig, AcpiPci, AcpiVirtioMmio, OEM_ID, OEM_REVISION, OEM_TABLE_ID, STATUS_WORKING,
    hotplug,
};
use crate::x86_64::layout::{
    ACPI_EVENT, AddressRange, CMOS_PORT, CMOS_PORT_COUNT, COM_PORT_COUNT, COM1_PORT,
    EVENT_CPU_HOTPLUG, EVENT_GENERATION, EVENT_MEMORY_HOTPLUG, EVENT_PCI_HOTPLUG,
    EVENT_POWER_BUTTON, GED_GSI, GENERATION, PCI_CONFIG_PORT, PCI_CONFIG_PORT_COUNT, PVPANIC_PORT,
    SLEEP_TYPE_S5,
};

/// From revision 2 on, AML integers have 64 bits.
const REVISION: u8 = 2;
const HEADER_LEN: u32 = 36;
/// Length in bytes of the event register.
const EVENT_REGISTER_LEN: u8 = 4;
const POWER_BUTTON: &str = "\\_SB_.PWRB";
/// Notification value of a pressed power button (ACPI 6.5, table 5.168).
const BUTTON_PRESSED: u8 = 0x80;
const GENERATION_DEVICE: &str = "\\_SB_.VGEN";
/// Notification value of another generation (Virtual Machine Generation ID, Microsoft, 2018).
const GENERATION_CHANGED: u8 = 0x80;

/// The DSDT, which names no address of another table.
pub(super) fn build(config: &AcpiConfig) -> Vec<u8> {
    let hotplug = &config.hotplug;
    let mut devices = vec![power_button()];
    let mut scans = Vec::new();
    if let Some(pci) = &config.pci {
        devices.push(pci_host_bridge(pci));
        devices.push(reserved_memory(pci.ecam_reserved));
        if hotplug.pci_slots {
            devices.push(hotplug::pci::slots());
            scans.push((EVENT_PCI_HOTPLUG, hotplug::pci::SCAN));
        }
    }
    let virtio_mmio = (0..).zip(&config.virtio_mmio);
    devices.extend(virtio_mmio.map(|(index, device)| virtio_mmio_device(index, device)));
    if hotplug.cpus {
        devices.push(hotplug::cpu::container(&config.cpus));
        scans.push((EVENT_CPU_HOTPLUG, hotplug::cpu::SCAN));
    }
    if hotplug.memory_slots > 0 {
        devices.push(hotplug::memory::container(hotplug.memory_slots));
        scans.push((EVENT_MEMORY_HOTPLUG, hotplug::memory::SCAN));
    }
    devices.push(event_device(&scans, config.generation));
    if config.generation {
        devices.push(generation());
    }
    if config.cmos {
        devices.push(clock());
    }
    if let Some(gsi) = config.com1_gsi {
        devices.push(serial_port(gsi));
    }
    if config.pvpanic {
        devices.push(pvpanic());
    }
    let mut aml = Scope::raw(Path::new("\\_SB_"), devices.concat());
    let sleep_type = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &ZERO, &ZERO]);
    Name::new(Path::new("\\_S5_"), &sleep_type).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

fn power_button() -> Vec<u8> {
    device(
        "PWRB",
        &[
            &name("_HID", &EISAName::new("PNP0C0C")),
            &name("_UID", &ZERO),
        ],
    )
}

/// The generic event device (ACPI 6.5, section 5.6.9): its interrupt says that the event register has a bit set, and
/// reading the register clears it. `scans` are the bits beside those of the power button and of the generation, and the methods to
/// call for them.
fn event_device(scans: &[(u8, &str)], has_generation: bool) -> Vec<u8> {
    let button = Path::new(POWER_BUTTON);
    let mut branches = event_branch(EVENT_POWER_BUTTON, &Notify::new(&button, &BUTTON_PRESSED));
    for (bit, method) in scans {
        let scan = MethodCall::new(Path::new(method), vec![]);
        branches.extend(event_branch(*bit, &scan));
    }
    if has_generation {
        let generation = Path::new(GENERATION_DEVICE);
        let notify = Notify::new(&generation, &GENERATION_CHANGED);
        branches.extend(event_branch(EVENT_GENERATION, &notify));
    }
    device(
        "GED_",
        &[
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&interrupt(GED_GSI)])),
            &OpRegion::new(
                Path::new("EVRG"),
                OpRegionSpace::SystemMemory,
                &ACPI_EVENT.start,
                &EVENT_REGISTER_LEN,
            ),
            &Field::new(
                Path::new("EVRG"),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(
                    *b"EVNT",
                    usize::from(EVENT_REGISTER_LEN) * 8,
                )],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&Store::new(&EVENTS, &Path::new("EVNT")), &Raw(branches)],
            ),
        ],
    )
}

/// The variable of `_EVT` that holds what was read from the event register.
const EVENTS: Local = Local(0);

/// `If (events & bit) { action }`.
fn event_branch(bit: u8, action: &dyn Aml) -> Vec<u8> {
    let bit = 1u32.wrapping_shl(bit.into());
    let is_set = And::new(&ZERO, &EVENTS, &bit);
    to_bytes(&If::new(&is_set, vec![action]))
}

fn pci_host_bridge(pci: &AcpiPci) -> Vec<u8> {
    let memory = AddressSpaceCacheable::NotCacheable;
    let config_ports = IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, PCI_CONFIG_PORT_COUNT);
    let resources = Raw(to_bytes(&ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, u16::from(pci.last_bus())),
        &config_ports,
        &AddressSpace::new_memory(
            memory,
            true,
            pci.mmio32.start as u32,
            pci.mmio32.last() as u32,
            None,
        ),
        &AddressSpace::new_memory(memory, true, pci.mmio64.start, pci.mmio64.last(), None),
    ])));
    device(
        "PCI0",
        &[
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &name("_SEG", &ZERO),
            &name("_BBN", &ZERO),
            &name("_CCA", &ONE),
            &name("_CBA", &pci.ecam.start),
            &name("_CRS", &resources),
        ],
    )
}

/// A motherboard resource that keeps the ECAM free, without which Linux does not use it.
fn reserved_memory(range: AddressRange) -> Vec<u8> {
    let memory = Memory32Fixed::new(true, range.start as u32, range.len as u32);
    device(
        "MBRD",
        &[
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&memory])),
        ],
    )
}

/// A virtio device, by the identifier that Linux has for one with MMIO registers.
fn virtio_mmio_device(index: u32, virtio: &AcpiVirtioMmio) -> Vec<u8> {
    let registers = virtio.registers;
    let registers = Memory32Fixed::new(true, registers.start as u32, registers.len as u32);
    device(
        &format!("VR{index:02X}"),
        &[
            &name("_HID", &"LNRO0005"),
            &name("_UID", &index),
            &name("_CCA", &ONE),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&registers, &interrupt(virtio.gsi)]),
            ),
        ],
    )
}

fn serial_port(gsi: u32) -> Vec<u8> {
    device(
        "COM1",
        &[
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &name("_DDN", &"COM1"),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![
                    &interrupt(gsi),
                    &IO::new(COM1_PORT, COM1_PORT, 1, COM_PORT_COUNT),
                ]),
            ),
        ],
    )
}

/// A clock without an interrupt: it has no alarm.
fn clock() -> Vec<u8> {
    let ports = IO::new(CMOS_PORT, CMOS_PORT, 1, CMOS_PORT_COUNT);
    device(
        "RTC_",
        &[
            &name("_HID", &EISAName::new("PNP0B00")),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&ports])),
        ],
    )
}

/// Where the generation of the machine is (Virtual Machine Generation ID, Microsoft, 2018).
fn generation() -> Vec<u8> {
    let low = GENERATION.start as u32;
    let high = (GENERATION.start >> 32) as u32;
    device(
        "VGEN",
        &[
            &name("_HID", &"QEMUVGID"),
            &name("_CID", &"VM_Gen_Counter"),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("_UID", &ZERO),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    )
}

fn pvpanic() -> Vec<u8> {
    device(
        "PEVT",
        &[
            &name("_HID", &"QEMU0001"),
            &name("_STA", &STATUS_WORKING),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]),
            ),
        ],
    )
}

/// An edge-triggered, active-high interrupt of one device, as irqfds make them.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
