//! The generic event device (ACPI 6.5, section 5.6.9): one interrupt, and a register that tells what happened.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::state::{Persist, Section, StateError};

const KIND: &str = "acpi-event";
const VERSION: u16 = 1;

/// Something the guest's ACPI code shall look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The power button was pressed.
    PowerButton,
    /// Functions came to the PCI bus, or shall go.
    Pci,
    /// vCPUs came, or shall go.
    Cpu,
    /// Memory came, or shall go.
    Memory,
    /// The machine has another generation: it was restored or copied.
    Generation,
}

impl Event {
    /// The event's bit number in the event register.
    pub const fn bit(self) -> u8 {
        match self {
            Self::PowerButton => 0,
            Self::Pci => 1,
            Self::Cpu => 2,
            Self::Memory => 3,
            Self::Generation => 4,
        }
    }
}

struct Shared {
    pending: AtomicU32,
    interrupt: InterruptLine,
}

/// The event register: 32 bits at offset 0, one for each [`Event`] that is pending. A read of all four bytes takes the
/// bits away; nothing else is answered.
///
/// Clones are the same device: one goes on the bus, another stays with whoever has events to tell.
#[derive(Clone)]
pub struct EventDevice {
    shared: Arc<Shared>,
}

impl EventDevice {
    /// A device with nothing pending, on an edge-triggered interrupt.
    pub fn new(interrupt: InterruptLine) -> Self {
        Self {
            shared: Arc::new(Shared {
                pending: AtomicU32::new(0),
                interrupt,
            }),
        }
    }

    /// Makes `event` pending and raises the interrupt. An event that is pending already stays one event.
    ///
    /// # Errors
    ///
    /// The interrupt could not be raised; the event stays pending for the next interrupt.
    pub fn notify(&self, event: Event) -> io::Result<()> {
        // The bit first: the guest may read the register as soon as the line was raised.
        self.shared
            .pending
            .fetch_or(1 << event.bit(), Ordering::AcqRel);
        self.shared.interrupt.raise()
    }

    /// Whether the guest has not looked at an event yet.
    pub fn is_pending(&self) -> bool {
        self.shared.pending.load(Ordering::Acquire) != 0
    }

    /// Raises the interrupt again if an event is still pending: an edge that came while the guest had the interrupt
    /// masked was lost.
    ///
    /// # Errors
    ///
    /// The interrupt could not be raised; the event stays pending.
    pub fn remind(&self) -> io::Result<()> {
        if self.is_pending() {
            self.shared.interrupt.raise()
        } else {
            Ok(())
        }
    }
}

impl BusDevice for EventDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, Ok(register)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *register = self.shared.pending.swap(0, Ordering::AcqRel).to_le_bytes();
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    pending: u32,
}

impl Persist for EventDevice {
    fn save(&self) -> Section {
        let Self { shared } = self;
        let Shared {
            pending,
            interrupt: _,
        } = &**shared;
        let pending = pending.load(Ordering::Acquire);
        Section::new(KIND, VERSION, &State { pending })
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State { pending } = section.decode(KIND, VERSION)?;
        self.shared.pending.store(pending, Ordering::Release);
        // The edge may have been lost with the machine that was saved; a second one finds an empty register.
        if pending != 0
            && let Err(error) = self.shared.interrupt.raise()
        {
            tracing::error!(%error, "cannot raise the interrupt of the ACPI event device");
        }
        Ok(())
    }
}
