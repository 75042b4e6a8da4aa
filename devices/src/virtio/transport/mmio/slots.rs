//! The devices of a machine, one page after the other.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::VirtioMmio;
use crate::bus::{Bus, BusError, SharedDevice};
use crate::interrupt::InterruptLine;
use crate::memory::GuestRam;
use crate::state::{Persist, Section, StateError};
use crate::virtio::{Notify, VirtioDevice};

const KIND: &str = "virtio-mmio-slots";

/// Length in bytes of the registers of one device, its configuration space included.
pub const SLOT_LEN: u64 = 0x1000;

/// Why a device has no place.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// All addresses are taken.
    #[error("all {0} places for virtio-mmio devices are taken")]
    Full(usize),
    /// The eventfds for notifications cannot be had.
    #[error("cannot get eventfds for queue notifications")]
    Notifiers(#[from] io::Error),
    /// Something else is at the address.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The devices in the order in which they came. They stay as long as the machine.
pub struct Slots {
    mmio: Arc<Bus>,
    window: Range<u64>,
    devices: Vec<Arc<Mutex<VirtioMmio>>>,
}

impl Slots {
    /// No devices yet, with room for as many as there are pages in `window` on the bus `mmio`.
    pub fn new(mmio: Arc<Bus>, window: Range<u64>) -> Self {
        Self {
            mmio,
            window,
            devices: Vec::new(),
        }
    }

    /// Guest physical address of the registers in slot `index`, if there is such a slot.
    pub fn address(&self, index: usize) -> Option<u64> {
        let offset = SLOT_LEN.checked_mul(index as u64)?;
        let address = self.window.start.checked_add(offset)?;
        let end = address.checked_add(SLOT_LEN)?;
        (end <= self.window.end).then_some(address)
    }

    /// Number of devices: the slots before this one are taken.
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// Puts `device` into the next slot, as [`VirtioMmio::new`] does, and gives the slot's number.
    ///
    /// # Errors
    ///
    /// [`SlotsError`]; nothing is changed.
    pub fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        line: InterruptLine,
        notify: Arc<dyn Notify>,
    ) -> Result<usize, SlotsError> {
        let index = self.devices.len();
        let address = self.address(index).ok_or(SlotsError::Full(index))?;
        let device = VirtioMmio::new(device, memory, line, notify, address)?;
        let device = Arc::new(Mutex::new(device));
        let shared: SharedDevice = device.clone();
        self.mmio.insert(address, SLOT_LEN, shared)?;
        self.devices.push(device);
        Ok(index)
    }

    /// The device in slot `index`.
    pub fn device(&self, index: usize) -> Option<&Arc<Mutex<VirtioMmio>>> {
        self.devices.get(index)
    }

    /// Pauses all devices. vCPUs do not run.
    pub fn pause(&mut self) {
        for device in &self.devices {
            lock(device).pause();
        }
    }

    /// The mirror of [`Slots::pause`].
    pub fn resume(&mut self) {
        for device in &self.devices {
            lock(device).resume();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct SlotsState {
    devices: Vec<Section>,
}

impl Persist for Slots {
    fn save(&self) -> Section {
        let Self {
            mmio: _,
            // Follow from the machine.
            window: _,
            devices,
        } = self;
        let devices = devices.iter().map(|device| lock(device).save()).collect();
        Section::new(KIND, 1, &SlotsState { devices })
    }

    /// Restores every device. If one refuses its state, those before it have theirs already: the machine is then of no use.
    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let SlotsState { devices } = section.decode(KIND, 1)?;
        if devices.len() != self.devices.len() {
            return Err(StateError::Field {
                kind: KIND,
                field: "devices",
                value: format!("{} devices", devices.len()),
                expected: format!("{} devices", self.devices.len()),
            });
        }
        for (device, section) in self.devices.iter().zip(&devices) {
            lock(device).restore(section)?;
        }
        Ok(())
    }
}

fn lock(device: &Mutex<VirtioMmio>) -> MutexGuard<'_, VirtioMmio> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
