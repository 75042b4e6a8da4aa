//! What a debugger does to the machine.

use std::collections::VecDeque;

use api::request::VmState;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::live::Live;
use super::{Control, Outcome, Slot};
use crate::gdb::breakpoints::{Breakpoint, Breakpoints};
use crate::gdb::request::{CpuState, DebugError, DebugRequest, Run, Stop, Stops};
use crate::vm::machine::{Hold, Machine};
use crate::vm::notices::Stopped;

/// Addresses are translated by pages of this size.
const PAGE: u64 = 4096;

/// The most that is read at once: gdb asks for less.
const MAX_READ: usize = 1 << 20;

/// The debugger, as far as there is one.
#[derive(Debug, Default)]
pub(super) struct Debugger {
    /// A machine that boots waits for one.
    awaited: bool,
    stops: Option<Stops>,
    breakpoints: Breakpoints,
    /// vCPUs that stop after one instruction.
    steps: Vec<u32>,
    /// The vCPU of the last stop, by whose eyes breakpoints are placed.
    vcpu: u32,
    /// Accesses to watched data that were made while the debugger was told of something else.
    missed: VecDeque<Stop>,
}

impl Debugger {
    pub(super) fn new(awaited: bool) -> Self {
        Self {
            awaited,
            ..Self::default()
        }
    }

    /// Prepares a machine that was just built. `boots` unless it takes the place of one that the guest has reset.
    pub(super) fn prepare(&mut self, machine: &mut Machine, boots: bool, held: bool) {
        self.breakpoints.forget_memory();
        self.steps.clear();
        self.missed.clear();
        if (boots && self.awaited) || held {
            machine.hold = Hold::ALL;
        }
        let control = self.breakpoints.control(false);
        if control.control != 0
            && let Err(error) = machine.vcpus.debug(control, &[])
        {
            tracing::warn!(%error, "hardware breakpoints are lost");
        }
    }

    /// The machine is no more.
    pub(super) fn machine_ended(&mut self) {
        self.breakpoints.forget_memory();
        if let Some(stops) = self.stops.take() {
            stops.tell(Stop::Ended);
        }
    }

    fn steps(&self, vcpu: u32) -> bool {
        self.steps.contains(&vcpu)
    }
}

impl Machine {
    /// Whether a debugger holds all vCPUs.
    pub(in crate::vm) fn is_held(&self) -> bool {
        self.hold == Hold::ALL
    }

    /// Takes the vCPUs out of the guest, if the machine `runs`, and keeps them out.
    fn hold_for(&mut self, runs: bool) {
        if runs {
            self.hold_vcpus();
        } else {
            self.hold = Hold::ALL;
        }
    }

    fn read_memory(&self, vcpu: u32, start: u64, len: usize) -> Result<Vec<u8>, DebugError> {
        let mut read = vec![0; len.min(MAX_READ)];
        let mut done = 0;
        let memory = self.memory.map.memory();
        while done < read.len() {
            let Some(address) = start.checked_add(done as u64) else {
                break;
            };
            let part = ((PAGE - address % PAGE) as usize).min(read.len() - done);
            let physical = self.vcpus.ask(vcpu, move |vcpu| vcpu.translate(address))?;
            let slice = &mut read[done..done + part];
            let mapped = physical
                .is_some_and(|physical| memory.read_slice(slice, GuestAddress(physical)).is_ok());
            if !mapped {
                break;
            }
            done += part;
        }
        if done == 0 && len > 0 {
            return Err(DebugError::Unmapped(start));
        }
        read.truncate(done);
        Ok(read)
    }

