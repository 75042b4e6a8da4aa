//! The machine as KVM sees it.

use std::sync::Arc;

use arch::x86_64::layout;
use kvm_ioctls::{Kvm, VmFd};

use super::KvmError;

/// A machine without memory or vCPUs: an in-kernel local APIC for each vCPU to come, one I/O APIC and the PIC pair.
///
/// There is no PIT: guests take the TSC deadline timer, or the APIC timer that they calibrate from CPUID.
#[derive(Clone)]
pub struct Vm {
    fd: Arc<VmFd>,
}

impl Vm {
    /// Creates the machine.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn new(kvm: &Kvm) -> Result<Self, KvmError> {
        let fd = loop {
            match kvm.create_vm() {
                // A signal came while KVM waited for a lock.
                Err(error) if error.errno() == libc::EINTR => {}
                result => break result.map_err(KvmError::of("KVM_CREATE_VM"))?,
            }
        };
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP_START)
            .map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS_START as usize)
            .map_err(KvmError::of("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip()
            .map_err(KvmError::of("KVM_CREATE_IRQCHIP"))?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// The machine's file descriptor; whoever holds it keeps the machine.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }
}
