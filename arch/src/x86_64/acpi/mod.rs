//! ACPI tables of a hardware-reduced machine (ACPI 6.5, section 4.1).
//!
//! The tables are made for fixed addresses below 1 MiB: the RSDP first, where operating systems look for it, then DSDT,
//! FADT, MADT, MCFG and XSDT.

mod aml;
mod dsdt;
mod fadt;
pub mod hotplug;
mod madt;
#[cfg(test)]
mod tests;

use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use self::aml::to_bytes;
use super::layout::{ACPI_AREA, ACPI_OVERFLOW_AREA, AddressRange, RSDP_START};

const OEM_ID: [u8; 6] = *b"PODVSR";
const OEM_TABLE_ID: [u8; 8] = *b"PODVISOR";
const OEM_REVISION: u32 = 1;
/// Where the other tables start after the RSDP: its 36 bytes and some room.
const TABLES_OFFSET: u64 = 0x40;
/// Tables start at multiples of this.
const TABLE_ALIGNMENT: usize = 16;
const MIB: u64 = 1 << 20;
/// Device is present, enabled, shown and working (ACPI 6.5, section 6.3.7).
const STATUS_WORKING: u8 = 0xf;
/// The name of such a processor's device has three hexadecimal digits.
const MAX_PLUGGABLE_CPUS: usize = 1 << 12;
/// The name of such a device has two hexadecimal digits.
const MAX_VIRTIO_MMIO: usize = 1 << 8;

/// A processor as the MADT lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiCpu {
    /// Its local APIC id.
    pub apic_id: u32,
    /// Whether it runs from boot on; otherwise it can be plugged in later.
    pub enabled: bool,
}

/// The PCI host bridge (segment 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiPci {
    /// ECAM that is answered, 1 MiB for each bus from bus 0 on.
    pub ecam: AddressRange,
    /// Address range below 4 GiB to keep free around `ecam`.
    pub ecam_reserved: AddressRange,
    /// Window for 32-bit BARs.
    pub mmio32: AddressRange,
    /// Window for 64-bit BARs.
    pub mmio64: AddressRange,
}

/// A virtio device behind MMIO registers (virtio 1.2, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiVirtioMmio {
    /// Addresses of its registers.
    pub registers: AddressRange,
    /// Its edge-triggered interrupt.
    pub gsi: u32,
}

/// What can come and go while the guest runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AcpiHotplug {
    /// Functions in the slots of bus 0, by the registers at
    /// [`ACPI_PCI_HOTPLUG`](super::layout::ACPI_PCI_HOTPLUG); without meaning where there is no host bridge.
    pub pci_slots: bool,
    /// Processors but for the first one, by the registers at [`ACPI_CPU_HOTPLUG`](super::layout::ACPI_CPU_HOTPLUG).
    pub cpus: bool,
    /// Number of slots for memory, by the registers at [`ACPI_MEMORY_HOTPLUG`](super::layout::ACPI_MEMORY_HOTPLUG).
    pub memory_slots: u8,
}

/// What the tables describe, beside what is always there: the event device with the power button, the I/O APIC, and the
/// sleep and reset registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiConfig {
    /// All processors, in the order of their UIDs.
    pub cpus: Vec<AcpiCpu>,
    /// The PCI host bridge, if there is one.
    pub pci: Option<AcpiPci>,
    /// Virtio devices that are not on PCI.
    pub virtio_mmio: Vec<AcpiVirtioMmio>,
    /// Interrupt of the first serial port at [`COM1_PORT`](super::layout::COM1_PORT), if there is one.
    pub com1_gsi: Option<u32>,
    /// There is a pvpanic device at [`PVPANIC_PORT`](super::layout::PVPANIC_PORT).
    pub pvpanic: bool,
    /// There is a CMOS clock at [`CMOS_PORT`](super::layout::CMOS_PORT).
    pub cmos: bool,
    /// The machine tells its generation at [`GENERATION`](super::layout::GENERATION).
    pub generation: bool,
    /// What can come and go.
    pub hotplug: AcpiHotplug,
}