    fn write_memory(&self, vcpu: u32, start: u64, bytes: &[u8]) -> Result<(), DebugError> {
        let memory = self.memory.map.memory();
        let mut parts = Vec::new();
        let mut done = 0;
        // All of it is there, or nothing is written.
        while done < bytes.len() {
            let address = start.wrapping_add(done as u64);
            let part = ((PAGE - address % PAGE) as usize).min(bytes.len() - done);
            let unmapped = || DebugError::Unmapped(address);
            let physical = self.vcpus.ask(vcpu, move |vcpu| vcpu.translate(address))?;
            let physical = GuestAddress(physical.ok_or_else(unmapped)?);
            let mut before = vec![0; part];
            memory
                .read_slice(&mut before, physical)
                .map_err(|_| unmapped())?;
            parts.push((physical, done..done + part));
            done += part;
        }
        for (physical, part) in parts {
            memory
                .write_slice(&bytes[part], physical)
                .map_err(|_| DebugError::Unmapped(start))?;
        }
        Ok(())
    }
}

impl Control {
    /// Carries out `request`. Whoever asked may have gone: nobody minds an answer that is not taken.
    pub(super) fn debug(&mut self, request: DebugRequest) {
        match request {
            DebugRequest::Attach(stops, answer) => {
                let _ = answer.send(self.attach(stops));
            }
            DebugRequest::Detach => self.detach(),
            DebugRequest::Kill => {
                self.detach();
                if matches!(self.slot, Slot::Live(_)) {
                    self.guest_ended(Outcome::Stopped);
                }
            }
            DebugRequest::Interrupt(answer) => {
                let vcpu = self.debugger.vcpu;
                let held = self.debugged().map(|(live, _)| {
                    let runs = live.running().is_some();
                    live.parts().0.hold_for(runs);
                    vcpu
                });
                let _ = answer.send(held);
            }
            DebugRequest::Run(run, answer) => {
                let _ = answer.send(self.run_on(run));
            }
            DebugRequest::Vcpus(answer) => {
                let vcpus = self.debugged();
                let _ =
                    answer.send(vcpus.map(|(live, _)| live.machine().vcpus.plugged().collect()));
            }
            DebugRequest::ReadRegisters(vcpu, answer) => {
                let _ = answer.send(self.ask(|machine| {
                    let state = machine.vcpus.ask(vcpu, |vcpu| {
                        let (registers, fpu) = (vcpu.registers()?, vcpu.fpu()?);
                        Ok(CpuState { registers, fpu })
                    });
                    Ok(state?)
                }));
            }
            DebugRequest::WriteRegisters(vcpu, registers, answer) => {
                let _ = answer.send(self.ask(|machine| {
                    let (general, fpu) = *registers;
                    let set = machine
                        .vcpus
                        .ask(vcpu, move |vcpu| vcpu.set_registers(&general, &fpu));
                    Ok(set?)
                }));
            }
            DebugRequest::ReadMemory(vcpu, address, len, answer) => {
                let _ = answer.send(self.ask(|machine| machine.read_memory(vcpu, address, len)));
            }
            DebugRequest::WriteMemory(vcpu, address, bytes, answer) => {
                let _ =
                    answer.send(self.ask(|machine| machine.write_memory(vcpu, address, &bytes)));
            }
            DebugRequest::Insert(breakpoint, answer) => {
                let _ = answer.send(self.insert(breakpoint));
            }
            DebugRequest::Remove(breakpoint, answer) => {
                let removed = self.debugged().map(|(live, debugger)| {
                    let memory = live.machine().memory.map.memory();
                    debugger.breakpoints.remove(breakpoint, &memory)
                });
                let _ = answer.send(removed);
            }
        }
    }

