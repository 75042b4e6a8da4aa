//! KVM's own leaves and the leaves that name clock frequencies.

use super::Vendor;
use super::table::Table;

const BASE: u32 = 0x4000_0000;
const FEATURES: u32 = 0x4000_0001;
/// TSC and APIC bus frequency in kHz, as several hypervisors give them.
const TIMING: u32 = 0x4000_0010;
const LAST: u32 = 0x4fff_ffff;
const SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";

/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;
const TSC_RATIO_LEAF: u32 = 0x15;
const FREQUENCY_LEAF: u32 = 0x16;
/// Reference clock of leaf 0x16 in MHz.
const REFERENCE_MHZ: u32 = 100;

pub(super) fn set_clocks(table: &mut Table, vendor: Vendor, tsc_khz: Option<u32>) {
    table
        .0
        .retain(|entry| !(BASE..=LAST).contains(&entry.function) || entry.function == FEATURES);
    let [ebx, ecx, edx] = std::array::from_fn(|n| {
        u32::from_le_bytes(std::array::from_fn(|byte| SIGNATURE[n * 4 + byte]))
    });
    let last = if tsc_khz.is_some() { TIMING } else { FEATURES };
    table.set(BASE, [last, ebx, ecx, edx]);
    table.remove(TSC_RATIO_LEAF);
    table.remove(FREQUENCY_LEAF);

    let Some(tsc_khz) = tsc_khz else { return };
    table.set(TIMING, [tsc_khz, APIC_BUS_KHZ, 0, 0]);
    if vendor == Vendor::Intel {
        if let Some([denominator, numerator]) = tsc_ratio(tsc_khz) {
            table.set(
                TSC_RATIO_LEAF,
                [denominator, numerator, APIC_BUS_KHZ * 1000, 0],
            );
        }
        let mhz = tsc_khz / 1000;
        table.set(FREQUENCY_LEAF, [mhz, mhz, REFERENCE_MHZ, 0]);
        table.extend_range(0, FREQUENCY_LEAF);
    }
}

/// TSC frequency over crystal frequency as `[denominator, numerator]`, with the APIC bus as crystal: operating systems
/// take the crystal's frequency for that of the local APIC timer.
///
/// None where the ratio is not exact in 32-bit arithmetic, with which Linux multiplies the crystal's kHz.
fn tsc_ratio(tsc_khz: u32) -> Option<[u32; 2]> {
    let divisor = gcd(tsc_khz, APIC_BUS_KHZ);
    let numerator = tsc_khz.checked_div(divisor)?;
    APIC_BUS_KHZ
        .checked_mul(numerator)
        .filter(|product| *product != 0)?;
    Some([APIC_BUS_KHZ / divisor, numerator])
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
