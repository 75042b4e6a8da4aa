//! What comes and goes while a machine lives.

use std::sync::{Arc, Mutex, PoisonError};

use api::request::PciDeviceInfo;
use devices::acpi::hotplug::HotplugError;
use devices::pci::PciFunction;
use devices::virtio::VirtioDevice;
use devices::virtio::transport::pci::VirtioPci;

use super::attached::{Attached, Kind};
use super::build::BuildError;
use super::machine::Machine;

/// What the guest has given up.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Names of devices.
    pub(super) devices: Vec<String>,
    /// Number of vCPUs.
    pub(super) vcpus: u32,
    /// Bytes of memory.
    pub(super) memory: u64,
}

impl Machine {
    /// Puts `device` on the PCI bus before the guest runs.
    pub(super) fn attach(
        &mut self,
        id: &str,
        device: impl VirtioDevice + 'static,
        kind: Kind,
    ) -> Result<(), BuildError> {
        let slot = self.place(device)?;
        self.pci_slots.occupy(slot)?;
        self.attached.insert(id, Attached { slot, kind });
        Ok(())
    }

    /// Puts `function`, which is no virtio device, on the PCI bus before the guest runs.
    pub(super) fn attach_function(
        &mut self,
        id: &str,
        function: impl PciFunction + 'static,
    ) -> Result<(), BuildError> {
        let slot = self.pci.add(Arc::new(Mutex::new(function)))?;
        self.pci_slots.occupy(slot)?;
        let kind = Kind::Fixed;
        self.attached.insert(id, Attached { slot, kind });
        Ok(())
    }

    /// Puts `device` into the next free slot of the PCI bus.
    fn place(&mut self, device: impl VirtioDevice + 'static) -> Result<u8, BuildError> {
        let vectors = self
            .interrupts
            .vectors(VirtioPci::vector_count(&device))
            .map_err(BuildError::host("MSI-X vectors for a virtio device"))?;
        let function = VirtioPci::new(
            Box::new(device),
            self.memory.map.clone(),
            vectors,
            Arc::clone(&self.notify),
        )?;
        Ok(self.pci.add(Arc::new(Mutex::new(function)))?)
    }

    /// Puts `device` on the PCI bus while the guest runs, which is told of it.
    pub(super) fn plug(
        &mut self,
        id: &str,
        device: impl VirtioDevice + 'static,
        kind: Kind,
    ) -> Result<PciDeviceInfo, BuildError> {
        let slot = self.place(device)?;
        if let Err(error) = self.pci_slots.insert(slot) {
            // A guest that was not told of it does not use it.
            let _ = self.pci_slots.withdraw(slot);
            self.end(slot);
            return Err(error.into());
        }
        Ok(self.attached.insert(id, Attached { slot, kind }))
    }

    /// Asks the guest to give up the device in `slot`.
    pub(super) fn request_removal(&self, slot: u8) -> Result<(), HotplugError> {
        self.pci_slots.request_removal(slot)
    }

    /// Ends the device in `slot`, and frees the slot.
    fn end(&mut self, slot: u8) {
        match self.pci.remove(slot) {
            // Its worker ends before the descriptors that it uses are closed.
            Ok(function) => function
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pause(),
            Err(error) => tracing::error!(%error, slot, "a device that shall go is not there"),
        }
    }

    /// Takes the device out of `slot`. Gives its name, if one was there.
    fn detach(&mut self, slot: u8) -> Option<String> {
        let id = self.attached.in_slot(slot)?.to_owned();
        self.attached.remove(&id);
        self.end(slot);
        Some(id)
    }

    /// Frees what the guest has given up.
    pub(super) fn take_ejected(&mut self) -> Gone {
        let slots = self.pci_slots.take_ejected();
        let devices = (0..32)
            .filter(|slot| slots & 1 << slot != 0)
            .filter_map(|slot| self.detach(slot))
            .collect();
        let vcpus = self.cpu_slots.take_ejected();
        for index in &vcpus {
            self.vcpus.unplug(*index);
        }
        let memory = self.memory.take_ejected(&self.vm);
        Gone {
            devices,
            vcpus: vcpus.len() as u32,
            memory,
        }
    }

    /// Plugs in vCPUs, or asks the guest to give up those with the highest numbers, until there are `count`.
    pub(super) fn resize_vcpus(&mut self, count: u32) -> Result<(), BuildError> {
        let now = self.vcpus.count();
        if count < now {
            let going: Vec<u32> = self.vcpus.plugged().skip(count as usize).collect();
            for index in going.into_iter().rev() {
                match self.cpu_slots.request_unplug(index) {
                    // The guest gave it up just now.
                    Ok(()) | Err(HotplugError::Empty { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(());
        }
        let new = self.vcpus.grow_to(&self.vm, count)?;
        for index in &new {
            if let Err(error) = self.cpu_slots.plug(*index) {
                for index in &new {
                    // Those that the guest was not told of are not there.
                    let _ = self.cpu_slots.withdraw(*index);
                    self.vcpus.unplug(*index);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }
}
