//! Memory that comes and goes.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::units::{NEXT, SELECT, STATUS};
use super::units::{Units, UnitsState};
use super::{HotplugError, Port, Registers};
use crate::acpi::{Event, EventDevice};
use crate::bus::BusDevice;
use crate::platform::Platform;
use crate::state::{Persist, Section, StateError};

const KIND: &str = "acpi-memory";
const VERSION: u16 = 1;
const PLACE: &str = "memory slot";

/// Offset of bits 0 to 31 of the first address of the memory in the selected slot; read-only, as are the three after
/// it.
pub const BASE_LOW: u64 = 0x10;
/// Offset of bits 32 to 63 of the first address.
pub const BASE_HIGH: u64 = 0x14;
/// Offset of bits 0 to 31 of the length in bytes.
pub const LEN_LOW: u64 = 0x18;
/// Offset of bits 32 to 63 of the length.
pub const LEN_HIGH: u64 = 0x1c;
/// Bytes of registers.
pub const REGISTERS_LEN: u64 = 0x20;

/// Slots for memory, each for one range: registers [`SELECT`], [`STATUS`], [`NEXT`], and [`BASE_LOW`] to [`LEN_HIGH`]. It
/// raises [`Event::Memory`].
#[derive(Clone)]
pub struct MemorySlots {
    port: Port<Slots>,
}

struct Slots {
    units: Units,
    /// What is or was in each slot.
    ranges: Vec<Range<u64>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    units: UnitsState,
    /// First address and first address after it, for each slot.
    ranges: Vec<(u64, u64)>,
}

impl MemorySlots {
    /// `count` empty slots.
    pub fn new(count: u8, events: EventDevice, platform: Arc<dyn Platform>) -> Self {
        let slots = Slots {
            units: Units::new(PLACE, count.into(), 0, 0),
            ranges: vec![0..0; count.into()],
        };
        Self {
            port: Port::new(slots, Event::Memory, events, platform),
        }
    }

    /// Plugs the memory at these guest physical addresses into the first free slot, tells the guest, and gives the
    /// slot. The memory has to be there already.
    ///
    /// # Errors
    ///
    /// [`HotplugError::Full`] or [`HotplugError::EmptyRange`], and nothing changed; or [`HotplugError::Notify`].
    pub fn plug(&self, range: Range<u64>) -> Result<u32, HotplugError> {
        self.port.change(|slots| {
            if range.is_empty() {
                return Err(HotplugError::EmptyRange {
                    start: range.start,
                    end: range.end,
                });
            }
            let slot = slots.units.free()?;
            slots.units.plug(slot)?;
            slots.ranges[slot as usize] = range;
            Ok(slot)
        })
    }

    /// Asks the guest to give up the memory in `slot`. Asking again reminds a guest that did not.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Empty`], and nothing changed; or [`HotplugError::Notify`].
    pub fn request_unplug(&self, slot: u32) -> Result<(), HotplugError> {
        self.port.change(|slots| slots.units.request_unplug(slot))
    }

    /// Takes the memory in `slot` away without asking the guest.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Empty`]; nothing changed.
    pub fn withdraw(&self, slot: u32) -> Result<(), HotplugError> {
        self.port.registers().units.withdraw(slot)
    }

    /// The slots that the guest ejected since the last call, in order, and the memory that was in each. They are free
    /// from then on.
    pub fn take_ejected(&self) -> Vec<(u32, Range<u64>)> {
        let Slots { units, ranges } = &mut *self.port.registers();
        let ejected = units.take_ejected().into_iter();
        ejected
            .map(|slot| (slot, ranges[slot as usize].clone()))
            .collect()
    }

    /// The slots that hold memory, in order, and the memory in each: what a restored machine has to have.
    pub fn plugged(&self) -> Vec<(u32, Range<u64>)> {
        let Slots { units, ranges } = &*self.port.registers();
        (0..)
            .zip(ranges)
            .filter(|(slot, _)| units.is_present(*slot))
            .map(|(slot, range)| (slot, range.clone()))
            .collect()
    }
}

impl Registers for Slots {
    fn read(&self, offset: u64) -> Option<u32> {
        let range = self
            .units
            .selected()
            .map_or(0..0, |slot| self.ranges[slot].clone());
        let len = range.end - range.start;
        match offset {
            BASE_LOW => Some(range.start as u32),
            BASE_HIGH => Some((range.start >> 32) as u32),
            LEN_LOW => Some(len as u32),
            LEN_HIGH => Some((len >> 32) as u32),
            _ => self.units.read(offset),
        }
    }

    fn write(&mut self, offset: u64, value: u32) -> bool {
        self.units.write(offset, value)
    }
}

impl BusDevice for MemorySlots {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.port.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.port.write(offset, data);
    }
}

impl Persist for MemorySlots {
    fn save(&self) -> Section {
        let Self { port } = self;
        let Slots { units, ranges } = &*port.registers();
        let state = State {
            units: units.save(),
            ranges: ranges
                .iter()
                .map(|range| (range.start, range.end))
                .collect(),
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State { units, ranges } = section.decode(KIND, VERSION)?;
        let mut slots = self.port.registers();
        let field = |value, expected: &str| StateError::Field {
            kind: KIND,
            field: "ranges",
            value,
            expected: expected.to_owned(),
        };
        if ranges.len() != slots.ranges.len() {
            let expected = format!("{}", slots.ranges.len());
            return Err(field(format!("{} of them", ranges.len()), &expected));
        }
        if let Some((start, end)) = ranges.iter().find(|(start, end)| start > end) {
            return Err(field(
                format!("{start:#x} to {end:#x}"),
                "ascending addresses",
            ));
        }
        let empty = |(present, (start, end)): (bool, &(u64, u64))| present && start == end;
        if units.present().zip(&ranges).any(empty) {
            return Err(field("empty".to_owned(), "an address for all memory"));
        }
        let ejected = slots.units.restore(KIND, units)?;
        slots.ranges = ranges.into_iter().map(|(start, end)| start..end).collect();
        drop(slots);
        // The owner that was woken may have gone with the machine that was saved.
        if ejected {
            self.port.wake_owner();
        }
        Ok(())
    }
}
