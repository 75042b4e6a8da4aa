//! Registers by which the guest's ACPI code hears of what was plugged in, and gives up what shall go.
//!
//! The machine's owner tells [`PciSlots`], [`CpuSlots`] or [`MemorySlots`] what came and what shall go; they raise
//! their [`Event`]. The guest's ACPI code then looks through the registers, tells its operating system, and writes the eject
//! register once that has let go. From this write on the thing is absent for the guest, and the owner, which a
//! [`PlatformEvent::Ejected`] wakes, takes the list of what was ejected and frees what is behind it. A guest may eject
//! what nobody asked it for, as `echo 0 > /sys/bus/pci/slots/N/power` of Linux does; that is on the list as well.
//!
//! Clones of a device are the same device: one goes on the bus, another stays with the owner. All registers have 32
//! bits and answer only to accesses of all four bytes at their offset; the others read as an empty bus does.

pub mod cpu;
pub mod memory;
pub mod pci;
pub mod units;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use cpu::CpuSlots;
pub use memory::MemorySlots;
pub use pci::PciSlots;

use super::{Event, EventDevice};
use crate::platform::{Platform, PlatformEvent};

/// What the owner asks for and cannot have.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// There is no such place.
    #[error("{place} {index} does not exist, expected {first} to {last}")]
    NoPlace {
        /// What the place is called.
        place: &'static str,
        /// Its number.
        index: u32,
        /// The first one.
        first: u32,
        /// The last one.
        last: u32,
    },
    /// Something is there, or was ejected and not taken yet.
    #[error("{place} {index} is taken")]
    Taken {
        /// What the place is called.
        place: &'static str,
        /// Its number.
        index: u32,
    },
    /// All places are taken.
    #[error("all {count} {place}s are taken")]
    Full {
        /// What the places are called.
        place: &'static str,
        /// How many there are.
        count: u32,
    },
    /// Nothing is there.
    #[error("{place} {index} is empty")]
    Empty {
        /// What the place is called.
        place: &'static str,
        /// Its number.
        index: u32,
    },
    /// What is there stays as long as the machine.
    #[error("{place} {index} cannot be removed")]
    Fixed {
        /// What the place is called.
        place: &'static str,
        /// Its number.
        index: u32,
    },
    /// A range without an address.
    #[error("memory from {start:#x} to {end:#x} is empty")]
    EmptyRange {
        /// First address.
        start: u64,
        /// First address after the range.
        end: u64,
    },
    /// The interrupt could not be raised. What was asked for is done, and the guest sees it with the next event.
    #[error("the guest cannot be told of the change")]
    Notify(#[source] std::io::Error),
}

/// The registers of one device, as the guest reads and writes them.
trait Registers: Send {
    /// The register at `offset`, if there is one that can be read.
    fn read(&self, offset: u64) -> Option<u32>;

    /// Takes a write, and tells whether the guest ejected something by it.
    fn write(&mut self, offset: u64, value: u32) -> bool;
}

/// Registers between the guest and the owner, and the way to each.
struct Port<R> {
    shared: Arc<Shared<R>>,
}

struct Shared<R> {
    registers: Mutex<R>,
    event: Event,
    events: EventDevice,
    platform: Arc<dyn Platform>,
}

impl<R> Clone for Port<R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<R: Registers> Port<R> {
    fn new(registers: R, event: Event, events: EventDevice, platform: Arc<dyn Platform>) -> Self {
        Self {
            shared: Arc::new(Shared {
                registers: Mutex::new(registers),
                event,
                events,
                platform,
            }),
        }
    }

    fn registers(&self) -> MutexGuard<'_, R> {
        let registers = self.shared.registers.lock();
        registers.unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers and has the guest look at them.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut R) -> Result<T, HotplugError>,
    ) -> Result<T, HotplugError> {
        // The registers first: the guest may read them as soon as the event is raised.
        let changed = change(&mut self.registers())?;
        let events = &self.shared.events;
        events
            .notify(self.shared.event)
            .map_err(HotplugError::Notify)?;
        Ok(changed)
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Ok(register) = <&mut [u8; 4]>::try_from(data)
            && let Some(value) = self.registers().read(offset)
        {
            *register = value.to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(value) = <[u8; 4]>::try_from(data)
            && self.registers().write(offset, u32::from_le_bytes(value))
        {
            self.wake_owner();
        }
    }

    fn wake_owner(&self) {
        self.shared.platform.raise(PlatformEvent::Ejected);
    }
}

#[cfg(test)]
mod tests;
