//! A machine that stands still.

use std::io;

use devices::acpi::Event;
use devices::memory::GuestRam;
use vm_memory::GuestMemoryError;

use super::machine::Machine;
use super::running::Running;
use crate::wire::generation::Generation;

/// A guest that cannot be told of its generation.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// Its memory cannot be written.
    #[error("cannot write the generation to guest memory")]
    Memory(#[from] GuestMemoryError),
    /// The interrupt could not be raised.
    #[error("cannot tell the guest of its generation")]
    Interrupt(#[from] io::Error),
}

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

    /// Gives a machine that goes on from a saved state another generation, and tells the guest, which makes new keys of
    /// what it took for random. The resources of the machine have to have the same one, for when the guest starts anew.
    ///
    /// # Errors
    ///
    /// [`GenerationError`]; the machine must not run then.
    pub fn set_generation(&self, generation: &Generation) -> Result<(), GenerationError> {
        self.machine.write_generation(generation)?;
        self.machine.events.notify(Event::Generation)?;
        Ok(())
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
