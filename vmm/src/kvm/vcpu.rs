//! One vCPU: its file descriptor and its state before the first instruction.

use arch::x86_64::boot::BootEntry;
use arch::x86_64::{interrupts, msr, registers};
use kvm_bindings::{
    CpuId, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_fpu, kvm_guest_debug, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

use super::KvmError;
use super::vm::Vm;

/// IA32_KERNEL_GS_BASE: what SWAPGS puts in the place of the base of GS.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Why a vCPU could not be made ready, or does not tell its state.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused a call.
    #[error("vCPU {index}")]
    Kvm {
        /// The vCPU.
        index: u32,
        /// The call.
        #[source]
        source: KvmError,
    },
    /// KVM refused one of the registers.
    #[error("vCPU {index}: KVM does not take model-specific register {register:#x}")]
    Msr {
        /// The vCPU.
        index: u32,
        /// Number of the register.
        register: u32,
    },
    /// KVM does not tell one of the registers.
    #[error("vCPU {index}: KVM does not give model-specific register {register:#x}")]
    NoMsr {
        /// The vCPU.
        index: u32,
        /// Number of the register.
        register: u32,
    },
    /// It was taken off the machine.
    #[error("vCPU {index} has ended")]
    Ended {
        /// The vCPU.
        index: u32,
    },
}

/// What a debugger wants to know of a vCPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// General registers.
    pub general: kvm_regs,
    /// Segment, descriptor table and control registers.
    pub special: kvm_sregs,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
}

/// A vCPU in the hands of its owner.
pub struct Vcpu {
    index: u32,
    pub(crate) fd: VcpuFd,
}

