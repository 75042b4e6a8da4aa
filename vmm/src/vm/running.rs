//! A machine that runs.

use std::io;

use devices::acpi::Event;
use devices::memory::GuestRam;

use super::machine::Machine;
use super::paused::Paused;

/// A machine whose vCPUs are in the guest, or wait in it.
pub struct Running {
    machine: Machine,
}

impl Running {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// Stops the machine where it is: first the vCPUs, each between two instructions, so that no device gets anything
    /// new to do; then the devices, which finish what they have begun and hand their queues back.
    pub fn pause(mut self) -> Paused {
        self.machine.pause_vcpus();
        self.machine.pause_devices();
        Paused::new(self.machine)
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

    /// Presses the ACPI power button.
    ///
    /// # Errors
    ///
    /// The interrupt could not be raised.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.machine.events.notify(Event::PowerButton)
    }

    /// Whether the guest has not looked at an event yet.
    pub fn has_pending_events(&self) -> bool {
        self.machine.events.is_pending()
    }

    /// Tells the guest again of events that it has not looked at: one that still boots may have missed them.
    ///
    /// # Errors
    ///
    /// The interrupt could not be raised.
    pub fn remind_of_events(&self) -> io::Result<()> {
        self.machine.events.remind()
    }
}
