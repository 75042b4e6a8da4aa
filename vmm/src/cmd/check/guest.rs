//! A guest of two instructions, to see whether KVM runs what kernels are made of.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

/// Where the code is; the guest starts in real mode with all segments at zero.
const CODE_AT: GuestAddress = GuestAddress(0x1000);
const MEMORY_BYTES: usize = 0x2000;
/// popcnt ax, ax; hlt. Any processor with hardware virtualization of the last decade runs both, while a KVM that
/// interprets kernel code knows only a part of the instruction set.
const CODE: [u8; 5] = [0xf3, 0x0f, 0xb8, 0xc0, 0xf4];
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 2;

/// How the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ran to its end.
    Halted,
    /// KVM could not run it; what it says.
    Refused(String),
}

/// Runs the guest in a machine of its own.
pub(super) fn run(kvm: &Kvm) -> Outcome {
    match try_run(kvm) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

fn try_run(kvm: &Kvm) -> anyhow::Result<Outcome> {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    memory.write_slice(&CODE, CODE_AT)?;
    let vm = kvm.create_vm()?;
    for (slot, region) in (0_u32..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(region.start_addr())? as u64,
        };
        // SAFETY: the region is mapped as long as `memory` lives, which is longer than `vm`: it was declared first.
        #[expect(unsafe_code)]
        unsafe { vm.set_user_memory_region(region) }?;
    }
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE_AT.raw_value();
    regs.rflags = RFLAGS_RESERVED;
    vcpu.set_regs(&regs)?;
    Ok(match vcpu.run()? {
        VcpuExit::Hlt => Outcome::Halted,
        VcpuExit::InternalError => Outcome::Refused("KVM_EXIT_INTERNAL_ERROR at POPCNT".to_owned()),
        VcpuExit::FailEntry(reason, _) => {
            Outcome::Refused(format!("KVM_EXIT_FAIL_ENTRY, reason {reason:#x}"))
        }
        exit => Outcome::Refused(format!("exit {exit:?}")),
    })
}
