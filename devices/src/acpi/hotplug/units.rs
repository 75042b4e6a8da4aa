//! Numbered things behind one window of registers, of which one is selected.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::HotplugError;
use crate::state::StateError;

/// Offset of the number of the thing that the other registers are about. A number that is too large selects nothing:
/// the other registers then read 0 and take no write.
pub const SELECT: u64 = 0x0;
/// Offset of the [`Status`] of the selected thing.
pub const STATUS: u64 = 0x4;
/// Offset of the read-only number of the first thing with news ([`Status::INSERTING`], [`Status::REMOVING`]); all ones
/// if there is none.
pub const NEXT: u64 = 0x8;

bitflags! {
    /// The status register: it tells the first three bits, and takes the last three as commands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        /// The thing is there.
        const ENABLED = 1 << 0;
        /// It is new; written as one, the bit is taken away.
        const INSERTING = 1 << 1;
        /// It shall go; written as one, the bit is taken away.
        const REMOVING = 1 << 2;
        /// Written as one, the thing is given up; reads 0.
        const EJECT = 1 << 3;
    }
}

/// The status bits that a guest can read.
const READABLE: Status = Status::EJECT.complement();

/// Where a thing is, for the guest and for the owner. [`Status::EJECT`] stays set from the guest's eject on until the
/// owner took notice.
#[derive(Debug)]
pub(super) struct Units {
    place: &'static str,
    /// Things with a lower number stay as long as the machine.
    first_removable: u32,
    selected: u32,
    units: Vec<Status>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnitsState {
    selected: u32,
    units: Vec<u32>,
}

impl UnitsState {
    /// Whether there is a thing, for each place.
    pub(super) fn present(&self) -> impl Iterator<Item = bool> {
        let status = self.units.iter().copied().map(Status::from_bits_retain);
        status.map(|unit| unit.contains(Status::ENABLED))
    }
}

impl Units {
    /// `count` places, of which the first `present` are taken and the first `first_removable` are never ejected.
    pub(super) fn new(place: &'static str, count: u32, present: u32, first_removable: u32) -> Self {
        let status = |index| {
            if index < present {
                Status::ENABLED
            } else {
                Status::empty()
            }
        };
        Self {
            place,
            first_removable,
            selected: 0,
            units: (0..count).map(status).collect(),
        }
    }

    fn count(&self) -> u32 {
        // Made from a number of this width.
        self.units.len() as u32
    }

    pub(super) fn is_present(&self, index: u32) -> bool {
        let unit = self.units.get(index as usize);
        unit.is_some_and(|unit| unit.contains(Status::ENABLED))
    }

    fn get(&mut self, index: u32) -> Result<&mut Status, HotplugError> {
        let no_place = HotplugError::NoPlace {
            place: self.place,
            index,
            first: 0,
            last: self.count().saturating_sub(1),
        };
        self.units.get_mut(index as usize).ok_or(no_place)
    }

    /// The thing at `index`, which is there.
    fn present(&mut self, index: u32) -> Result<&mut Status, HotplugError> {
        let place = self.place;
        let unit = self.get(index)?;
        if !unit.contains(Status::ENABLED) {
            return Err(HotplugError::Empty { place, index });
        }
        Ok(unit)
    }

    /// The first free place.
    pub(super) fn free(&self) -> Result<u32, HotplugError> {
        let free = (0..).zip(&self.units).find(|(_, unit)| unit.is_empty());
        free.map(|(index, _)| index).ok_or(HotplugError::Full {
            place: self.place,
            count: self.count(),
        })
    }

    pub(super) fn plug(&mut self, index: u32) -> Result<(), HotplugError> {
        let place = self.place;
        let unit = self.get(index)?;
        if !unit.is_empty() {
            return Err(HotplugError::Taken { place, index });
        }
        *unit = Status::ENABLED | Status::INSERTING;
        Ok(())
    }

    pub(super) fn request_unplug(&mut self, index: u32) -> Result<(), HotplugError> {
        self.removable(index)?.insert(Status::REMOVING);
        Ok(())
    }

