//! `--cpus`: virtual processors.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString, Pairs};
use super::section::Section;

/// Most vCPUs that a machine can have: APIC ids are eight bits wide without interrupt remapping, and 255 is
/// the broadcast.
pub const MAX_VCPUS: u32 = 254;
/// The largest APIC id.
const MAX_APIC_ID: u64 = 254;

/// Virtual processors. `--cpus boot=N[,max=M,topology=T:C:D:P]`; `max` is `boot` when not given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CpusConfig {
    /// vCPUs that are there from the start. `boot` on the command line.
    #[schema(minimum = 1, maximum = 254)]
    pub boot_vcpus: u32,
    /// vCPUs that can be there later. `max` on the command line.
    #[schema(minimum = 1, maximum = 254)]
    pub max_vcpus: u32,
    /// How the vCPUs are shown to the guest. Without it: one package, one die, one thread per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Hyper-V enlightenments. Only `false`.
    pub kvm_hyperv: bool,
    /// Width of guest physical addresses, in bits. Only 46.
    pub max_phys_bits: u8,
    /// Host CPUs that a vCPU runs on. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Vec<CpuAffinity>>,
    /// CPU features to opt in to. Only the default.
    pub features: CpuFeatures,
    /// Whether the guest can run virtual machines where the host's KVM allows it. Only `true`.
    pub nested: bool,
    /// Which vCPUs may share a host core. Only the default.
    pub core_scheduling: CoreScheduling,
    /// CPU model shown to the guest. Only the host's.
    pub profile: CpuProfile,
}

/// How vCPUs are grouped, written `threads:cores:dies:packages` on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// Threads per core.
    #[schema(minimum = 1, maximum = 254)]
    pub threads_per_core: u16,
    /// Cores per die.
    #[schema(minimum = 1, maximum = 254)]
    pub cores_per_die: u16,
    /// Dies per package.
    #[schema(minimum = 1, maximum = 254)]
    pub dies_per_package: u16,
    /// Packages (sockets).
    #[schema(minimum = 1, maximum = 254)]
    pub packages: u16,
}

/// Host CPUs that one vCPU runs on, written `0@[1,3-4]` on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuAffinity {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// Indices of host CPUs.
    pub host_cpus: Vec<usize>,
}

/// CPU features to opt in to, written as a list of names on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CpuFeatures {
    /// Advanced Matrix Extensions.
    pub amx: bool,
}

/// Which vCPUs may share a host core at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = CoreSchedulingMode)]
pub enum CoreScheduling {
    /// Those of the same machine.
    #[default]
    Vm,
    /// None.
    Vcpu,
    /// All.
    Off,
}

/// CPU model shown to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CpuProfile {
    /// That of the host, as far as KVM supports it.
    #[default]
    Host,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: 46,
            affinity: None,
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: CoreScheduling::default(),
            profile: CpuProfile::default(),
        }
    }
}

impl CpuTopology {
    /// The counts from the innermost level on.
    fn levels(&self) -> [u16; 4] {
        let Self {
            threads_per_core,
            cores_per_die,
            dies_per_package,
            packages,
        } = *self;
        [threads_per_core, cores_per_die, dies_per_package, packages]
    }

    /// Number of vCPUs that the topology has places for.
    pub fn vcpus(&self) -> u64 {
        self.levels().into_iter().map(u64::from).product()
    }

    /// The APIC id of the last vCPU: each level has its own bits, as many as its largest number needs.
    fn last_apic_id(&self) -> u64 {
        self.levels().into_iter().rev().fold(0, |id, count| {
            let last = u64::from(count.saturating_sub(1));
            let width = u64::BITS - last.leading_zeros();
            (id << width) | last
        })
    }
}

impl std::fmt::Display for CpuTopology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [threads, cores, dies, packages] = self.levels();
        write!(f, "{threads}:{cores}:{dies}:{packages}")
    }
}

impl Section for CpusConfig {
    const UNSUPPORTED: &'static [&'static str] = &[
        "kvm_hyperv",
        "max_phys_bits",
        "affinity",
        "features",
        "nested",
        "core_scheduling",
        "profile",
    ];

    fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.boot_vcpus) {
            return Err(ConfigError::invalid(
                "boot_vcpus",
                self.boot_vcpus,
                format!("expected 1 to {MAX_VCPUS} vCPUs"),
            ));
        }
        if !(self.boot_vcpus..=MAX_VCPUS).contains(&self.max_vcpus) {
            return Err(ConfigError::invalid(
                "max_vcpus",
                self.max_vcpus,
                format!(
                    "expected at least the {} vCPUs to boot with and at most {MAX_VCPUS}",
                    self.boot_vcpus
                ),
            ));
        }
        let Some(topology) = self.topology else {
            return Ok(());
        };
        let invalid = |problem| ConfigError::invalid("topology", topology, problem);
        if topology.vcpus() != u64::from(self.max_vcpus) {
            return Err(invalid(format!(
                "expected threads per core × cores per die × dies per package × packages to be the largest number of \
                 vCPUs ({}), not {}",
                self.max_vcpus,
                topology.vcpus()
            )));
        }
        let last = topology.last_apic_id();
        if last > MAX_APIC_ID {
            return Err(invalid(format!(
                "expected APIC ids up to {MAX_APIC_ID}, and the last vCPU would have {last}; counts that are powers of \
                 two waste none"
            )));
        }
        Ok(())
    }
}

impl OptionString for CpusConfig {
    const RENAMES: &'static [(&'static str, &'static str)] =
        &[("boot", "boot_vcpus"), ("max", "max_vcpus")];

    fn complete(pairs: &mut Pairs) {
        if let Some(boot) = pairs.get("boot").map(str::to_owned)
            && pairs.get("max").is_none()
        {
            pairs.push("max", &boot);
        }
    }
}

impl FromStr for CpusConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
