//! Functions that come to and go from the slots of PCI bus 0.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{HotplugError, Port, Registers};
use crate::acpi::{Event, EventDevice};
use crate::bus::BusDevice;
use crate::pci::SlotGate;
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

struct Slots {
    bits: Bits,
    gate: SlotGate,
}

/// Bitmaps by slot, without the host bridge in slot 0.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Bits {
    present: u32,
    inserted: u32,
    removing: u32,
    /// Ejected, and not yet taken by the owner.
    ejected: u32,
}

impl PciSlots {
    /// Empty slots. What the guest ejects is hidden behind `gate` at once.
    pub fn new(events: EventDevice, platform: Arc<dyn Platform>, gate: SlotGate) -> Self {
        let slots = Slots {
            bits: Bits::default(),
            gate,
        };
        Self {
            port: Port::new(slots, Event::Pci, events, platform),
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
            let bit = slots.take(slot)?;
            slots.bits.inserted |= bit;
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
            let bit = slots.bits.occupied(slot)?;
            slots.bits.removing |= bit;
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
        let bit = slots.bits.occupied(slot)?;
        slots.bits.clear(bit);
        Ok(())
    }

    /// The slots that the guest ejected since the last call, one bit each. They are free from then on.
    pub fn take_ejected(&self) -> u32 {
        std::mem::take(&mut self.port.registers().bits.ejected)
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
        let Self { bits, gate } = self;
        if (bits.present | bits.ejected) & bit != 0 {
            return Err(HotplugError::Taken {
                place: PLACE,
                index: slot.into(),
            });
        }
        bits.present |= bit;
        // The owner may put back what the guest gave up.
        gate.open(bit);
        Ok(bit)
    }
}

impl Bits {
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
            INSERTED => Some(self.bits.inserted),
            REMOVING => Some(self.bits.removing),
            EJECT => Some(0),
            PRESENT => Some(self.bits.present),
            _ => None,
        }
    }

    fn write(&mut self, offset: u64, value: u32) -> bool {
        let Self { bits, gate } = self;
        match offset {
            INSERTED => bits.inserted &= !value,
            REMOVING => bits.removing &= !value,
            EJECT => {
                let ejected = value & bits.present;
                bits.clear(ejected);
                bits.ejected |= ejected;
                gate.close(ejected);
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
        // The gate is closed for what was ejected.
        let Slots { bits, gate: _ } = &*port.registers();
        Section::new(KIND, VERSION, bits)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: Bits = section.decode(KIND, VERSION)?;
        let Bits {
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
        let mut slots = self.port.registers();
        slots.bits = state;
        slots.gate.close(ejected);
        drop(slots);
        // The owner that was woken may have gone with the machine that was saved.
        if ejected != 0 {
            self.port.wake_owner();
        }
        Ok(())
    }
}
