//! Registers as gdb and as KVM have them.

use gdbstub_arch::x86::reg::X86_64CoreRegs;
use kvm_bindings::{kvm_fpu, kvm_regs};

use super::request::CpuState;
use crate::kvm::vcpu::Registers;

/// A register that a debugger cannot set.
#[derive(Debug, thiserror::Error)]
#[error("segment registers cannot be set")]
pub(super) struct Fixed;

/// What gdb shows of `state`.
pub(super) fn shown(state: &CpuState) -> X86_64CoreRegs {
    let CpuState {
        registers: Registers {
            general, special, ..
        },
        fpu,
    } = state;
    let mut shown = X86_64CoreRegs {
        regs: [
            general.rax,
            general.rbx,
            general.rcx,
            general.rdx,
            general.rsi,
            general.rdi,
            general.rbp,
            general.rsp,
            general.r8,
            general.r9,
            general.r10,
            general.r11,
            general.r12,
            general.r13,
            general.r14,
            general.r15,
        ],
        // The upper half is reserved.
        eflags: general.rflags as u32,
        rip: general.rip,
        mxcsr: fpu.mxcsr,
        ..X86_64CoreRegs::default()
    };
    let segments = &mut shown.segments;
    segments.cs = special.cs.selector.into();
    segments.ss = special.ss.selector.into();
    segments.ds = special.ds.selector.into();
    segments.es = special.es.selector.into();
    segments.fs = special.fs.selector.into();
    segments.gs = special.gs.selector.into();
    for (st, register) in shown.st.iter_mut().zip(&fpu.fpr) {
        st.copy_from_slice(&register[..10]);
    }
    shown.fpu.fctrl = fpu.fcw.into();
    shown.fpu.fstat = fpu.fsw.into();
    // Of two bits for each register KVM has one: whether it is in use.
    shown.fpu.ftag = (0..8)
        .filter(|register| fpu.ftwx & 1 << register == 0)
        .fold(0, |tags, register| tags | 0b11 << (2 * register));
    shown.fpu.fop = fpu.last_opcode.into();
    shown.fpu.fioff = fpu.last_ip as u32;
    shown.fpu.fooff = fpu.last_dp as u32;
    for (xmm, register) in shown.xmm.iter_mut().zip(&fpu.xmm) {
        *xmm = u128::from_le_bytes(*register);
    }
    shown
}

/// What KVM is told after gdb has made `wanted` of `state`.
pub(super) fn set(state: &CpuState, wanted: &X86_64CoreRegs) -> Result<(kvm_regs, kvm_fpu), Fixed> {
    let before = shown(state);
    // A selector without the descriptor behind it would be half a change.
    if wanted.segments != before.segments {
        return Err(Fixed);
    }
    let [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        rsp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = wanted.regs;
    let general = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: wanted.rip,
        rflags: wanted.eflags.into(),
    };
    let mut fpu = state.fpu;
    for (register, st) in fpu.fpr.iter_mut().zip(&wanted.st) {
        register[..10].copy_from_slice(st);
    }
    fpu.fcw = wanted.fpu.fctrl as u16;
    fpu.fsw = wanted.fpu.fstat as u16;
    if wanted.fpu.ftag != before.fpu.ftag {
        fpu.ftwx = (0..8)
            .filter(|register| wanted.fpu.ftag >> (2 * register) & 0b11 != 0b11)
            .fold(0, |tags, register| tags | 1 << register);
    }
    for (register, xmm) in fpu.xmm.iter_mut().zip(&wanted.xmm) {
        *register = xmm.to_le_bytes();
    }
    fpu.mxcsr = wanted.mxcsr;
    Ok((general, fpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> CpuState {
        let mut state = CpuState {
            registers: Registers::default(),
            fpu: kvm_fpu::default(),
        };
        state.registers.general.rax = 1;
        state.registers.general.rsp = 8;
        state.registers.general.r15 = 15;
        state.registers.general.rip = 0xffff_ffff_8100_0000;
        state.registers.general.rflags = 2;
        state.registers.special.cs.selector = 0x10;
        state.fpu.fpr[7][9] = 0x40;
        state.fpu.ftwx = 0x80;
        state.fpu.xmm[15][15] = 0x77;
        state.fpu.mxcsr = 0x1f80;
        state
    }

    #[test]
    fn registers_are_where_gdb_looks_for_them() {
        let shown = shown(&state());
        assert_eq!((shown.regs[0], shown.regs[7], shown.regs[15]), (1, 8, 15));
        assert_eq!(shown.rip, 0xffff_ffff_8100_0000);
        assert_eq!(shown.segments.cs, 0x10);
        assert_eq!(shown.st[7][9], 0x40);
        assert_eq!(shown.fpu.ftag, 0x3fff);
        assert_eq!(shown.xmm[15] >> 120, 0x77);
    }

    #[test]
    fn what_was_not_changed_stays() {
        let state = state();
        let (general, fpu) = set(&state, &shown(&state)).unwrap();
        assert_eq!(general, state.registers.general);
        assert_eq!(fpu, state.fpu);
    }

    #[test]
    fn changes_reach_kvm_and_those_of_segments_are_refused() {
        let state = state();
        let mut wanted = shown(&state);
        wanted.rip = 0x1000;
        wanted.regs[7] = 9;
        wanted.xmm[0] = 5;
        wanted.fpu.ftag = 0;
        let (general, fpu) = set(&state, &wanted).unwrap();
        assert_eq!((general.rip, general.rsp), (0x1000, 9));
        assert_eq!((fpu.xmm[0][0], fpu.ftwx), (5, 0xff));
        wanted.segments.cs = 0x18;
        assert!(set(&state, &wanted).is_err());
    }
}
