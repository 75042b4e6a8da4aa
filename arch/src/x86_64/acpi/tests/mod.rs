mod hotplug;

use std::fs;
use std::path::Path;

use acpi_tables::Aml;
use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::x86_64::layout::{
    COM1_GSI, GENERATION, GENERATION_PAGE, PCI_ECAM, PCI_ECAM_RESERVED, PCI_MMIO32,
    virtio_mmio_slot,
};

fn config(cpus: u32) -> AcpiConfig {
    AcpiConfig {
        cpus: (0..cpus)
            .map(|n| AcpiCpu {
                apic_id: n,
                enabled: n < cpus.div_ceil(2),
            })
            .collect(),
        pci: Some(AcpiPci {
            ecam: PCI_ECAM,
            ecam_reserved: PCI_ECAM_RESERVED,
            mmio32: PCI_MMIO32,
            mmio64: AddressRange::new(0x1_0000_0000, 0xff_0000_0000),
        }),
        virtio_mmio: Vec::new(),
        com1_gsi: Some(COM1_GSI),
        pvpanic: true,
        cmos: false,
        generation: true,
        hotplug: AcpiHotplug {
            pci_slots: true,
            cpus: true,
            memory_slots: 8,
        },
    }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

fn quad(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

/// The table at a guest address; its length and checksum are checked.
fn table(tables: &AcpiTables, addr: u64, signature: &[u8; 4]) -> Vec<u8> {
    let rest = &tables.tables[(addr - tables.tables_addr.0) as usize..];
    let table = rest[..word(rest, 4) as usize].to_vec();
    assert_eq!(&table[..4], signature);
    assert_eq!(
        checksum(&table),
        0,
        "checksum of {}",
        String::from_utf8_lossy(signature)
    );
    table
}

/// All tables as an operating system finds them from the RSDP, by signature.
fn walk(tables: &AcpiTables) -> Vec<Vec<u8>> {
    let rsdp = &tables.rsdp;
    assert_eq!(
        (&rsdp[..8], rsdp[15], word(rsdp, 20)),
        (&b"RSD PTR "[..], 2, 36)
    );
    assert_eq!((checksum(&rsdp[..20]), checksum(rsdp)), (0, 0));
    let xsdt = table(tables, quad(rsdp, 24), b"XSDT");
    let fadt = table(tables, quad(&xsdt, 36), b"FACP");
    let madt = table(tables, quad(&xsdt, 44), b"APIC");
    let dsdt = table(tables, quad(&fadt, 140), b"DSDT");
    let mut all = vec![fadt, dsdt, madt];
    if xsdt.len() > 52 {
        all.push(table(tables, quad(&xsdt, 52), b"MCFG"));
    }
    all
}

fn madt_entries(madt: &[u8]) -> Vec<&[u8]> {
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(rest[1].into());
        entries.push(entry);
        rest = after;
    }
    entries
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn every_table_is_found_from_the_rsdp_with_a_right_checksum() {
    let tables = AcpiTables::build(&config(4)).unwrap();
    assert_eq!(tables.rsdp_addr.0, 0xe_0000);
    let end = tables.tables_addr.0 + tables.tables.len() as u64;
    assert!(end <= ACPI_AREA.end());
    assert_eq!(walk(&tables).len(), 4);
}

#[test]
fn fadt_says_hardware_reduced_and_names_the_registers() {
    let fadt = walk(&AcpiTables::build(&config(1)).unwrap()).remove(0);
    assert_eq!(fadt.len(), 276);
    let flags = word(&fadt, 112);
    for bit in [4, 10, 20] {
        assert_ne!(flags & 1 << bit, 0, "flag {bit}");
    }
    assert_eq!(
        u16::from_le_bytes([fadt[109], fadt[110]]),
        1 << 2 | 1 << 4 | 1 << 5
    );
    for (offset, port) in [(116, 0x602), (244, 0x600), (256, 0x601)] {
        assert_eq!(
            (&fadt[offset..offset + 4], quad(&fadt, offset + 4)),
            (&[1, 8, 0, 1][..], port)
        );
    }
    assert_eq!(fadt[128], 1);
    let with_cmos = AcpiConfig {
        cmos: true,
        ..config(1)
    };
    let fadt = walk(&AcpiTables::build(&with_cmos).unwrap()).remove(0);
    assert_eq!(fadt[109] & 1 << 5, 0);
    assert_eq!(fadt[108], 0x32);
}

#[test]
fn generation_is_described_by_its_address_and_its_event() {
    let with = dsdt::build(&config(1));
    let without = dsdt::build(&AcpiConfig {
        generation: false,
        ..config(1)
    });
    let has = |dsdt: &[u8], part: &[u8]| dsdt.windows(part.len()).any(|found| found == part);
    // ADDR: a package of two numbers, the low one a DWord.
    let address = b"ADDR\x12\x08\x02\x0c\x28\xf0\x0d\x00\x00";
    assert!(has(&with, address));
    assert!(has(&with, b"VM_Gen_Counter\0"));
    assert!(!has(&without, b"VGEN"));
    // Notify (VGEN, 0x80)
    assert!(has(&with, b"\x86\\\x2e_SB_VGEN\x0a\x80"));
    assert_eq!(GENERATION.start % 8, 0);
    assert!(GENERATION_PAGE.contains(GENERATION.start));
    for other in [ACPI_AREA, ACPI_OVERFLOW_AREA] {
        assert!(!GENERATION_PAGE.overlaps(&other));
    }
}

#[test]
fn madt_lists_running_and_pluggable_processors() {
    let madt = walk(&AcpiTables::build(&config(4)).unwrap()).remove(2);
    assert_eq!(
        (madt[8], word(&madt, 36), word(&madt, 40)),
        (5, 0xfee0_0000, 0)
    );
    let entries = madt_entries(&madt);
    let cpus: Vec<_> = entries
        .iter()
        .filter(|e| e[0] == 0)
        .map(|e| (e[2], e[3], word(e, 4)))
        .collect();
    assert_eq!(cpus, [(0, 0, 1), (1, 1, 1), (2, 2, 2), (3, 3, 2)]);
    let others: Vec<_> = entries.into_iter().filter(|e| e[0] != 0).collect();
    assert_eq!(
        others,
        [
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0][..],
            &[4, 6, 0xff, 0, 0, 1]
        ]
    );
}

#[test]
fn processors_with_large_apic_ids_are_x2apic_entries() {
    let cpus = [254, 255, 300]
        .map(|apic_id| AcpiCpu {
            apic_id,
            enabled: true,
        })
        .to_vec();
    let madt = walk(&AcpiTables::build(&AcpiConfig { cpus, ..config(0) }).unwrap()).remove(2);
    let entries = madt_entries(&madt);
    assert_eq!((entries[0][0], entries[0][3]), (0, 254));
    let x2apic: Vec<_> = entries[1..3]
        .iter()
        .map(|e| (e[0], word(e, 4), word(e, 8), word(e, 12)))
        .collect();
    assert_eq!(x2apic, [(9, 255, 1, 1), (9, 300, 1, 2)]);
    assert_eq!(
        entries[5],
        [10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]
    );
}

#[test]
fn mcfg_names_the_ecam_of_bus_0() {
    let mcfg = walk(&AcpiTables::build(&config(1)).unwrap()).remove(3);
    assert_eq!(
        (mcfg.len(), quad(&mcfg, 44), &mcfg[52..56]),
        (60, 0xe800_0000, &[0, 0, 0, 0][..])
    );
}

#[test]
fn devices_that_are_absent_are_not_in_the_dsdt() {
    let with = walk(&AcpiTables::build(&config(1)).unwrap()).remove(1);
    let bare = AcpiConfig {
        pci: None,
        com1_gsi: None,
        pvpanic: false,
        ..config(1)
    };
    let without = walk(&AcpiTables::build(&bare).unwrap());
    assert_eq!(without.len(), 3);
    for name in [&b"COM1"[..], b"PCI0", b"MBRD", b"PEVT"] {
        assert!(contains(&with, name) && !contains(&without[1], name));
    }
    for name in [&b"PWRB"[..], b"GED_", b"_S5_", b"ACPI0013"] {
        assert!(contains(&without[1], name));
    }
}

#[test]
fn virtio_mmio_devices_have_their_registers_and_an_edge_of_their_own() {
    let device = |index| {
        let (registers, gsi) = virtio_mmio_slot(index).unwrap();
        AcpiVirtioMmio { registers, gsi }
    };
    let config = AcpiConfig {
        pci: None,
        virtio_mmio: (0..17).map(device).collect(),
        ..config(1)
    };
    let dsdt = walk(&AcpiTables::build(&config).unwrap()).remove(1);
    for (index, device) in config.virtio_mmio.iter().enumerate() {
        assert!(contains(&dsdt, format!("VR{index:02X}").as_bytes()));
        // Memory32Fixed that can be written, then an Interrupt consumed, edge, active high, exclusive (ACPI 6.5, 6.4.3).
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend((device.registers.start as u32).to_le_bytes());
        resources.extend(0x1000_u32.to_le_bytes());
        resources.extend([0x89, 6, 0, 0b11, 1]);
        resources.extend(device.gsi.to_le_bytes());
        assert!(contains(&dsdt, &resources), "slot {index}");
    }
    let identifiers = dsdt.windows(8).filter(|bytes| bytes == b"LNRO0005");
    assert_eq!(identifiers.count(), 17);
}

#[test]
fn more_virtio_mmio_devices_than_names_are_refused() {
    let device = AcpiVirtioMmio {
        registers: AddressRange::new(0xf800_0000, 0x1000),
        gsi: 5,
    };
    let config = AcpiConfig {
        virtio_mmio: vec![device; 257],
        ..config(1)
    };
    assert!(matches!(
        AcpiTables::build(&config),
        Err(AcpiError::TooManyVirtioMmio { count: 257 })
    ));
}

#[test]
fn tables_too_large_for_the_bios_area_go_below_it() {
    let tables = AcpiTables::build(&config(1500)).unwrap();
    assert_eq!(
        (tables.rsdp_addr.0, tables.tables_addr.0),
        (0xe_0000, 0xa_0000)
    );
    assert!(tables.tables_addr.0 + tables.tables.len() as u64 <= 0xe_0000);
    walk(&tables);
    assert!(matches!(
        AcpiTables::build(&config(4096)),
        Err(AcpiError::TooLarge { max: 0x3_F000, .. })
    ));
}

#[test]
fn tables_are_written_where_they_say() {
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let tables = AcpiTables::build(&config(2)).unwrap();
    tables.write(&mem).unwrap();
    let mut found = vec![0; tables.tables.len()];
    mem.read_slice(&mut found, tables.tables_addr).unwrap();
    assert_eq!(found, tables.tables);
    assert_eq!(
        mem.read_obj::<[u8; 8]>(tables.rsdp_addr).unwrap(),
        *b"RSD PTR "
    );

    let small = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    assert!(matches!(
        tables.write(&small),
        Err(AcpiError::Write { addr: 0xe_0000, .. })
    ));
}

/// Writes the tables for a look with `iasl -d`: `ACPI_DUMP=DIRECTORY cargo test -p arch dumped`.
#[test]
fn dumped_tables_have_the_length_in_their_headers() {
    for table in walk(&AcpiTables::build(&config(254)).unwrap()) {
        assert_eq!(table.len(), word(&table, 4) as usize);
        if let Some(dir) = std::env::var_os("ACPI_DUMP") {
            let name = format!(
                "{}.aml",
                String::from_utf8_lossy(&table[..4]).to_lowercase()
            );
            fs::write(Path::new(&dir).join(name), &table).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn any_number_of_processors_gives_sound_tables(cpus in 0u32..1024, pci: bool, serial: bool) {
        let full = config(cpus);
        let config = AcpiConfig {
            pci: full.pci.filter(|_| pci),
            com1_gsi: serial.then_some(4),
            ..full
        };
        let tables = AcpiTables::build(&config).unwrap();
        let madt = walk(&tables).remove(2);
        let listed = madt_entries(&madt).iter().filter(|e| matches!(e[0], 0 | 9)).count();
        prop_assert_eq!(listed as u32, cpus);
    }
}
