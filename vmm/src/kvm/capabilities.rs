//! What this host's KVM can do.

use std::io;

use kvm_bindings::CpuId;
use kvm_bindings::{KVM_API_VERSION, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::KvmError;

/// Each capability that no guest runs without, by its name in the KVM API.
const NEEDED: [(&str, u32); 16] = [
    ("KVM_CAP_USER_MEMORY", Cap::UserMemory as u32),
    ("KVM_CAP_IRQCHIP", Cap::Irqchip as u32),
    ("KVM_CAP_IRQ_ROUTING", Cap::IrqRouting as u32),
    ("KVM_CAP_IRQFD", Cap::Irqfd as u32),
    ("KVM_CAP_IOEVENTFD", Cap::Ioeventfd as u32),
    ("KVM_CAP_IOEVENTFD_ANY_LENGTH", KVM_CAP_IOEVENTFD_ANY_LENGTH),
    ("KVM_CAP_SIGNAL_MSI", Cap::SignalMsi as u32),
    ("KVM_CAP_SET_TSS_ADDR", Cap::SetTssAddr as u32),
    (
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
        Cap::SetIdentityMapAddr as u32,
    ),
    ("KVM_CAP_EXT_CPUID", Cap::ExtCpuid as u32),
    ("KVM_CAP_MP_STATE", Cap::MpState as u32),
    ("KVM_CAP_IMMEDIATE_EXIT", Cap::ImmediateExit as u32),
    ("KVM_CAP_VCPU_EVENTS", Cap::VcpuEvents as u32),
    ("KVM_CAP_XSAVE", Cap::Xsave as u32),
    ("KVM_CAP_ADJUST_CLOCK", Cap::AdjustClock as u32),
    ("KVM_CAP_GET_TSC_KHZ", Cap::GetTscKhz as u32),
];

/// Why KVM cannot be used on this host at all.
#[derive(Debug, thiserror::Error)]
pub enum NotUsable {
    /// The device cannot be opened.
    #[error("cannot open /dev/kvm ({})", way_out(.0))]
    Open(#[source] io::Error),
    /// The KVM API is not the one and only stable version.
    #[error("/dev/kvm speaks KVM API version {found}, expected {KVM_API_VERSION}")]
    Version {
        /// The version it speaks.
        found: i32,
    },
    /// Something is missing in the host's kernel.
    #[error("this host's KVM lacks {}; a newer kernel has it", .missing.join(", "))]
    Missing {
        /// The names of the capabilities.
        missing: Vec<&'static str>,
    },
    /// A question that every KVM answers was refused.
    #[error("KVM does not answer")]
    Call(#[from] KvmError),
}

fn way_out(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "no KVM here: enable virtualization in the firmware and load kvm_intel or kvm_amd"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "no access: join the group that owns it, usually kvm, or run as root"
        }
        Some(libc::ENXIO | libc::ENODEV) => {
            "the node is there and no driver behind it: load kvm_intel or kvm_amd"
        }
        _ => "it must be a character device that this process may read and write",
    }
}

/// An opened /dev/kvm that has everything Podvisor needs.
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
}

impl Host {
    /// Opens /dev/kvm and looks for what a guest needs.
    ///
    /// # Errors
    ///
    /// [`NotUsable`] says what is missing.
    pub fn open() -> Result<Self, NotUsable> {
        let kvm = Kvm::new().map_err(|error| NotUsable::Open(error.into()))?;
        let found = kvm.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(NotUsable::Version { found });
        }
        let missing: Vec<_> = NEEDED
            .iter()
            .filter(|(_, number)| kvm.check_extension_raw((*number).into()) <= 0)
            .map(|(name, _)| *name)
            .collect();
        if !missing.is_empty() {
            return Err(NotUsable::Missing { missing });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self { kvm, cpuid })
    }

    /// The opened device.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// CPUID as KVM can give it to a guest.
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// The largest number of vCPUs in one machine.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Whether the local APIC's timer has TSC deadline mode.
    pub fn tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let error = NotUsable::Missing {
            missing: vec!["KVM_CAP_IRQFD", "KVM_CAP_XSAVE"],
        };
        assert_eq!(
            error.to_string(),
            "this host's KVM lacks KVM_CAP_IRQFD, KVM_CAP_XSAVE; a newer kernel has it"
        );
    }

    #[test]
    fn absent_device_and_refused_access_have_different_ways_out() {
        let absent = NotUsable::Open(io::Error::from_raw_os_error(libc::ENOENT)).to_string();
        let refused = NotUsable::Open(io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(absent.contains("load kvm_intel or kvm_amd"), "{absent}");
        assert!(refused.contains("join the group"), "{refused}");
    }
}
