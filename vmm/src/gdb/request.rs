//! What a debugger asks of the machine's owner.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use kvm_bindings::{kvm_fpu, kvm_regs};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::breakpoints::{Breakpoint, BreakpointError};
use crate::kvm::vcpu::{Registers, VcpuError};

/// Why something could not be done for the debugger.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// There is nothing to be debugged.
    #[error("no VM is booted")]
    NoMachine,
    /// The address leads to no memory.
    #[error("there is no memory at {0:#x}")]
    Unmapped(u64),
    /// A breakpoint cannot be had.
    #[error(transparent)]
    Breakpoint(#[from] BreakpointError),
    /// KVM refused.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// Where an answer goes.
pub type Answer<T> = Sender<Result<T, DebugError>>;

/// The registers of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuState {
    /// General and segment registers.
    pub registers: Registers,
    /// Floating point and SSE registers.
    pub fpu: kvm_fpu,
}

/// How the guest goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// vCPUs that stop again after one instruction.
    pub step: Vec<u32>,
    /// The only vCPUs that run; all do if there is no such list.
    pub only: Option<Vec<u32>>,
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The vCPU is at a breakpoint in memory.
    Software(u32),
    /// The vCPU is at a hardware breakpoint.
    Hardware(u32),
    /// The vCPU has accessed what is watched.
    Watch {
        /// Its number.
        vcpu: u32,
        /// The watchpoint.
        breakpoint: Breakpoint,
    },
    /// The vCPU has done one instruction.
    Step(u32),
    /// The machine is no more.
    Ended,
}

/// One thing to do.
pub enum DebugRequest {
    /// A debugger is there: stop the guest, and tell of later stops.
    Attach(Stops, Answer<()>),
    /// It goes: forget its breakpoints, and let the guest run.
    Detach,
    /// It wants the guest to end.
    Kill,
    /// Stop the guest, and tell which vCPU to look at.
    Interrupt(Answer<u32>),
    /// Let it go on.
    Run(Run, Answer<()>),
    /// Tell the numbers of the vCPUs.
    Vcpus(Answer<Vec<u32>>),
    /// Tell what the registers of a vCPU hold.
    ReadRegisters(u32, Answer<CpuState>),
    /// Set the registers of a vCPU.
    WriteRegisters(u32, Box<(kvm_regs, kvm_fpu)>, Answer<()>),
    /// Read memory as a vCPU sees it: vCPU, first address, length. What cannot be read is left off at the end.
    ReadMemory(u32, u64, usize, Answer<Vec<u8>>),
    /// Write memory as a vCPU sees it, all of it or nothing.
    WriteMemory(u32, u64, Vec<u8>, Answer<()>),
    /// Add a breakpoint.
    Insert(Breakpoint, Answer<()>),
    /// Take a breakpoint away. Tells whether it was there.
    Remove(Breakpoint, Answer<bool>),
}

/// The owner's end of stops.
#[derive(Clone, Debug)]
pub struct Stops {
    stops: Sender<Stop>,
    wake: Arc<EventFd>,
}

impl Stops {
    /// Tells of a stop.
    pub fn tell(&self, stop: Stop) {
        // A debugger that has gone needs no telling.
        if self.stops.send(stop).is_ok() {
            // A full counter is readable all the same.
            let _ = self.wake.write(1);
        }
    }
}

/// The debugger's end of stops.
#[derive(Debug)]
pub(super) struct Stopped {
    stops: Receiver<Stop>,
    wake: Arc<EventFd>,
}

impl Stopped {
    /// A way for stops.
    pub(super) fn new() -> io::Result<(Stops, Self)> {
        let (sender, stops) = mpsc::channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let told = Stops {
            stops: sender,
            wake: Arc::clone(&wake),
        };
        Ok((told, Self { stops, wake }))
    }

    /// Readable while there is a stop.
    pub(super) fn eventfd(&self) -> &EventFd {
        &self.wake
    }

    /// The next stop, if there is one.
    pub(super) fn next(&self) -> Option<Stop> {
        // Emptied first: what is told from here on makes it readable again.
        let _ = self.wake.read();
        let stop = self.stops.try_recv().ok();
        if stop.is_some() {
            // There may be more.
            let _ = self.wake.write(1);
        }
        stop
    }
}
