//! A machine that stands still.

use devices::memory::GuestRam;

use super::machine::Machine;
use super::running::Running;

/// A machine whose vCPUs and devices do nothing: one that was just built, or was paused. Its memory and the state of
/// its devices change no more.
pub struct Paused {
    machine: Machine,
}

impl Paused {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// Lets the machine run on: first the devices, which find what was left in their queues, then the vCPUs.
    pub fn resume(mut self) -> Running {
        self.machine.resume_devices();
        self.machine.resume_vcpus();
        Running::new(self.machine)
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestRam {
        &self.machine.memory.map
    }
}
