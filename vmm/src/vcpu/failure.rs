//! The one message about a vCPU that cannot go on.

use std::fmt;
use std::io;

use devices::memory::Ram;
use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

/// The longest x86 instruction in bytes.
const INSTRUCTION_MAX: usize = 15;
/// Where a processor begins after a reset.
const RESET_CS: u16 = 0xf000;
const RESET_RIP: u64 = 0xfff0;

/// What ended the vCPU.
#[derive(Debug)]
pub enum Reason {
    /// KVM_EXIT_INTERNAL_ERROR.
    Internal {
        /// What KVM could not do.
        suberror: u32,
        /// The instruction, where KVM gives it.
        instruction: Option<Vec<u8>>,
        /// Further words of KVM, by suberror.
        data: Vec<u64>,
    },
    /// KVM_EXIT_FAIL_ENTRY.
    FailEntry {
        /// What the processor says, by vendor.
        hardware: u64,
        /// The host's processor it happened on.
        cpu: u32,
    },
    /// KVM_EXIT_MEMORY_FAULT.
    MemoryFault {
        /// Kind of access.
        flags: u64,
        /// First guest physical address.
        gpa: u64,
        /// Length in bytes.
        size: u64,
    },
    /// KVM_EXIT_SHUTDOWN.
    TripleFault,
    /// An exit that a machine of this make never has.
    Unexpected(u32),
    /// KVM_RUN itself failed.
    Run(io::Error),
}

impl Reason {
    /// What KVM says about its internal error, the reason of the last exit of `run`.
    pub(super) fn internal_error(run: &kvm_run) -> Self {
        debug_assert_eq!(run.exit_reason, KVM_EXIT_INTERNAL_ERROR);
        // SAFETY: the exit reason says that this variant of the union was filled; both variants are plain numbers.
        #[expect(unsafe_code)]
        let (internal, emulation) = unsafe {
            (
                run.__bindgen_anon_1.internal,
                run.__bindgen_anon_1.emulation_failure,
            )
        };
        let words = (internal.ndata as usize).min(internal.data.len());
        let mut reason = Self::Internal {
            suberror: internal.suberror,
            instruction: None,
            data: internal.data[..words].to_vec(),
        };
        let has_bytes = internal.suberror == KVM_INTERNAL_ERROR_EMULATION
            && words > 0
            && emulation.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                != 0;
        if has_bytes
            && let Self::Internal {
                instruction, data, ..
            } = &mut reason
        {
            // SAFETY: the flag says that this part was filled; it is plain numbers.
            #[expect(unsafe_code)]
            let bytes = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
            let len = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
            *instruction = Some(bytes.insn_bytes[..len].to_vec());
            data.clear();
        }
        reason
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal { suberror, data, .. } => {
                let meaning = match *suberror {
                    KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction",
                    KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
                    KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
                    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that KVM does not know",
                    _ => "of an unknown kind",
                };
                write!(
                    f,
                    "KVM_EXIT_INTERNAL_ERROR, suberror {suberror} ({meaning})"
                )?;
                if !data.is_empty() {
                    write!(f, ", data")?;
                }
                data.iter().try_for_each(|word| write!(f, " {word:#x}"))
            }
            Self::FailEntry { hardware, cpu } => write!(
                f,
                "KVM_EXIT_FAIL_ENTRY, the processor does not enter the guest: reason {hardware:#x} on host CPU {cpu}"
            ),
            Self::MemoryFault { flags, gpa, size } => write!(
                f,
                "KVM_EXIT_MEMORY_FAULT at guest address {gpa:#x}, {size} bytes, flags {flags:#x}"
            ),
            Self::TripleFault => write!(f, "KVM_EXIT_SHUTDOWN (triple fault)"),
            Self::Unexpected(reason) => {
                write!(f, "KVM exit reason {reason}, which was not expected")
            }
            Self::Run(error) => write!(f, "KVM_RUN failed: {error}"),
        }
    }
}

/// The registers that tell where the guest was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    rip: u64,
    rsp: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    cs: u16,
}

/// Everything that is known about a vCPU that cannot go on.
#[derive(Debug)]
pub struct Failure {
    vcpu: u32,
    reason: Reason,
    registers: Option<Registers>,
    instruction: Vec<u8>,
}

