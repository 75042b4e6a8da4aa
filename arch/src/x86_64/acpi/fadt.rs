//! The FADT: hardware-reduced, with sleep, reset and power button by their generic registers (ACPI 6.5, section 5.2.9).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::aml::to_bytes;
use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::x86_64::layout::{
    CMOS_CENTURY, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};

/// Bits of `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11).
///
/// The bit for a keyboard controller stays clear, although writes to it can reset the machine: Linux would search it for
/// a keyboard at every boot, and `reboot=k` works without the bit.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const PCIE_ASPM_NOT_SUPPORTED: u16 = 1 << 4;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The FADT, with the DSDT at `dsdt_addr`.
pub(super) fn build(config: &AcpiConfig, dsdt_addr: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_addr)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    let cmos = if config.cmos { 0 } else { CMOS_RTC_NOT_PRESENT };
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | PCIE_ASPM_NOT_SUPPORTED | cmos).into();
    if config.cmos {
        fadt.century = CMOS_CENTURY;
    }
    fadt.reset_reg = byte_port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = byte_port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = byte_port(SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    to_bytes(&fadt.finalize())
}

fn byte_port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}