/// ACPI tables that cannot be made or written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// No room below 1 MiB.
    #[error("the ACPI tables take {len} bytes, expected at most {max}")]
    TooLarge {
        /// Their length.
        len: usize,
        /// Largest length.
        max: u64,
    },
    /// More virtio-mmio devices than there are names for.
    #[error("there are {count} virtio-mmio devices, expected at most {MAX_VIRTIO_MMIO}")]
    TooManyVirtioMmio {
        /// How many there are.
        count: usize,
    },
    /// More processors that can be plugged than there are names for.
    #[error("{count} processors can be plugged, expected at most {MAX_PLUGGABLE_CPUS}")]
    TooManyCpus {
        /// How many there are.
        count: usize,
    },
    /// Writing to guest memory failed.
    #[error("the ACPI tables cannot be written to guest memory at {addr:#x}")]
    Write {
        /// Where.
        addr: u64,
        /// What failed.
        source: GuestMemoryError,
    },
}

/// The tables with the addresses they were made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Where the RSDP goes; the boot protocol passes this address on.
    pub rsdp_addr: GuestAddress,
    /// The RSDP.
    pub rsdp: Vec<u8>,
    /// Where the other tables go.
    pub tables_addr: GuestAddress,
    /// The other tables, one after the other.
    pub tables: Vec<u8>,
}

impl AcpiTables {
    /// Makes the tables. They go into the BIOS area, or below it where they are too large for it.
    pub fn build(config: &AcpiConfig) -> Result<Self, AcpiError> {
        let count = config.cpus.len();
        if config.hotplug.cpus && count > MAX_PLUGGABLE_CPUS {
            return Err(AcpiError::TooManyCpus { count });
        }
        let count = config.virtio_mmio.len();
        if count > MAX_VIRTIO_MMIO {
            return Err(AcpiError::TooManyVirtioMmio { count });
        }
        let bios = AddressRange::new(RSDP_START.0 + TABLES_OFFSET, ACPI_AREA.len - TABLES_OFFSET);
        let dsdt = dsdt::build(config);
        // All addresses in the tables have a fixed width, so that their length does not depend on where they go.
        let at_bios = lay_out(config, &dsdt, bios.start);
        let len = at_bios.bytes.len();
        let (area, laid_out) = if len as u64 <= bios.len {
            (bios, at_bios)
        } else {
            (
                ACPI_OVERFLOW_AREA,
                lay_out(config, &dsdt, ACPI_OVERFLOW_AREA.start),
            )
        };
        if len as u64 > area.len {
            return Err(AcpiError::TooLarge { len, max: area.len });
        }
        Ok(Self {
            rsdp_addr: RSDP_START,
            rsdp: to_bytes(&Rsdp::new(OEM_ID, laid_out.xsdt_addr)),
            tables_addr: GuestAddress(area.start),
            tables: laid_out.bytes,
        })
    }

    /// Writes the tables into guest memory.
    pub fn write<M: GuestMemoryBackend>(&self, mem: &M) -> Result<(), AcpiError> {
        for (bytes, addr) in [
            (&self.rsdp, self.rsdp_addr),
            (&self.tables, self.tables_addr),
        ] {
            mem.write_slice(bytes, addr)
                .map_err(|source| AcpiError::Write {
                    addr: addr.0,
                    source,
                })?;
        }
        Ok(())
    }
}

struct LaidOut {
    bytes: Vec<u8>,
    xsdt_addr: u64,
}

/// Puts the tables one after the other from `start` on.
fn lay_out(config: &AcpiConfig, dsdt: &[u8], start: u64) -> LaidOut {
    let mut bytes = Vec::new();
    let mut append = |table: &[u8]| {
        bytes.resize(bytes.len().next_multiple_of(TABLE_ALIGNMENT), 0);
        let addr = start + bytes.len() as u64;
        bytes.extend_from_slice(table);
        addr
    };
    let dsdt_addr = append(dsdt);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    // The FADT must be the first entry of the XSDT for some operating systems.
    xsdt.add_entry(append(&fadt::build(config, dsdt_addr)));
    xsdt.add_entry(append(&madt::build(&config.cpus)));
    if let Some(pci) = &config.pci {
        xsdt.add_entry(append(&mcfg(pci)));
    }
    let xsdt_addr = append(&to_bytes(&xsdt));
    LaidOut { bytes, xsdt_addr }
}

fn mcfg(pci: &AcpiPci) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(pci.ecam.start, 0, 0, pci.last_bus());
    to_bytes(&mcfg)
}

impl AcpiPci {
    /// Number of the last bus that the ECAM answers for.
    fn last_bus(&self) -> u8 {
        (self.ecam.len / MIB).saturating_sub(1).min(u8::MAX.into()) as u8
    }
}
