use super::*;
use crate::x86_64::layout::{ACPI_CPU_HOTPLUG, ACPI_MEMORY_HOTPLUG, ACPI_PCI_HOTPLUG};

fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    walk(&AcpiTables::build(config).unwrap()).remove(1)
}

fn only(hotplug: AcpiHotplug) -> AcpiConfig {
    AcpiConfig {
        hotplug,
        ..config(4)
    }
}

/// What a package length at the start of `aml` spans, its own bytes among them, and how many those are (ACPI 6.5,
/// section 20.2.4).
fn package(aml: &[u8]) -> (usize, usize) {
    let more = usize::from(aml[0] >> 6);
    if more == 0 {
        return (aml[0].into(), 1);
    }
    let len = aml[1..=more]
        .iter()
        .rev()
        .fold(0, |len, byte| len << 8 | usize::from(*byte));
    (len << 4 | usize::from(aml[0] & 0xf), 1 + more)
}

/// What the object `name` consists of, whose definition begins with `opcode` and a package length.
fn body<'a>(aml: &'a [u8], opcode: &[u8], name: &str) -> Option<&'a [u8]> {
    let starts = (0..aml.len()).filter(|at| aml[*at..].starts_with(opcode));
    starts.map(|at| &aml[at + opcode.len()..]).find_map(|rest| {
        let (len, own) = package(rest.get(..4)?);
        rest.get(own..len)?.strip_prefix(name.as_bytes())
    })
}

fn device<'a>(aml: &'a [u8], name: &str) -> &'a [u8] {
    body(aml, &[0x5b, 0x82], name).unwrap_or_else(|| panic!("no device {name}"))
}

/// What the method `name` does.
fn method<'a>(aml: &'a [u8], name: &str) -> &'a [u8] {
    let body = body(aml, &[0x14], name).unwrap_or_else(|| panic!("no method {name}"));
    &body[1..]
}

fn named(name: &str, value: &dyn Aml) -> Vec<u8> {
    to_bytes(&acpi_tables::aml::Name::new(name.into(), value))
}

fn region(name: &[u8; 4], page: AddressRange, len: u8) -> Vec<u8> {
    let mut aml = vec![0x5b, 0x80];
    aml.extend_from_slice(name);
    aml.extend_from_slice(&[0, 0x0c]);
    aml.extend_from_slice(&(page.start as u32).to_le_bytes());
    aml.extend_from_slice(&[0x0a, len]);
    aml
}

#[test]
fn machine_without_hotplug_has_nothing_of_it() {
    let dsdt = dsdt(&only(AcpiHotplug::default()));
    for name in ["PSCN", "SL01", "CPUS", "CSCN", "MHPC", "MSCN"] {
        assert!(!contains(&dsdt, name.as_bytes()), "{name}");
    }
}

#[test]
fn event_calls_the_scans_of_what_there_is() {
    let scans = [
        (&b"\x5c\x2f\x03_SB_PCI0PSCN"[..], 1 << 1),
        (b"\x5c\x2f\x03_SB_CPUSCSCN", 1 << 2),
        (b"\x5c\x2f\x03_SB_MHPCMSCN", 1 << 3),
    ];
    let none = AcpiHotplug::default();
    let hotplugs = [
        AcpiHotplug {
            pci_slots: true,
            ..none
        },
        AcpiHotplug { cpus: true, ..none },
        AcpiHotplug {
            memory_slots: 1,
            ..none
        },
    ];
    for (at, hotplug) in hotplugs.into_iter().enumerate() {
        let dsdt = dsdt(&only(hotplug));
        let event = method(device(&dsdt, "GED_"), "_EVT");
        for (other, (call, bit)) in scans.iter().enumerate() {
            // If (And (Local0, bit)) { call }
            let branch = [&[0x7b, 0x60, 0x0a, *bit, 0x00], *call].concat();
            assert_eq!(contains(event, &branch), other == at);
        }
    }
}

#[test]
fn slots_need_a_host_bridge() {
    let no_bridge = AcpiConfig {
        pci: None,
        ..config(1)
    };
    assert!(!contains(&dsdt(&no_bridge), b"PSCN"));
}

