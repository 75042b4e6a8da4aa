//! The guest as the library of gdb's protocol wants to see it.

use std::num::NonZeroUsize;
use std::sync::mpsc;

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

use super::breakpoints::{Access, Breakpoint};
use super::registers;
use super::request::{Answer, DebugError, DebugRequest, Run, Stopped};
use crate::vm::Mailbox;

/// The owner of the machine is gone.
#[derive(Debug, thiserror::Error)]
#[error("the VMM has ended")]
pub(super) struct Gone;

/// The guest, by requests to the machine's owner.
pub(super) struct Guest {
    mailbox: Mailbox,
    pub(super) stopped: Stopped,
    run: Run,
    /// vCPUs that were named for the next run.
    named: Vec<u32>,
}

/// vCPUs count from 0, gdb's threads from 1.
pub(super) fn tid(vcpu: u32) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu as usize)
}

fn vcpu(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

impl Guest {
    pub(super) fn new(mailbox: Mailbox, stopped: Stopped) -> Self {
        Self {
            mailbox,
            stopped,
            run: Run::default(),
            named: Vec::new(),
        }
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask<T>(
        &self,
        request: impl FnOnce(Answer<T>) -> DebugRequest,
    ) -> Result<Result<T, DebugError>, Gone> {
        let (sender, answer) = mpsc::channel();
        self.mailbox.debug(request(sender));
        answer.recv().map_err(|_| Gone)
    }

    /// The same for what gdb may be told a refusal of.
    fn done<T>(&self, request: impl FnOnce(Answer<T>) -> DebugRequest) -> TargetResult<T, Self> {
        match self.ask(request) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the debugger is refused something");
                Err(TargetError::NonFatal)
            }
            Err(gone) => Err(TargetError::Fatal(gone)),
        }
    }

    fn insert(&self, breakpoint: Breakpoint) -> TargetResult<bool, Self> {
        match self.ask(|answer| DebugRequest::Insert(breakpoint, answer)) {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => {
                tracing::info!(%error, "the debugger's breakpoint cannot be set");
                Ok(false)
            }
            Err(gone) => Err(TargetError::Fatal(gone)),
        }
    }

    fn remove(&self, breakpoint: Breakpoint) -> TargetResult<bool, Self> {
        self.done(|answer| DebugRequest::Remove(breakpoint, answer))?;
        // One that went with the memory of a machine before this one is gone as well.
        Ok(true)
    }
}

impl Target for Guest {
    type Arch = X86_64_SSE;
    type Error = Gone;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, regs: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let state = self.done(|answer| DebugRequest::ReadRegisters(vcpu(tid), answer))?;
        *regs = registers::shown(&state);
        Ok(())
    }

    fn write_registers(&mut self, regs: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let state = self.done(|answer| DebugRequest::ReadRegisters(vcpu(tid), answer))?;
        let set = registers::set(&state, regs).map_err(|_| TargetError::NonFatal)?;
        self.done(|answer| DebugRequest::WriteRegisters(vcpu(tid), Box::new(set), answer))
    }

    fn read_addrs(
        &mut self,
        start_addr: u64,
        data: &mut [u8],
        tid: Tid,
    ) -> TargetResult<usize, Self> {
        let read = self
            .done(|answer| DebugRequest::ReadMemory(vcpu(tid), start_addr, data.len(), answer))?;
        data[..read.len()].copy_from_slice(&read);
        Ok(read.len())
    }

    fn write_addrs(&mut self, start_addr: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        self.done(|answer| DebugRequest::WriteMemory(vcpu(tid), start_addr, data.to_vec(), answer))
    }

    fn list_active_threads(
        &mut self,
        thread_is_active: &mut dyn FnMut(Tid),
    ) -> Result<(), Self::Error> {
        // A machine that has just ended has none.
        let vcpus = self.ask(DebugRequest::Vcpus)?.unwrap_or_default();
        vcpus.into_iter().map(tid).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Self::Error> {
        let run = self.run.clone();
        if let Err(error) = self.ask(|answer| DebugRequest::Run(run, answer))? {
            // gdb cannot be told here. The guest stays where it is, which an interrupt shows.
            tracing::warn!(%error, "the guest does not run on for the debugger");
        }
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        self.run = Run::default();
        self.named.clear();
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), Self::Error> {
        // A processor has no signals: gdb passes on the one that it was told of a stop.
        self.named.push(vcpu(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), Self::Error> {
        self.run.step.push(vcpu(tid));
        self.named.push(vcpu(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        self.run.only = Some(self.named.clone());
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.insert(Breakpoint::Software(addr))
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.remove(Breakpoint::Software(addr))
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.insert(Breakpoint::Hardware(addr))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.remove(Breakpoint::Hardware(addr))
    }
}

/// A watchpoint as a processor has it. One for reads alone would stop at writes, and is not to be had.
fn watch(address: u64, len: u64, kind: WatchKind) -> Option<Breakpoint> {
    let access = match kind {
        WatchKind::Write => Access::Write,
        WatchKind::ReadWrite => Access::Any,
        WatchKind::Read => return None,
    };
    Some(Breakpoint::Watch {
        address,
        len,
        access,
    })
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        watch(addr, len, kind).map_or(Ok(false), |watch| self.insert(watch))
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        watch(addr, len, kind).map_or(Ok(false), |watch| self.remove(watch))
    }
}
