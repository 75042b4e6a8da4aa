//! Feature bits: what the in-kernel local APIC adds, and what a guest must not see.

use super::CpuidConfig;
use super::table::Table;

/// Leaf 1, `ecx`.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7, subleaf 0.
const EBX_SGX: u32 = 1 << 2;
const ECX_SGX_LC: u32 = 1 << 30;
const EDX_SGX_KEYS: u32 = 1 << 1;
/// Leaf 0x8000_0001, `ecx`.
const SVM: u32 = 1 << 2;
const PERFCTR_CORE: u32 = 1 << 23;
const PERFCTR_NB: u32 = 1 << 24;
const PERFCTR_LLC: u32 = 1 << 28;

const MONITOR_LEAF: u32 = 5;
const SGX_LEAF: u32 = 0x12;
/// Memory encryption that only a guest set up for it can use.
const SEV_LEAF: u32 = 0x8000_001f;
const SVM_LEAF: u32 = 0x8000_000a;
/// Performance counters of Intel (two leaves) and AMD.
const PMU_LEAVES: [u32; 3] = [0xa, 0x23, 0x8000_0022];

pub(super) fn filter(table: &mut Table, config: &CpuidConfig) {
    let (mut add, mut hide, mut hide_extended) = (X2APIC | HYPERVISOR, MONITOR | TSC_DEADLINE, 0);
    if config.tsc_deadline_timer {
        add |= TSC_DEADLINE;
    }
    if !config.nested {
        hide |= VMX;
        hide_extended |= SVM;
        table.remove(SVM_LEAF);
    }
    if !config.pmu {
        hide |= PDCM;
        hide_extended |= PERFCTR_CORE | PERFCTR_NB | PERFCTR_LLC;
        PMU_LEAVES.into_iter().for_each(|leaf| table.remove(leaf));
    }
    if let Some(leaf) = table.leaf(1) {
        leaf.ecx = leaf.ecx & !hide | add;
    }
    if let Some(leaf) = table.leaf(7) {
        leaf.ebx &= !EBX_SGX;
        leaf.ecx &= !ECX_SGX_LC;
        leaf.edx &= !EDX_SGX_KEYS;
    }
    if let Some(leaf) = table.leaf(0x8000_0001) {
        leaf.ecx &= !hide_extended;
    }
    for leaf in [MONITOR_LEAF, SGX_LEAF, SEV_LEAF] {
        table.remove(leaf);
    }
}