impl Failure {
    /// Looks at `fd`, the stopped vCPU number `vcpu`, after an exit for `reason`.
    pub(super) fn collect(vcpu: u32, fd: &VcpuFd, ram: &Ram, reason: Reason) -> Self {
        let state = fd.get_regs().ok().zip(fd.get_sregs().ok());
        // After a triple fault KVM may have reset the vCPU already, as it does on AMD processors: what the registers say
        // then is not where the guest was.
        let state = state.filter(|(regs, sregs)| {
            !matches!(reason, Reason::TripleFault)
                || (regs.rip, sregs.cs.selector) != (RESET_RIP, RESET_CS)
        });
        let given = match &reason {
            Reason::Internal { instruction, .. } => instruction.clone(),
            _ => None,
        };
        let instruction = given.unwrap_or_else(|| match &state {
            Some((regs, sregs)) => {
                let long_mode = sregs.cs.l != 0;
                let base = if long_mode { 0 } else { sregs.cs.base };
                read_instruction(fd, ram, base.wrapping_add(regs.rip))
            }
            None => Vec::new(),
        });
        let registers = state.map(|(regs, sregs)| Registers {
            rip: regs.rip,
            rsp: regs.rsp,
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs: sregs.cs.selector,
        });
        Self {
            vcpu,
            reason,
            registers,
            instruction,
        }
    }

    /// What ended the vCPU.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

/// The bytes at linear address `address`, up to the end of its page, of the RAM that is mapped there.
fn read_instruction(fd: &VcpuFd, ram: &Ram, address: u64) -> Vec<u8> {
    let Ok(translation) = fd.translate_gva(address) else {
        return Vec::new();
    };
    if translation.valid == 0 {
        return Vec::new();
    }
    let rest_of_page = 4096 - (translation.physical_address as usize & 0xfff);
    let mut bytes = vec![0; INSTRUCTION_MAX.min(rest_of_page)];
    match ram.read(&mut bytes, GuestAddress(translation.physical_address)) {
        Ok(read) => {
            bytes.truncate(read);
            bytes
        }
        Err(_) => Vec::new(),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {} cannot go on: {}", self.vcpu, self.reason)?;
        let Some(registers) = &self.registers else {
            return write!(f, "; KVM does not tell where");
        };
        let Registers {
            rip,
            rsp,
            cr0,
            cr3,
            cr4,
            efer,
            cs,
        } = registers;
        write!(f, "; RIP {rip:#x}")?;
        if !self.instruction.is_empty() {
            write!(f, ", instruction bytes")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
        }
        write!(
            f,
            "; CS {cs:#x}, RSP {rsp:#x}, CR0 {cr0:#x}, CR3 {cr3:#x}, CR4 {cr4:#x}, EFER {efer:#x}"
        )
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_reason_rip_and_instruction() {
        let failure = Failure {
            vcpu: 1,
            reason: Reason::Internal {
                suberror: KVM_INTERNAL_ERROR_EMULATION,
                instruction: Some(vec![0x0f, 0x01, 0xcb]),
                data: Vec::new(),
            },
            registers: Some(Registers {
                rip: 0x100_0200,
                rsp: 0,
                cr0: 0x8000_0011,
                cr3: 0x9000,
                cr4: 0x20,
                efer: 0x500,
                cs: 0x10,
            }),
            instruction: vec![0x0f, 0x01, 0xcb],
        };
        assert_eq!(
            failure.to_string(),
            "vCPU 1 cannot go on: KVM_EXIT_INTERNAL_ERROR, suberror 1 (KVM cannot emulate an instruction); \
             RIP 0x1000200, instruction bytes 0f 01 cb; \
             CS 0x10, RSP 0x0, CR0 0x80000011, CR3 0x9000, CR4 0x20, EFER 0x500"
        );
    }

    #[test]
    fn words_of_kvm_stand_on_the_line_of_the_reason() {
        let reason = Reason::Internal {
            suberror: KVM_INTERNAL_ERROR_DELIVERY_EV,
            instruction: None,
            data: vec![0x8000_030e, 1],
        };
        assert_eq!(
            reason.to_string(),
            "KVM_EXIT_INTERNAL_ERROR, suberror 3 (an exit while an event was delivered), data 0x8000030e 0x1"
        );
    }

    #[test]
    fn instruction_bytes_are_taken_as_kvm_gives_them() {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_INTERNAL_ERROR,
            ..Default::default()
        };
        run.__bindgen_anon_1.emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
        run.__bindgen_anon_1.emulation_failure.ndata = 4;
        run.__bindgen_anon_1.emulation_failure.flags =
            KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.into();
        // More bytes than an instruction has are not believed.
        // SAFETY: all variants of the union are plain numbers.
        #[expect(unsafe_code)]
        let bytes = unsafe {
            &mut run
                .__bindgen_anon_1
                .emulation_failure
                .__bindgen_anon_1
                .__bindgen_anon_1
        };
        bytes.insn_size = 200;
        bytes.insn_bytes = [0x90; 15];
        let Reason::Internal { instruction, .. } = Reason::internal_error(&run) else {
            panic!("an internal error is of that kind");
        };
        assert_eq!(instruction, Some(vec![0x90; 15]));
    }
}
