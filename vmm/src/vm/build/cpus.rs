//! vCPUs: how they are spread, and what each of them is before its first instruction.

use api::config::CpusConfig;
use arch::x86_64::acpi::AcpiCpu;
use arch::x86_64::cpuid::{self, CpuidConfig, Topology};

use super::BuildError;
use crate::kvm::capabilities::Host;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;

/// The topology of `cpus`, which KVM takes.
pub(super) fn topology(host: &Host, cpus: &CpusConfig) -> Result<Topology, BuildError> {
    let limit = host.max_vcpus();
    if cpus.max_vcpus as usize > limit {
        return Err(BuildError::TooManyVcpus {
            asked: cpus.max_vcpus,
            limit,
        });
    }
    Ok(match cpus.topology {
        Some(topology) => Topology::new(
            topology.threads_per_core.into(),
            topology.cores_per_die.into(),
            topology.dies_per_package.into(),
            topology.packages.into(),
        )?,
        None => Topology::flat(cpus.max_vcpus)?,
    })
}

/// All vCPUs that there are or can be, as the tables list them.
pub(super) fn acpi_cpus(topology: &Topology, cpus: &CpusConfig) -> Vec<AcpiCpu> {
    (0..cpus.max_vcpus)
        .map(|vcpu| AcpiCpu {
            apic_id: topology.apic_id(vcpu),
            enabled: vcpu < cpus.boot_vcpus,
        })
        .collect()
}

/// The vCPUs that there are from the start, without an instruction to begin at.
pub(super) fn create(
    vm: &Vm,
    host: &Host,
    topology: &Topology,
    count: u32,
) -> Result<Vec<Vcpu>, BuildError> {
    let vcpus = (0..count)
        .map(|index| Vcpu::create(vm, index, topology.apic_id(index)))
        .collect::<Result<Vec<_>, _>>()?;
    let config = CpuidConfig {
        topology: *topology,
        tsc_khz: vcpus.first().and_then(Vcpu::tsc_khz),
        tsc_deadline_timer: host.tsc_deadline_timer(),
        pmu: false,
        nested: true,
    };
    for vcpu in &vcpus {
        vcpu.configure(&cpuid::configure(host.cpuid(), &config, vcpu.index())?)?;
    }
    Ok(vcpus)
}