#[test]
fn each_slot_but_the_host_bridge_has_an_ejectable_device_with_its_number() {
    let dsdt = dsdt(&config(1));
    assert!(contains(&dsdt, &region(b"PREG", ACPI_PCI_HOTPLUG, 0x10)));
    assert!(!contains(&dsdt, b"SL00") && !contains(&dsdt, b"SL32"));
    for slot in 1u32..=31 {
        let device = device(&dsdt, &format!("SL{slot:02}"));
        let bit = to_bytes(&(1u32 << slot));
        assert!(contains(device, &named("_SUN", &slot)));
        assert!(contains(device, &named("_ADR", &(slot << 16))));
        let status = [b"\xa4PSTA", &*bit].concat();
        assert_eq!(method(device, "_STA"), status);
        assert_eq!(method(device, "_EJ0"), [b"PEJ0", &*bit].concat());
        // If (And (Arg0, bit)) { Notify (SLxx, Arg1) }
        let name = format!("SL{slot:02}");
        let notify = [
            &[0x7b, 0x68],
            &*bit,
            &[0x00, 0x86],
            name.as_bytes(),
            &[0x69],
        ]
        .concat();
        assert!(contains(method(&dsdt, "PNTF"), &notify));
    }
}

#[test]
fn each_processor_is_described_as_the_madt_would_if_it_ran() {
    let cpus = [0, 1, 254, 255, 300]
        .map(|apic_id| AcpiCpu {
            apic_id,
            enabled: apic_id == 0,
        })
        .to_vec();
    let dsdt = dsdt(&AcpiConfig { cpus, ..config(0) });
    let container = device(&dsdt, "CPUS");
    assert!(contains(container, &region(b"CREG", ACPI_CPU_HOTPLUG, 0xc)));
    let entries: [&[u8]; 5] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 254, 1, 0, 0, 0],
        &[9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0],
        &[9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0],
    ];
    for (uid, entry) in (0u8..).zip(entries) {
        let processor = device(container, &format!("C00{uid}"));
        assert!(contains(processor, &named("_HID", &"ACPI0007")));
        assert!(contains(processor, &named("_UID", &uid)));
        let mat = acpi_tables::aml::BufferData::new(entry.to_vec());
        assert!(contains(processor, &named("_MAT", &mat)));
        let status = [b"\xa4CSTA", &*to_bytes(&uid)].concat();
        assert_eq!(method(processor, "_STA"), status);
        assert_eq!(contains(processor, b"_EJ0"), uid != 0);
    }
    assert!(!contains(container, b"C005"));
}

#[test]
fn each_memory_slot_has_an_ejectable_device_with_resources() {
    let dsdt = dsdt(&config(1));
    let container = device(&dsdt, "MHPC");
    assert!(contains(
        container,
        &region(b"MREG", ACPI_MEMORY_HOTPLUG, 0x20)
    ));
    let memory = acpi_tables::aml::EISAName::new("PNP0C80");
    for slot in 0u8..8 {
        let device = device(container, &format!("M00{slot}"));
        let index = to_bytes(&slot);
        assert!(contains(device, &named("_HID", &memory)));
        assert!(contains(device, &named("_UID", &slot)));
        assert_eq!(method(device, "_STA"), [b"\xa4MSTA", &*index].concat());
        assert_eq!(method(device, "_CRS"), [b"\xa4MCRS", &*index].concat());
        assert_eq!(method(device, "_EJ0"), [b"MEJ0", &*index].concat());
    }
    assert!(!contains(container, b"M008"));
}

#[test]
fn every_method_that_selects_holds_the_lock() {
    let dsdt = dsdt(&config(2));
    for letter in ['C', 'M'] {
        for rest in ["STA", "EJ0", "SCN", "CRS"] {
            let name = format!("{letter}{rest}");
            if name == "CCRS" {
                continue;
            }
            let body = method(&dsdt, &name);
            let position = |what: &str| {
                let what = format!("{letter}{what}");
                let what = what.as_bytes();
                let mut places = (0..body.len()).filter(|at| body[*at..].starts_with(what));
                (places.next(), places.next_back())
            };
            let ((acquire, release), (select, last)) = (position("LCK"), position("SEL"));
            assert_eq!(body[acquire.unwrap() - 1], 0x23, "{name} acquires");
            assert_eq!(body[release.unwrap() - 1], 0x27, "{name} releases");
            assert!(acquire < select && last.or(select) < release, "{name}");
        }
    }
}

#[test]
fn more_processors_than_names_are_refused() {
    let error = AcpiTables::build(&config(4097));
    assert!(matches!(error, Err(AcpiError::TooManyCpus { count: 4097 })));
}
