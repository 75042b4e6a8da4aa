//! vCPUs that come and go.

use std::sync::Arc;

#[cfg(doc)]
use super::units::{NEXT, SELECT, STATUS};
use super::units::{Units, UnitsState};
use super::{HotplugError, Port, Registers};
use crate::acpi::{Event, EventDevice};
use crate::bus::BusDevice;
use crate::platform::Platform;
use crate::state::{Persist, Section, StateError};

const KIND: &str = "acpi-cpus";
const VERSION: u16 = 1;
const PLACE: &str = "vCPU";
/// The vCPU that the machine starts on stays.
const FIRST_REMOVABLE: u32 = 1;

/// Bytes of registers.
pub const REGISTERS_LEN: u64 = 0xc;

/// All vCPUs that there can be, by their numbers: registers [`SELECT`], [`STATUS`] and [`NEXT`]. vCPU 0
/// is never ejected. It raises [`Event::Cpu`].
#[derive(Clone)]
pub struct CpuSlots {
    port: Port<Cpus>,
}

struct Cpus(Units);

impl CpuSlots {
    /// Registers of a machine that boots with the first `boot` of at most `max` vCPUs.
    pub fn new(boot: u32, max: u32, events: EventDevice, platform: Arc<dyn Platform>) -> Self {
        let cpus = Cpus(Units::new(PLACE, max, boot, FIRST_REMOVABLE));
        Self {
            port: Port::new(cpus, Event::Cpu, events, platform),
        }
    }

    /// Plugs vCPU `index` in and tells the guest, which may start it right away.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Taken`], and nothing changed; or [`HotplugError::Notify`].
    pub fn plug(&self, index: u32) -> Result<(), HotplugError> {
        self.port.change(|cpus| cpus.0.plug(index))
    }

    /// Asks the guest to give vCPU `index` up. Asking again reminds a guest that did not.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`], [`HotplugError::Empty`] or [`HotplugError::Fixed`], and nothing changed; or
    /// [`HotplugError::Notify`].
    pub fn request_unplug(&self, index: u32) -> Result<(), HotplugError> {
        self.port.change(|cpus| cpus.0.request_unplug(index))
    }

    /// Takes vCPU `index` away without asking the guest.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`], [`HotplugError::Empty`] or [`HotplugError::Fixed`]; nothing changed.
    pub fn withdraw(&self, index: u32) -> Result<(), HotplugError> {
        self.port.registers().0.withdraw(index)
    }

    /// The vCPUs that the guest ejected since the last call, in order. They can be plugged again from then on.
    pub fn take_ejected(&self) -> Vec<u32> {
        self.port.registers().0.take_ejected()
    }
}

impl Registers for Cpus {
    fn read(&self, offset: u64) -> Option<u32> {
        self.0.read(offset)
    }

    fn write(&mut self, offset: u64, value: u32) -> bool {
        self.0.write(offset, value)
    }
}

impl BusDevice for CpuSlots {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.port.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.port.write(offset, data);
    }
}

impl Persist for CpuSlots {
    fn save(&self) -> Section {
        let Self { port } = self;
        let Cpus(units) = &*port.registers();
        Section::new(KIND, VERSION, &units.save())
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: UnitsState = section.decode(KIND, VERSION)?;
        let ejected = self.port.registers().0.restore(KIND, state)?;
        // The owner that was woken may have gone with the machine that was saved.
        if ejected {
            self.port.wake_owner();
        }
        Ok(())
    }
}
