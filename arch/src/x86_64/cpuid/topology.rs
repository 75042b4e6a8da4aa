//! Threads, cores, dies and packages, and the APIC ids they give.

/// Largest number of vCPUs of a topology: far above what KVM runs, low enough for 32-bit APIC ids.
const VCPUS_MAX: u64 = 1 << 16;

/// A topology that cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopologyError {
    /// A level is zero.
    #[error("{level} is 0, expected at least 1")]
    Zero {
        /// What the level is called.
        level: &'static str,
    },
    /// Too many vCPUs.
    #[error("the topology has {vcpus} vCPUs, expected at most {VCPUS_MAX}")]
    TooLarge {
        /// Number of vCPUs.
        vcpus: u128,
    },
}

/// How vCPUs are spread over threads, cores, dies and packages.
///
/// In an APIC id every level has a field of whole bits, so that ids have gaps where a level is no power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    threads_per_core: u32,
    cores_per_die: u32,
    dies_per_package: u32,
    packages: u32,
}

impl Topology {
    /// A topology of `T:C:D:P`: threads per core, cores per die, dies per package, packages, each at least 1.
    pub fn new(
        threads_per_core: u32,
        cores_per_die: u32,
        dies_per_package: u32,
        packages: u32,
    ) -> Result<Self, TopologyError> {
        let levels = [
            ("threads per core", threads_per_core),
            ("cores per die", cores_per_die),
            ("dies per package", dies_per_package),
            ("packages", packages),
        ];
        if let Some((level, _)) = levels.into_iter().find(|(_, count)| *count == 0) {
            return Err(TopologyError::Zero { level });
        }
        let vcpus = levels.iter().fold(1, |product: u128, (_, count)| {
            product.saturating_mul((*count).into())
        });
        if vcpus > VCPUS_MAX.into() {
            return Err(TopologyError::TooLarge { vcpus });
        }
        Ok(Self {
            threads_per_core,
            cores_per_die,
            dies_per_package,
            packages,
        })
    }

    /// One package of `vcpus` cores with one thread each; `vcpus` from 1 to 65536.
    pub fn flat(vcpus: u32) -> Result<Self, TopologyError> {
        Self::new(1, vcpus, 1, 1)
    }

    /// Number of vCPUs.
    pub fn vcpu_count(&self) -> u32 {
        self.threads_per_package() * self.packages
    }

    /// APIC id of vCPU number `vcpu`, counted thread by thread, core by core, die by die.
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let thread = vcpu % self.threads_per_core;
        let core = vcpu / self.threads_per_core % self.cores_per_die;
        let die = vcpu / self.threads_per_die() % self.dies_per_package;
        let package = vcpu / self.threads_per_package();
        package << self.package_shift()
            | die << self.die_shift()
            | core << self.core_shift()
            | thread
    }

    pub(super) fn threads_per_core(&self) -> u32 {
        self.threads_per_core
    }

    pub(super) fn threads_per_die(&self) -> u32 {
        self.threads_per_core * self.cores_per_die
    }

    pub(super) fn threads_per_package(&self) -> u32 {
        self.threads_per_die() * self.dies_per_package
    }

    pub(super) fn dies_per_package(&self) -> u32 {
        self.dies_per_package
    }

    /// Bits to shift an APIC id to the right for an id of the core.
    pub(super) fn core_shift(&self) -> u32 {
        width(self.threads_per_core)
    }

    /// Bits to shift an APIC id to the right for an id of the die.
    pub(super) fn die_shift(&self) -> u32 {
        self.core_shift() + width(self.cores_per_die)
    }

    /// Bits to shift an APIC id to the right for an id of the package.
    pub(super) fn package_shift(&self) -> u32 {
        self.die_shift() + width(self.dies_per_package)
    }
}

/// Bits of a field that holds `count` ids.
fn width(count: u32) -> u32 {
    u32::BITS - (count - 1).leading_zeros()
}