    pub(super) fn withdraw(&mut self, index: u32) -> Result<(), HotplugError> {
        *self.removable(index)? = Status::empty();
        Ok(())
    }

    fn removable(&mut self, index: u32) -> Result<&mut Status, HotplugError> {
        let (place, first_removable) = (self.place, self.first_removable);
        let unit = self.present(index)?;
        if index < first_removable {
            return Err(HotplugError::Fixed { place, index });
        }
        Ok(unit)
    }

    /// What was ejected since the last call, in order. Its places are free from then on.
    pub(super) fn take_ejected(&mut self) -> Vec<u32> {
        let ejected = (0..)
            .zip(&mut self.units)
            .filter(|(_, unit)| unit.contains(Status::EJECT));
        ejected
            .map(|(index, unit)| {
                *unit = Status::empty();
                index
            })
            .collect()
    }

    /// The number in the select register, if there is such a thing.
    pub(super) fn selected(&self) -> Option<usize> {
        let selected = self.selected as usize;
        (selected < self.units.len()).then_some(selected)
    }

    pub(super) fn read(&self, offset: u64) -> Option<u32> {
        match offset {
            SELECT => Some(self.selected),
            STATUS => {
                let status = self.selected().map_or(Status::empty(), |at| self.units[at]);
                Some((status & READABLE).bits())
            }
            NEXT => {
                let news = Status::INSERTING | Status::REMOVING;
                let next = (0..)
                    .zip(&self.units)
                    .find(|(_, unit)| unit.intersects(news));
                Some(next.map_or(u32::MAX, |(index, _)| index))
            }
            _ => None,
        }
    }

    /// Takes a write, and tells whether something was ejected by it.
    pub(super) fn write(&mut self, offset: u64, value: u32) -> bool {
        match (offset, self.selected()) {
            (SELECT, _) => self.selected = value,
            (STATUS, Some(at)) => {
                let unit = &mut self.units[at];
                let command = Status::from_bits_truncate(value);
                unit.remove(command & (Status::INSERTING | Status::REMOVING));
                let removable = self.selected >= self.first_removable;
                if command.contains(Status::EJECT) && removable && unit.contains(Status::ENABLED) {
                    *unit = Status::EJECT;
                    return true;
                }
            }
            _ => {}
        }
        false
    }

    pub(super) fn save(&self) -> UnitsState {
        let Self {
            place: _,
            first_removable: _,
            selected,
            units,
        } = self;
        UnitsState {
            selected: *selected,
            units: units.iter().map(Status::bits).collect(),
        }
    }

    /// Puts `state` into the same number of places, and tells whether something in it was ejected and not taken yet.
    pub(super) fn restore(
        &mut self,
        kind: &'static str,
        state: UnitsState,
    ) -> Result<bool, StateError> {
        let UnitsState { selected, units } = state;
        if units.len() != self.units.len() {
            return Err(StateError::Field {
                kind,
                field: "units",
                value: format!("{} of them", units.len()),
                expected: format!("{}", self.units.len()),
            });
        }
        let restored: Vec<_> = (0..)
            .zip(&units)
            .map_while(|(index, bits)| self.possible(index, *bits))
            .collect();
        if let Some(bits) = units.get(restored.len()) {
            return Err(StateError::Field {
                kind,
                field: "units",
                value: format!("{bits:#x} at {}", restored.len()),
                expected: "the bits of a thing that is there, ejected or absent".to_owned(),
            });
        }
        let ejected = restored.iter().any(|unit| unit.contains(Status::EJECT));
        self.units = restored;
        self.selected = selected;
        Ok(ejected)
    }

    /// The status with these bits, if a thing at `index` can have it.
    fn possible(&self, index: u32, bits: u32) -> Option<Status> {
        let status = Status::from_bits(bits)?;
        let present = status.contains(Status::ENABLED);
        let alone = status.is_empty() || status == Status::EJECT;
        let possible = if present {
            !status.contains(Status::EJECT)
        } else {
            alone && index >= self.first_removable
        };
        possible.then_some(status)
    }
}