    /// The machine, and the debugger's part in it.
    fn debugged(&mut self) -> Result<(&mut Live, &mut Debugger), DebugError> {
        match &mut self.slot {
            Slot::Live(live) => Ok((live, &mut self.debugger)),
            _ => Err(DebugError::NoMachine),
        }
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&Machine) -> Result<T, DebugError>,
    ) -> Result<T, DebugError> {
        let (live, _) = self.debugged()?;
        question(live.machine())
    }

    fn attach(&mut self, stops: Stops) -> Result<(), DebugError> {
        let (live, debugger) = self.debugged()?;
        let runs = live.running().is_some();
        live.parts().0.hold_for(runs);
        debugger.stops = Some(stops);
        debugger.vcpu = 0;
        self.events.publish("vm", "debugger-attached", &[]);
        Ok(())
    }

    /// Lets the guest run as if there had never been a debugger.
    fn detach(&mut self) {
        if self.debugger.stops.take().is_none() {
            return;
        }
        let notices = std::sync::Arc::clone(&self.notices);
        if let Ok((live, debugger)) = self.debugged() {
            let runs = live.running().is_some();
            let (machine, _, _) = live.parts();
            machine.hold_for(runs);
            // Stops that nobody wants to hear of any more. The vCPUs run on from there.
            notices.take_stops();
            debugger.breakpoints.clear(&machine.memory.map.memory());
            debugger.steps.clear();
            debugger.missed.clear();
            if let Err(error) = machine
                .vcpus
                .debug(debugger.breakpoints.control(false), &[])
            {
                tracing::warn!(%error, "breakpoints of the debugger stay");
            }
            machine.hold = Hold::None;
            if runs {
                machine.resume_vcpus();
            }
            self.events.publish("vm", "debugger-detached", &[]);
        }
    }

    fn insert(&mut self, breakpoint: Breakpoint) -> Result<(), DebugError> {
        let (live, debugger) = self.debugged()?;
        let Breakpoint::Software(address) = breakpoint else {
            return Ok(debugger.breakpoints.insert_hardware(breakpoint)?);
        };
        let machine = live.machine();
        let physical = machine
            .vcpus
            .ask(debugger.vcpu, move |vcpu| vcpu.translate(address))?
            .ok_or(DebugError::Unmapped(address))?;
        let memory = machine.memory.map.memory();
        Ok(debugger
            .breakpoints
            .insert_software(address, physical, &memory)?)
    }

    fn run_on(&mut self, run: Run) -> Result<(), DebugError> {
        let (live, debugger) = self.debugged()?;
        if let (Some(missed), Some(stops)) = (debugger.missed.pop_front(), &debugger.stops) {
            stops.tell(missed);
            return Ok(());
        }
        let Run { step, only } = run;
        let single = debugger.breakpoints.control(true);
        let steps: Vec<_> = step.iter().map(|vcpu| (*vcpu, single)).collect();
        debugger.steps = step;
        let runs = live.running().is_some();
        let (machine, _, _) = live.parts();
        machine
            .vcpus
            .debug(debugger.breakpoints.control(false), &steps)?;
        machine.hold = only.map_or(Hold::None, Hold::Except);
        if runs {
            machine.resume_vcpus();
        }
        Ok(())
    }

    /// vCPUs have stopped for the debugger, or at something that looks alike.
    pub(super) fn vcpus_stopped(&mut self, stops: &[Stopped]) {
        for stopped in stops {
            let Stopped { vcpu, at } = *stopped;
            let Ok((live, debugger)) = self.debugged() else {
                return;
            };
            let stop = debugger.breakpoints.stop(vcpu, debugger.steps(vcpu), &at);
            let runs = live.running().is_some();
            let (machine, _, _) = live.parts();
            match (stop, &debugger.stops) {
                // Held already: the debugger is told of one stop at a time. A vCPU at a breakpoint stops there again.
                (Some(stop @ Stop::Watch { .. }), Some(_)) if machine.is_held() => {
                    debugger.missed.push_back(stop);
                }
                (Some(_), Some(_)) if machine.is_held() => {}
                (Some(stop), Some(told)) => {
                    machine.hold_for(runs);
                    debugger.vcpu = vcpu;
                    told.tell(stop);
                    self.events.publish("vm", "breakpoint", &[]);
                }
                _ => {
                    let control = debugger.breakpoints.control_with(debugger.steps(vcpu), &at);
                    let passed_on = machine.vcpus.ask(vcpu, move |vcpu| vcpu.debug(&control));
                    if let Err(error) = passed_on {
                        tracing::warn!(%error, "an exception of the guest's own is lost");
                    }
                    if runs {
                        machine.resume_vcpu(vcpu);
                    }
                }
            }
        }
    }

    /// Whether the machine stands still for a debugger.
    pub(super) fn is_held(&self) -> bool {
        matches!(&self.slot, Slot::Live(live) if live.vm_state() == VmState::BreakPoint)
    }
}