impl Vcpu {
    /// Adds vCPU number `index` to `vm`, which has its interrupt controller.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn create(vm: &Vm, index: u32, apic_id: u32) -> Result<Self, VcpuError> {
        let fd = vm
            .fd()
            .create_vcpu(apic_id.into())
            .map_err(KvmError::of("KVM_CREATE_VCPU"))
            .map_err(|source| VcpuError::Kvm { index, source })?;
        Ok(Self { index, fd })
    }

    /// Number of the vCPU, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Frequency of the guest's time stamp counter in kHz, if the host's is stable.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok()
    }

    /// Sets what firmware sets on a real machine.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn configure(&self, cpuid: &CpuId) -> Result<(), VcpuError> {
        let index = self.index;
        self.fd
            .set_cpuid2(cpuid)
            .map_err(KvmError::of("KVM_SET_CPUID2"))
            .and_then(|()| self.set_lint())
            .map_err(|source| VcpuError::Kvm { index, source })?;
        self.set_msrs()
    }

    /// Sets the registers of the boot vCPU to the kernel's entry. The other vCPUs wait for it to start them.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn enter_at(&self, entry: &BootEntry) -> Result<(), VcpuError> {
        let index = self.index;
        self.set_entry(entry)
            .map_err(|source| VcpuError::Kvm { index, source })
    }

    /// Has the vCPU, which is out of the guest, wait for INIT and a start-up interrupt by another one, as it did when it
    /// was made.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn wait_for_start(&self) -> Result<(), VcpuError> {
        let index = self.index;
        let waiting = kvm_mp_state {
            mp_state: KVM_MP_STATE_UNINITIALIZED,
        };
        self.fd
            .set_mp_state(waiting)
            .map_err(KvmError::of("KVM_SET_MP_STATE"))
            .map_err(|source| VcpuError::Kvm { index, source })
    }

    /// What the registers hold. The vCPU is out of the guest.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn registers(&self) -> Result<Registers, VcpuError> {
        let index = self.index;
        let general = self.fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"));
        let special = self.fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"));
        let failed = |source| VcpuError::Kvm { index, source };
        Ok(Registers {
            general: general.map_err(failed)?,
            special: special.map_err(failed)?,
            kernel_gs_base: self.msr(MSR_KERNEL_GS_BASE)?,
        })
    }

    /// What the registers of the floating point unit and of SSE hold. The vCPU is out of the guest.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn fpu(&self) -> Result<kvm_fpu, VcpuError> {
        let index = self.index;
        self.fd
            .get_fpu()
            .map_err(KvmError::of("KVM_GET_FPU"))
            .map_err(|source| VcpuError::Kvm { index, source })
    }

    /// Sets the general registers and those of the floating point unit. The vCPU is out of the guest.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn set_registers(&self, general: &kvm_regs, fpu: &kvm_fpu) -> Result<(), VcpuError> {
        let index = self.index;
        self.fd
            .set_regs(general)
            .map_err(KvmError::of("KVM_SET_REGS"))
            .and_then(|()| {
                let set = self.fd.set_fpu(fpu);
                set.map_err(KvmError::of("KVM_SET_FPU"))
            })
            .map_err(|source| VcpuError::Kvm { index, source })
    }

    /// Has the guest be debugged as `debug` says, from its next entry on.
    ///
    /// # Errors
    ///
    /// KVM refused: it cannot do that on this host.
    pub fn debug(&self, debug: &kvm_guest_debug) -> Result<(), VcpuError> {
        let index = self.index;
        self.fd
            .set_guest_debug(debug)
            .map_err(KvmError::of("KVM_SET_GUEST_DEBUG"))
            .map_err(|source| VcpuError::Kvm { index, source })
    }

    /// The guest physical address that the vCPU reaches by the virtual one `address`, if it reaches any.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn translate(&self, address: u64) -> Result<Option<u64>, VcpuError> {
        let index = self.index;
        let translation = self
            .fd
            .translate_gva(address)
            .map_err(KvmError::of("KVM_TRANSLATE"))
            .map_err(|source| VcpuError::Kvm { index, source })?;
        Ok((translation.valid != 0).then_some(translation.physical_address))
    }

    fn msr(&self, register: u32) -> Result<u64, VcpuError> {
        let index = self.index;
        let asked = kvm_msr_entry {
            index: register,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[asked]).expect("one register is not too many");
        let given = self
            .fd
            .get_msrs(&mut msrs)
            .map_err(KvmError::of("KVM_GET_MSRS"))
            .map_err(|source| VcpuError::Kvm { index, source })?;
        let first = msrs.as_slice()[..given].first();
        let refused = VcpuError::NoMsr { index, register };
        first.map(|entry| entry.data).ok_or(refused)
    }

    fn set_msrs(&self) -> Result<(), VcpuError> {
        let index = self.index;
        let entries = msr::boot_msrs();
        let msrs = Msrs::from_entries(&entries).expect("fewer registers than KVM takes in a call");
        let taken = self
            .fd
            .set_msrs(&msrs)
            .map_err(KvmError::of("KVM_SET_MSRS"))
            .map_err(|source| VcpuError::Kvm { index, source })?;
        match entries.get(taken) {
            Some(refused) => Err(VcpuError::Msr {
                index,
                register: refused.index,
            }),
            None => Ok(()),
        }
    }

    fn set_lint(&self) -> Result<(), KvmError> {
        let lapic = self.fd.get_lapic().map_err(KvmError::of("KVM_GET_LAPIC"))?;
        self.fd
            .set_lapic(&interrupts::set_lint(lapic))
            .map_err(KvmError::of("KVM_SET_LAPIC"))
    }

    fn set_entry(&self, entry: &BootEntry) -> Result<(), KvmError> {
        let sregs = self.fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
        self.fd
            .set_sregs(&registers::boot_sregs(entry, sregs))
            .map_err(KvmError::of("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&registers::boot_regs(entry))
            .map_err(KvmError::of("KVM_SET_REGS"))?;
        self.fd
            .set_fpu(&registers::boot_fpu())
            .map_err(KvmError::of("KVM_SET_FPU"))
    }
}
