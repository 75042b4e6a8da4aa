//! The registers of vCPUs as notes of a core.

use kvm_bindings::{kvm_dtable, kvm_segment};

use super::elf::{put_u32, put_u64};
use crate::kvm::vcpu::Registers;

const NT_PRSTATUS: u32 = 1;
/// Size of `struct elf_prstatus` of x86-64 in bytes.
const PRSTATUS_LEN: usize = 336;
/// Where `pr_pid` and `pr_reg` are in it.
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;

/// Type of the note that QEMU writes, and the version of its layout.
const NT_QEMU: u32 = 0;
const QEMU_VERSION: u32 = 1;
/// Size of `QEMUCPUState` in bytes with its optional last field.
const QEMU_LEN: usize = 440;

/// The notes of `vcpus`, pairs of number and registers: first what every debugger knows, then what debuggers of kernels know
/// of QEMU's cores, which has the control registers.
pub(super) fn notes(vcpus: &[(u32, Registers)]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (index, registers) in vcpus {
        put_note(
            &mut notes,
            b"CORE\0",
            NT_PRSTATUS,
            &prstatus(*index, registers),
        );
    }
    for (_, registers) in vcpus {
        put_note(&mut notes, b"QEMU\0", NT_QEMU, &qemu_cpu_state(registers));
    }
    notes
}

