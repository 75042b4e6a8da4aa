//! What comes and goes while a machine lives.

use api::request::PciDeviceInfo;
use devices::acpi::hotplug::HotplugError;
use devices::pci::PciFunction;
use devices::virtio::VirtioDevice;

use super::attached::{Attached, Kind};
use super::build::BuildError;
use super::machine::Machine;
use super::transport::{Place, Wiring};

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
    /// Puts `device` into the next free place before the guest runs.
    pub(super) fn attach(
        &mut self,
        id: &str,
        device: impl VirtioDevice + 'static,
        kind: Kind,
    ) -> Result<(), BuildError> {
        let wiring = Wiring {
            memory: &self.memory.map,
            interrupts: &self.interrupts,
            notify: &self.notify,
        };
        let place = self.transport.attach(device, &wiring)?;
        self.note(id, place, kind);
        Ok(())
    }

    /// Puts `function`, which is no virtio device, on the PCI bus before the guest runs.
    pub(super) fn attach_function(
        &mut self,
        id: &str,
        function: impl PciFunction + 'static,
    ) -> Result<(), BuildError> {
        let places = self.transport.pci().ok_or(BuildError::NoPci)?;
        let place = places.attach_function(function)?;
        let kind = Kind::Fixed;
        self.attached.insert(id, Attached { place, kind });
        Ok(())
    }

    /// Puts `device` on the PCI bus while the guest runs, which is told of it.
    pub(super) fn plug(
        &mut self,
        id: &str,
        device: impl VirtioDevice + 'static,
        kind: Kind,
    ) -> Result<PciDeviceInfo, BuildError> {
        let wiring = Wiring {
            memory: &self.memory.map,
            interrupts: &self.interrupts,
            notify: &self.notify,
        };
        let places = self.transport.pci().ok_or(BuildError::NoPci)?;
        let place = places.plug(device, &wiring)?;
        self.note(id, place, kind);
        Ok(PciDeviceInfo {
            id: id.to_owned(),
            bdf: place.bdf().unwrap_or_default(),
        })
    }

    /// Notes what is at `place` now.
    fn note(&mut self, id: &str, place: Place, kind: Kind) {
        if let Some(follower) = kind.follower() {
            self.memory.add_follower(id, follower);
        }
        self.attached.insert(id, Attached { place, kind });
    }

    /// Asks the guest to give up the device at `place`.
    pub(super) fn request_removal(&mut self, place: Place) -> Result<(), BuildError> {
        match (self.transport.pci(), place) {
            (Some(places), Place::Pci(slot)) => Ok(places.request_removal(slot)?),
            _ => Err(BuildError::NoPci),
        }
    }

    /// Takes the device out of `slot` of the PCI bus. Gives its name, if one was there.
    fn detach(&mut self, slot: u8) -> Option<String> {
        let id = self.attached.at(Place::Pci(slot))?.to_owned();
        self.attached.remove(&id);
        self.memory.remove_follower(&id);
        self.transport.pci()?.end(slot);
        Some(id)
    }

    /// Frees what the guest has given up.
    pub(super) fn take_ejected(&mut self) -> Gone {
        let places = self.transport.pci();
        let slots = places.map_or(0, |places| places.slots.take_ejected());
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
