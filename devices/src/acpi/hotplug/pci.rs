//! Functions that come to and go from the slots of PCI bus 0.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{HotplugError, Port, Registers};
use crate::acpi::{Event, EventDevice};
use crate::bus::BusDevice;
use crate::platform::Platform;
use crate::state::{Persist, Section, StateError};

const KIND: &str = "acpi-pci-slots";
const VERSION: u16 = 1;
const PLACE: &str = "PCI slot";
const LAST_SLOT: u8 = 31;
/// The host bridge in slot 0 stays.
const HOST_BRIDGE: u32 = 1 << 0;

/// Offset of the slots with a new function, one bit each; a bit that is written as one is taken away.
pub const INSERTED: u64 = 0x0;
/// Offset of the slots whose function shall go, one bit each; a bit that is written as one is taken away.
pub const REMOVING: u64 = 0x4;
/// Offset of the write-only eject register: the functions in the slots whose bits are ones are given up. Reads 0.
pub const EJECT: u64 = 0x8;
/// Offset of the read-only register of the slots that have a function, one bit each.
pub const PRESENT: u64 = 0xc;
/// Bytes of registers.
pub const REGISTERS_LEN: u64 = 0x10;

/// The slots 1 to 31 of PCI bus 0: registers [`INSERTED`], [`REMOVING`], [`EJECT`] and [`PRESENT`]. It raises
/// [`Event::Pci`].
#[derive(Clone)]
pub struct PciSlots {
    port: Port<Slots>,
}

/// Bitmaps by slot. What was inserted, shall go or was ejected is never bit 0.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Slots {
    present: u32,
    inserted: u32,
    removing: u32,
    /// Ejected, and not yet taken by the owner.
    ejected: u32,
}

impl PciSlots {
    /// Empty slots.
    pub fn new(events: EventDevice, platform: Arc<dyn Platform>) -> Self {
        Self {
            port: Port::new(Slots::default(), Event::Pci, events, platform),
        }
    }

    /// Puts a function into `slot` that the guest finds as it enumerates the bus at boot: no event is raised.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Taken`]; nothing changed.
    pub fn occupy(&self, slot: u8) -> Result<(), HotplugError> {
        self.port.registers().take(slot).map(|_| ())
    }

    /// Puts a function into `slot` and tells the guest. Its configuration space has to answer already.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Taken`], and nothing changed; or [`HotplugError::Notify`].
    pub fn insert(&self, slot: u8) -> Result<(), HotplugError> {
        self.port.change(|slots| {
            slots.inserted |= slots.take(slot)?;
            Ok(())
        })
    }

    /// Asks the guest to give up the function in `slot`. Asking again reminds a guest that did not.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Empty`], and nothing changed; or [`HotplugError::Notify`].
    pub fn request_removal(&self, slot: u8) -> Result<(), HotplugError> {
        self.port.change(|slots| {
            slots.removing |= slots.occupied(slot)?;
            Ok(())
        })
    }

    /// Takes the function out of `slot` without asking the guest.
    ///
    /// # Errors
    ///
    /// [`HotplugError::NoPlace`] or [`HotplugError::Empty`]; nothing changed.
    pub fn withdraw(&self, slot: u8) -> Result<(), HotplugError> {
        let mut slots = self.port.registers();
        let bit = slots.occupied(slot)?;
        slots.clear(bit);
        Ok(())
    }

    /// The slots that the guest ejected since the last call, one bit each. They are free from then on.
    pub fn take_ejected(&self) -> u32 {
        std::mem::take(&mut self.port.registers().ejected)
    }
}

fn bit(slot: u8) -> Result<u32, HotplugError> {
    if !(1..=LAST_SLOT).contains(&slot) {
        return Err(HotplugError::NoPlace {
            place: PLACE,
            index: slot.into(),
            first: 1,
            last: LAST_SLOT.into(),
        });
    }
    Ok(1 << slot)
}

impl Slots {
    /// Makes a free `slot` present, and gives its bit.
    fn take(&mut self, slot: u8) -> Result<u32, HotplugError> {
        let bit = bit(slot)?;
        if (self.present | self.ejected) & bit != 0 {
            return Err(HotplugError::Taken {
                place: PLACE,
                index: slot.into(),
            });
        }
        self.present |= bit;
        Ok(bit)
    }

    /// The bit of a `slot` that is present.
    fn occupied(&self, slot: u8) -> Result<u32, HotplugError> {
        let bit = bit(slot)?;
        if self.present & bit == 0 {
            return Err(HotplugError::Empty {
                place: PLACE,
                index: slot.into(),
            });
        }
        Ok(bit)
    }

    fn clear(&mut self, bits: u32) {
        self.present &= !bits;
        self.inserted &= !bits;
        self.removing &= !bits;
    }
}

impl Registers for Slots {
    fn read(&self, offset: u64) -> Option<u32> {
        match offset {
            INSERTED => Some(self.inserted),
            REMOVING => Some(self.removing),
            EJECT => Some(0),
            PRESENT => Some(self.present),
            _ => None,
        }
    }

    fn write(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            INSERTED => self.inserted &= !value,
            REMOVING => self.removing &= !value,
            EJECT => {
                let ejected = value & self.present;
                self.clear(ejected);
                self.ejected |= ejected;
                return ejected != 0;
            }
            _ => {}
        }
        false
    }
}

impl BusDevice for PciSlots {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.port.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.port.write(offset, data);
    }
}

impl Persist for PciSlots {
    fn save(&self) -> Section {
        let Self { port } = self;
        let Slots {
            present,
            inserted,
            removing,
            ejected,
        } = *port.registers();
        let state = Slots {
            present,
            inserted,
            removing,
            ejected,
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: Slots = section.decode(KIND, VERSION)?;
        let Slots {
            present,
            inserted,
            removing,
            ejected,
        } = state;
        let field = |field, value, expected: &str| StateError::Field {
            kind: KIND,
            field,
            value: format!("{value:#x}"),
            expected: expected.to_owned(),
        };
        if present & HOST_BRIDGE != 0 {
            return Err(field("present", present, "slots 1 to 31"));
        }
        for (name, value) in [("inserted", inserted), ("removing", removing)] {
            if value & !present != 0 {
                return Err(field(name, value, &format!("some of {present:#x}")));
            }
        }
        if ejected & (present | HOST_BRIDGE) != 0 {
            return Err(field("ejected", ejected, &format!("none of {present:#x}")));
        }
        *self.port.registers() = state;
        // The owner that was woken may have gone with the machine that was saved.
        if ejected != 0 {
            self.port.wake_owner();
        }
        Ok(())
    }
}