/// Header, name and description, the latter two each to a multiple of 4 bytes.
fn put_note(notes: &mut Vec<u8>, name: &[u8], kind: u32, description: &[u8]) {
    put_u32(notes, &[name.len() as u32, description.len() as u32, kind]);
    for part in [name, description] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of x86-64 for vCPU number `index`, which is a thread to debuggers. No thread has number 0.
fn prstatus(index: u32, registers: &Registers) -> Vec<u8> {
    let Registers {
        general, special, ..
    } = registers;
    // Set when the kernel of a process was entered by a system call.
    let orig_rax = 0;
    let mut status = vec![0; PRSTATUS_PID];
    put_u32(&mut status, &[index + 1]);
    status.resize(PRSTATUS_REGISTERS, 0);
    // In the order of `struct user_regs_struct`.
    let words = [
        general.r15,
        general.r14,
        general.r13,
        general.r12,
        general.rbp,
        general.rbx,
        general.r11,
        general.r10,
        general.r9,
        general.r8,
        general.rax,
        general.rcx,
        general.rdx,
        general.rsi,
        general.rdi,
        orig_rax,
        general.rip,
        special.cs.selector.into(),
        general.rflags,
        general.rsp,
        special.ss.selector.into(),
        special.fs.base,
        special.gs.base,
        special.ds.selector.into(),
        special.es.selector.into(),
        special.fs.selector.into(),
        special.gs.selector.into(),
    ];
    put_u64(&mut status, &words);
    // Ends with the word that tells of floating point registers: there are none.
    status.resize(PRSTATUS_LEN, 0);
    status
}

/// `QEMUCPUState`, version 1.
fn qemu_cpu_state(registers: &Registers) -> Vec<u8> {
    let Registers {
        general,
        special,
        kernel_gs_base,
    } = registers;
    let mut state = Vec::with_capacity(QEMU_LEN);
    put_u32(&mut state, &[QEMU_VERSION, QEMU_LEN as u32]);
    let words = [
        general.rax,
        general.rbx,
        general.rcx,
        general.rdx,
        general.rsi,
        general.rdi,
        general.rsp,
        general.rbp,
        general.r8,
        general.r9,
        general.r10,
        general.r11,
        general.r12,
        general.r13,
        general.r14,
        general.r15,
        general.rip,
        general.rflags,
    ];
    put_u64(&mut state, &words);
    for segment in [
        &special.cs,
        &special.ds,
        &special.es,
        &special.fs,
        &special.gs,
        &special.ss,
        &special.ldt,
        &special.tr,
    ] {
        put_segment(&mut state, segment);
    }
    put_table(&mut state, &special.gdt);
    put_table(&mut state, &special.idt);
    // There is no CR1.
    let control = [special.cr0, 0, special.cr2, special.cr3, special.cr4];
    put_u64(&mut state, &control);
    put_u64(&mut state, &[*kernel_gs_base]);
    state
}

/// `QEMUCPUSegment`: selector, limit, flags, nothing, base.
fn put_segment(state: &mut Vec<u8>, segment: &kvm_segment) {
    let selector = segment.selector.into();
    put_u32(state, &[selector, segment.limit, flags(segment), 0]);
    put_u64(state, &[segment.base]);
}

fn put_table(state: &mut Vec<u8>, table: &kvm_dtable) {
    put_u32(state, &[0, table.limit.into(), 0, 0]);
    put_u64(state, &[table.base]);
}

/// The attributes of `segment` at their places in the upper half of a descriptor (Intel SDM volume 3, 3.4.5).
fn flags(segment: &kvm_segment) -> u32 {
    let present = segment.present != 0 && segment.unusable == 0;
    u32::from(segment.type_) << 8
        | u32::from(segment.s) << 12
        | u32::from(segment.dpl) << 13
        | u32::from(present) << 15
        | u32::from(segment.avl) << 20
        | u32::from(segment.l) << 21
        | u32::from(segment.db) << 22
        | u32::from(segment.g) << 23
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_regs, kvm_sregs};

    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn registers() -> Registers {
        let general = kvm_regs {
            rax: 0xa,
            rdi: 0xd1,
            rsp: 0x59,
            r15: 0x15,
            rip: 0xffff_ffff_8100_0000,
            rflags: 0x246,
            ..Default::default()
        };
        let cs = kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: 0x10,
            type_: 11,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let mut special = kvm_sregs {
            cs,
            cr0: 0x8005_0033,
            cr2: 0x2222,
            cr3: 0x3000,
            cr4: 0x44,
            ..Default::default()
        };
        special.gs.base = 0x6565;
        special.gs.selector = 0x2b;
        special.ldt.unusable = 1;
        special.ldt.present = 1;
        special.idt.base = 0xffff_fe00_0000_0000;
        special.idt.limit = 0xfff;
        Registers {
            general,
            special,
            kernel_gs_base: 0x1234_5678,
        }
    }

    #[test]
    fn each_vcpu_has_one_note_of_either_kind_and_the_common_ones_come_first() {
        let notes = notes(&[(0, registers()), (3, registers())]);
        let mut rest = &notes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let len = u32_at(rest, 4) as usize;
            assert_eq!(u32_at(rest, 0), 5, "length of the name with its end");
            assert_eq!(rest[16..20], [0; 4], "the name's end and padding");
            found.push((rest[12..16].to_vec(), u32_at(rest, 8), len));
            rest = &rest[20 + len..];
        }
        let core = (b"CORE".to_vec(), 1, 336);
        let qemu = (b"QEMU".to_vec(), 0, 440);
        assert_eq!(found, [core.clone(), core, qemu.clone(), qemu]);
    }

    #[test]
    fn prstatus_has_registers_at_the_places_of_linux() {
        let status = prstatus(3, &registers());
        assert_eq!(status.len(), 336);
        assert_eq!(u32_at(&status, 32), 4, "pr_pid");
        let register = |index: usize| u64_at(&status, 112 + 8 * index);
        assert_eq!(register(0), 0x15, "r15");
        assert_eq!(register(10), 0xa, "rax");
        assert_eq!(register(14), 0xd1, "rdi");
        assert_eq!(register(16), 0xffff_ffff_8100_0000, "rip");
        assert_eq!(register(17), 0x10, "cs");
        assert_eq!(register(18), 0x246, "eflags");
        assert_eq!(register(19), 0x59, "rsp");
        assert_eq!(register(22), 0x6565, "gs_base");
        assert_eq!(register(26), 0x2b, "gs");
        assert_eq!(status[328..], [0; 8], "pr_fpvalid");
    }

    #[test]
    fn qemu_state_has_registers_at_the_places_of_version_1() {
        let state = qemu_cpu_state(&registers());
        assert_eq!(state.len(), 440);
        assert_eq!((u32_at(&state, 0), u32_at(&state, 4)), (1, 440));
        assert_eq!(u64_at(&state, 8), 0xa, "rax");
        assert_eq!(u64_at(&state, 8 + 8 * 16), 0xffff_ffff_8100_0000, "rip");
        assert_eq!(u64_at(&state, 8 + 8 * 17), 0x246, "rflags");
        let segment = |index: usize| &state[152 + 24 * index..][..24];
        let cs = segment(0);
        assert_eq!(u32_at(cs, 0), 0x10);
        assert_eq!(u32_at(cs, 4), 0xffff_ffff);
        assert_eq!(u32_at(cs, 8), 0x00a0_9b00);
        assert_eq!(u64_at(segment(4), 16), 0x6565, "gs");
        assert_eq!(u32_at(segment(6), 8), 0, "an ldt that is not usable");
        let idt = segment(9);
        assert_eq!(u32_at(idt, 4), 0xfff);
        assert_eq!(u64_at(idt, 16), 0xffff_fe00_0000_0000);
        let control: [u64; 5] = std::array::from_fn(|index| u64_at(&state, 392 + 8 * index));
        assert_eq!(control, [0x8005_0033, 0, 0x2222, 0x3000, 0x44]);
        assert_eq!(u64_at(&state, 432), 0x1234_5678, "kernel_gs_base");
    }
}
