//! Where a machine's virtio devices are: on a PCI bus, where they can come and go, or in MMIO slots for good.

use std::sync::{Arc, Mutex, PoisonError};

use arch::x86_64::acpi::AcpiVirtioMmio;
use arch::x86_64::layout;
use devices::acpi::hotplug::{HotplugError, PciSlots};
use devices::memory::GuestRam;
use devices::pci::{self, PciFunction};
use devices::virtio::transport::mmio::Slots;
use devices::virtio::transport::pci::VirtioPci;
use devices::virtio::{Notify, VirtioDevice};

use super::build::BuildError;
use crate::kvm::irq::Interrupts;

/// The place of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Slot of PCI bus 0.
    Pci(u8),
    /// virtio-mmio slot.
    Mmio(usize),
}

impl Place {
    /// Address of the function, as Linux writes it; none for what is not on PCI.
    pub(super) fn bdf(self) -> Option<String> {
        match self {
            Self::Pci(slot) => Some(format!("0000:00:{slot:02x}.0")),
            Self::Mmio(_) => None,
        }
    }
}

/// All places of a machine.
pub(super) enum Transport {
    Pci(PciPlaces),
    Mmio(Slots),
}

/// The PCI bus, and the registers by which its functions come and go.
pub(super) struct PciPlaces {
    pub(super) root: pci::Root,
    pub(super) slots: PciSlots,
}

/// What a device needs of its machine.
pub(super) struct Wiring<'a> {
    pub(super) memory: &'a GuestRam,
    pub(super) interrupts: &'a Arc<Interrupts>,
    pub(super) notify: &'a Arc<dyn Notify>,
}

impl Transport {
    /// Puts `device` into the next free place before the guest runs.
    pub(super) fn attach(
        &mut self,
        device: impl VirtioDevice + 'static,
        wiring: &Wiring<'_>,
    ) -> Result<Place, BuildError> {
        match self {
            Self::Pci(places) => {
                let slot = places.place(device, wiring)?;
                places.slots.occupy(slot)?;
                Ok(Place::Pci(slot))
            }
            Self::Mmio(slots) => {
                let index = slots.count();
                let (_, gsi) = layout::virtio_mmio_slot(index)
                    .ok_or(BuildError::MmioSlots { count: index })?;
                let line = wiring
                    .interrupts
                    .line(gsi)
                    .map_err(BuildError::host("the interrupt of a virtio device"))?;
                let (memory, notify) = (wiring.memory.clone(), Arc::clone(wiring.notify));
                let index = slots.add(Box::new(device), memory, line, notify)?;
                Ok(Place::Mmio(index))
            }
        }
    }

    /// The bus of devices that come and go, if this machine has one.
    pub(super) fn pci(&mut self) -> Option<&mut PciPlaces> {
        match self {
            Self::Pci(places) => Some(places),
            Self::Mmio(_) => None,
        }
    }

    /// Whether devices can come and go.
    pub(super) fn can_hotplug(&self) -> bool {
        matches!(self, Self::Pci(_))
    }

    /// The devices that the guest finds by ACPI alone.
    pub(super) fn acpi_virtio_mmio(&self) -> Vec<AcpiVirtioMmio> {
        let count = match self {
            Self::Pci(_) => 0,
            Self::Mmio(slots) => slots.count(),
        };
        let slots = (0..count).map_while(layout::virtio_mmio_slot);
        slots
            .map(|(registers, gsi)| AcpiVirtioMmio { registers, gsi })
            .collect()
    }

    /// Returns when all devices have handed their queues back. vCPUs do not run.
    pub(super) fn pause(&mut self) {
        match self {
            Self::Pci(places) => places.root.pause(),
            Self::Mmio(slots) => slots.pause(),
        }
    }

    /// The mirror of [`Transport::pause`].
    pub(super) fn resume(&mut self) {
        match self {
            Self::Pci(places) => places.root.resume(),
            Self::Mmio(slots) => slots.resume(),
        }
    }
}

impl PciPlaces {
    /// Puts `device` into the next free slot of the bus.
    fn place(
        &mut self,
        device: impl VirtioDevice + 'static,
        wiring: &Wiring<'_>,
    ) -> Result<u8, BuildError> {
        let vectors = wiring
            .interrupts
            .vectors(VirtioPci::vector_count(&device))
            .map_err(BuildError::host("MSI-X vectors for a virtio device"))?;
        let function = VirtioPci::new(
            Box::new(device),
            wiring.memory.clone(),
            vectors,
            Arc::clone(wiring.notify),
        )?;
        Ok(self.root.add(Arc::new(Mutex::new(function)))?)
    }

    /// Puts `function`, which is no virtio device, on the bus before the guest runs.
    pub(super) fn attach_function(
        &mut self,
        function: impl PciFunction + 'static,
    ) -> Result<Place, BuildError> {
        let slot = self.root.add(Arc::new(Mutex::new(function)))?;
        self.slots.occupy(slot)?;
        Ok(Place::Pci(slot))
    }

    /// Puts `device` on the bus while the guest runs, which is told of it.
    pub(super) fn plug(
        &mut self,
        device: impl VirtioDevice + 'static,
        wiring: &Wiring<'_>,
    ) -> Result<Place, BuildError> {
        let slot = self.place(device, wiring)?;
        if let Err(error) = self.slots.insert(slot) {
            // A guest that was not told of it does not use it.
            let _ = self.slots.withdraw(slot);
            self.end(slot);
            return Err(error.into());
        }
        Ok(Place::Pci(slot))
    }

    /// Asks the guest to give up the device in `slot`.
    pub(super) fn request_removal(&self, slot: u8) -> Result<(), HotplugError> {
        self.slots.request_removal(slot)
    }

    /// Ends the device in `slot`, and frees the slot.
    pub(super) fn end(&mut self, slot: u8) {
        match self.root.remove(slot) {
            // Its worker ends before the descriptors that it uses are closed.
            Ok(function) => function
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pause(),
            Err(error) => tracing::error!(%error, slot, "a device that shall go is not there"),
        }
    }
}
