//! The MADT: processors, the I/O APIC and the NMI pin (ACPI 6.5, section 5.2.12).

use acpi_tables::sdt::Sdt;

use super::{AcpiCpu, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::x86_64::layout::{IOAPIC_START, LAPIC_START};

/// From revision 5 on, operating systems know the "online capable" flag.
const REVISION: u8 = 5;
const HEADER_LEN: u32 = 36;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

pub(super) const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 1;
/// An APIC id of 255 is the broadcast address of an xAPIC, so that ids from here on need the x2APIC structure.
const FIRST_X2APIC_ID: u32 = 255;
const ALL_PROCESSORS: u8 = 0xff;
const ALL_X2APIC_PROCESSORS: u32 = u32::MAX;
/// Polarity and trigger mode "as the bus has it".
const CONFORMS_TO_BUS: [u8; 2] = [0, 0];
const NMI_LINT: u8 = 1;

/// The MADT with `cpus` in the order of their UIDs.
pub(super) fn build(cpus: &[AcpiCpu]) -> Vec<u8> {
    let mut body = Vec::with_capacity(8 + cpus.len() * 16 + 32);
    body.extend_from_slice(&(LAPIC_START as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes()); // no 8259 interrupt controllers
    let mut has_x2apic = false;
    for (uid, cpu) in (0u32..).zip(cpus) {
        let flags = if cpu.enabled { ENABLED } else { ONLINE_CAPABLE };
        let entry = processor(uid, cpu.apic_id, flags);
        has_x2apic |= entry[0] == LOCAL_X2APIC;
        body.extend(entry);
    }

    body.extend_from_slice(&[IO_APIC, 12, 0, 0]);
    body.extend_from_slice(&(IOAPIC_START as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes()); // first GSI

    body.extend_from_slice(&[LOCAL_APIC_NMI, 6, ALL_PROCESSORS]);
    body.extend_from_slice(&CONFORMS_TO_BUS);
    body.push(NMI_LINT);
    if has_x2apic {
        body.extend_from_slice(&[LOCAL_X2APIC_NMI, 12]);
        body.extend_from_slice(&CONFORMS_TO_BUS);
        body.extend_from_slice(&ALL_X2APIC_PROCESSORS.to_le_bytes());
        body.extend_from_slice(&[NMI_LINT, 0, 0, 0]);
    }

    let mut madt = Sdt::new(
        *b"APIC",
        HEADER_LEN,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}

/// The entry of a processor: of the older kind where its numbers fit.
pub(super) fn processor(uid: u32, apic_id: u32, flags: u32) -> Vec<u8> {
    let mut entry;
    match (u8::try_from(apic_id), u8::try_from(uid)) {
        (Ok(short_id), Ok(uid)) if apic_id < FIRST_X2APIC_ID => {
            entry = vec![LOCAL_APIC, 8, uid, short_id];
            entry.extend_from_slice(&flags.to_le_bytes());
        }
        _ => {
            entry = vec![LOCAL_X2APIC, 16, 0, 0];
            for word in [apic_id, flags, uid] {
                entry.extend_from_slice(&word.to_le_bytes());
            }
        }
    }
    entry
}
