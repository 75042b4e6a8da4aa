//! CPUID of the guest: what KVM supports, with the guest's own topology and clocks.
//!
//! Leaves are those of the Intel SDM, volume 2 ("CPUID"), and of the AMD APM, volume 3, appendix E; those from
//! 0x4000_0000 on are KVM's.

mod features;
mod hypervisor;
mod leaves;
mod table;
#[cfg(test)]
mod tests;
mod topology;

use kvm_bindings::CpuId;

pub use topology::{Topology, TopologyError};

use table::Table;

/// What the guest's CPUID says beside what KVM supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Threads, cores, dies and packages.
    pub topology: Topology,
    /// Frequency of the guest's TSC in kHz, if known.
    pub tsc_khz: Option<u32>,
    /// KVM emulates the TSC deadline timer (`KVM_CAP_TSC_DEADLINE_TIMER`), which it does not say in its CPUID.
    pub tsc_deadline_timer: bool,
    /// The guest sees performance counters.
    pub pmu: bool,
    /// The guest may run guests of its own (VMX or SVM).
    pub nested: bool,
}

/// CPUID that cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpuidError {
    /// More entries than KVM takes.
    #[error("the guest's CPUID has {0} entries, which is more than KVM takes")]
    TooManyEntries(usize),
    /// A vCPU outside the topology.
    #[error("vCPU {vcpu} is not in a topology of {count} vCPUs")]
    NotInTopology {
        /// Number of the vCPU.
        vcpu: u32,
        /// Number of vCPUs of the topology.
        count: u32,
    },
}

/// Who made the processor, as far as leaves differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    /// AMD and Hygon.
    Amd,
    /// Intel and those that follow it.
    Intel,
}

/// CPUID of vCPU number `vcpu`, made from what `KVM_GET_SUPPORTED_CPUID` says.
///
/// Nothing is shown that KVM does not support, but for what the in-kernel local APIC brings: x2APIC and, where `config`
/// has it, the TSC deadline timer.
pub fn configure(supported: &CpuId, config: &CpuidConfig, vcpu: u32) -> Result<CpuId, CpuidError> {
    let count = config.topology.vcpu_count();
    if vcpu >= count {
        return Err(CpuidError::NotInTopology { vcpu, count });
    }
    let mut table = Table(supported.as_slice().to_vec());
    let vendor = vendor(&mut table);
    features::filter(&mut table, config);
    leaves::set_topology(
        &mut table,
        vendor,
        &config.topology,
        config.topology.apic_id(vcpu),
    );
    hypervisor::set_clocks(&mut table, vendor, config.tsc_khz);
    table.0.sort_by_key(|entry| (entry.function, entry.index));
    CpuId::from_entries(&table.0).map_err(|_| CpuidError::TooManyEntries(table.0.len()))
}

/// Width of a guest physical address in bits: leaf 0x8000_0008, or 36 where there is none.
pub fn physical_address_bits(cpuid: &CpuId) -> u8 {
    const DEFAULT: u8 = 36;
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    leaf.map(|entry| entry.eax as u8)
        .filter(|bits| *bits != 0)
        .unwrap_or(DEFAULT)
}

fn vendor(table: &mut Table) -> Vendor {
    let name = table.leaf(0).map(|leaf| {
        [leaf.ebx, leaf.edx, leaf.ecx]
            .map(u32::to_le_bytes)
            .concat()
    });
    match name.as_deref() {
        Some(b"AuthenticAMD" | b"HygonGenuine") => Vendor::Amd,
        _ => Vendor::Intel,
    }
}
