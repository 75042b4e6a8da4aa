//! Guest memory while a machine lives: what it booted with, and what is added and taken away.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use api::config::MemoryConfig;
use arch::x86_64::layout::{self, AddressRange};
use devices::acpi::hotplug::{HotplugError, MemorySlots};
use devices::memory::{self as guest_memory, GuestRam, MemoryFollower, Ram};
use devices::virtio::mem::{DEFAULT_BLOCK_SIZE, MappedRegion, Mem, MemError, MemHandle, MemSetup};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
};

use super::build::BuildError;
use super::coredump::Piece;
use crate::kvm::memory::{self, Backing, HugePages, MemoryError};
use crate::kvm::vm::Vm;

/// Slots for memory that the tables tell the guest of, where memory is added by ACPI.
pub(super) const MEMORY_SLOTS: u8 = 8;

/// Why memory cannot have the size that is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ResizeMemoryError {
    /// The machine has no room for another size.
    #[error(
        "desired_ram is {desired}, expected {boot}: the VM has no room for more memory (memory.hotplug_size)"
    )]
    NoRoom {
        /// As asked for, in bytes.
        desired: u64,
        /// What it has, in bytes.
        boot: u64,
    },
    /// More than there is room for, or less than there was at the boot.
    #[error("desired_ram is {desired}, expected {least} to {most}")]
    OutOfBounds {
        /// As asked for, in bytes.
        desired: u64,
        /// The least, in bytes.
        least: u64,
        /// The most, in bytes.
        most: u64,
    },
    /// Not in units that the guest can take.
    #[error("desired_ram is {desired}, expected {now} and a multiple of {unit}")]
    Unit {
        /// As asked for, in bytes.
        desired: u64,
        /// What there is now, in bytes.
        now: u64,
        /// What the guest can take, in bytes.
        unit: u64,
    },
    /// Memory by ACPI goes in the pieces in which it came.
    #[error("desired_ram is {desired}, expected one of {}: memory goes in the pieces in which it came", list(.sizes))]
    Piece {
        /// As asked for, in bytes.
        desired: u64,
        /// What can be had, in bytes.
        sizes: Vec<u64>,
    },
    /// The device does not take it.
    #[error("desired_ram")]
    Device(#[from] MemError),
    /// There is no place for another piece.
    #[error("cannot plug memory")]
    Plug(#[from] HotplugError),
    /// The host has no memory, or KVM does not take it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl ResizeMemoryError {
    /// Whether another size would do. Otherwise the host is at fault.
    pub fn is_request(&self) -> bool {
        !matches!(self, Self::Memory(_) | Self::Plug(HotplugError::Notify(_)))
    }
}

fn list(sizes: &[u64]) -> String {
    let sizes: Vec<_> = sizes.iter().map(u64::to_string).collect();
    sizes.join(", ")
}

/// How memory of `config` is to be had.
pub(super) fn backing(config: &MemoryConfig) -> Backing {
    let huge_pages = config.hugepages.then(|| match config.hugepage_size {
        Some(size) => HugePages::Size(size.bytes()),
        None => HugePages::Default,
    });
    Backing {
        shared: config.shared,
        huge_pages,
        prefault: config.prefault,
        mergeable: config.mergeable,
        reserve: true,
        transparent_huge_pages: config.thp,
    }
}

/// How much memory a machine of `config` boots with, and where what is added goes.
pub(super) fn plan(config: &MemoryConfig) -> (u64, AddressRange) {
    let boot = config.size.bytes();
    let room = config.hotplug_size.map_or(0, |size| size.bytes());
    (boot, layout::hotplug_region(boot, room))
}

/// By what memory is added.
pub(super) enum Growth {
    /// By nothing: the size is fixed.
    None,
    /// By pieces in slots that the ACPI tables tell of.
    Acpi(MemorySlots),
    /// By a device to whose region memory belongs from the start.
    VirtioMem(MemHandle),
}

/// The memory of a machine.
pub(super) struct MachineMemory {
    /// The map as devices and vCPUs see it.
    pub(super) map: GuestRam,
    boot: u64,
    room: AddressRange,
    backing: Backing,
    growth: Growth,
    /// Who is told of each change, by the names of devices.
    followers: BTreeMap<String, Arc<dyn MemoryFollower>>,
    /// The first address of the memory in each of KVM's slots.
    slots: Vec<Option<u64>>,
}

impl MachineMemory {
    /// `ram`, which is registered in the first slots of KVM, for a machine that boots with `boot` bytes.
    pub(super) fn new(ram: Ram, boot: u64, room: AddressRange, backing: Backing) -> Self {
        Self {
            slots: ram
                .iter()
                .map(|region| Some(region.start_addr().0))
                .collect(),
            map: GuestRam::new(ram),
            boot,
            room,
            backing,
            growth: Growth::None,
            followers: BTreeMap::new(),
        }
    }

    pub(super) fn grow_by(&mut self, growth: Growth) {
        self.growth = growth;
    }

    /// Tells `follower` of each change from now on, before the guest is told, until the device `id` goes.
    pub(super) fn add_follower(&mut self, id: &str, follower: Arc<dyn MemoryFollower>) {
        self.followers.insert(id.to_owned(), follower);
    }

    /// The device `id` goes.
    pub(super) fn remove_follower(&mut self, id: &str) {
        self.followers.remove(id);
    }

    /// What the guest has, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.boot + self.added()
    }

    /// The device by which the guest plugs memory, if there is one.
    pub(super) fn device(&self) -> Option<MemHandle> {
        match &self.growth {
            Growth::VirtioMem(device) => Some(device.clone()),
            Growth::None | Growth::Acpi(_) => None,
        }
    }

    /// Size of the pages of the host, in bytes.
    pub(super) fn page_size(&self) -> u64 {
        self.backing.page_size()
    }

    /// What the guest booted with, in bytes.
    pub(super) fn boot_size(&self) -> u64 {
        self.boot
    }

    /// What was added and is still there, in bytes.
    fn added(&self) -> u64 {
        match &self.growth {
            Growth::None => 0,
            Growth::Acpi(slots) => slots.plugged().iter().map(|(_, range)| len(range)).sum(),
            Growth::VirtioMem(device) => device.plugged(),
        }
    }

    /// What a core has of it, in order: all that there was at the boot or was added, and of a device's region all up to the
    /// last block that is plugged. The machine is paused.
    pub(super) fn pieces(&self) -> Vec<Piece> {
        let map = self.map.memory();
        map.iter()
            .filter_map(|region| {
                let start = region.start_addr().0;
                let all = start..start + region.len();
                let in_use = match &self.growth {
                    Growth::VirtioMem(device) if device.address() == start => {
                        let plugged = device.plugged_ranges().into_iter();
                        plugged
                            .map(|range| start + range.start..start + range.end)
                            .collect()
                    }
                    _ => vec![all],
                };
                let end = in_use.last()?.end;
                Some(Piece {
                    addresses: start..end,
                    in_use,
                })
            })
            .collect()
    }

    /// Asks for `desired` bytes, and gives how many of them are beyond the memory of this boot. The guest takes and gives up memory in its own time.
    ///
    /// # Errors
    ///
    /// [`ResizeMemoryError`]; nothing is changed.
    pub(super) fn resize(&mut self, vm: &Vm, desired: u64) -> Result<u64, ResizeMemoryError> {
        let boot = self.boot;
        let most = boot + self.room.len;
        if matches!(self.growth, Growth::None) {
            return if desired == boot {
                Ok(0)
            } else {
                Err(ResizeMemoryError::NoRoom { desired, boot })
            };
        }
        if !(boot..=most).contains(&desired) {
            return Err(ResizeMemoryError::OutOfBounds {
                desired,
                least: boot,
                most,
            });
        }
        match &self.growth {
            Growth::None => {}
            Growth::VirtioMem(device) => device.resize(desired - boot)?,
            Growth::Acpi(slots) => {
                let slots = slots.clone();
                self.resize_by_slots(vm, &slots, desired)?;
            }
        }
        Ok(desired - boot)
    }

    fn resize_by_slots(
        &mut self,
        vm: &Vm,
        slots: &MemorySlots,
        desired: u64,
    ) -> Result<(), ResizeMemoryError> {
        let now = self.size();
        if desired > now {
            let unit = layout::memory_block_size(self.boot);
            let grow = desired - now;
            if !grow.is_multiple_of(unit) {
                return Err(ResizeMemoryError::Unit { desired, now, unit });
            }
            let range = self
                .free_range(slots, grow)
                .ok_or(ResizeMemoryError::OutOfBounds {
                    desired,
                    least: self.boot,
                    most: now,
                })?;
            self.insert(vm, &range, self.backing)?;
            return slots.plug(range.clone()).map(|_| ()).map_err(|error| {
                // A guest that was not told of it does not use it.
                let plugged = slots.plugged().into_iter();
                for (slot, _) in plugged.filter(|(_, plugged)| *plugged == range) {
                    let _ = slots.withdraw(slot);
                }
                self.remove(vm, &range);
                error.into()
            });
        }
        // The last to come are the first to go.
        let mut sizes = vec![now];
        let mut going = Vec::new();
        let mut left = now;
        for (slot, range) in slots.plugged().into_iter().rev() {
            if left == desired {
                break;
            }
            left -= len(&range);
            sizes.push(left);
            going.push(slot);
        }
        if left != desired || sizes.last() != Some(&desired) {
            return Err(ResizeMemoryError::Piece { desired, sizes });
        }
        for slot in going {
            slots.request_unplug(slot)?;
        }
        Ok(())
    }

    /// The lowest addresses of the room where `wanted` bytes are free.
    fn free_range(&self, slots: &MemorySlots, wanted: u64) -> Option<Range<u64>> {
        let mut start = self.room.start;
        let mut taken: Vec<_> = slots
            .plugged()
            .into_iter()
            .map(|(_, range)| range)
            .collect();
        taken.sort_by_key(|range| range.start);
        for range in taken {
            if range.start - start >= wanted {
                break;
            }
            start = range.end;
        }
        let end = start.checked_add(wanted)?;
        (end <= self.room.end()).then_some(start..end)
    }

    /// Maps memory at `range` and shows it to KVM and to the devices.
    fn insert(&mut self, vm: &Vm, range: &Range<u64>, backing: Backing) -> Result<(), MemoryError> {
        let start = GuestAddress(range.start);
        let piece = memory::allocate(&[(start, len(range) as usize)], backing)?;
        let (_, region) = piece.remove_region(start, len(range))?;
        let map = self.map.memory().insert_region(Arc::clone(&region))?;
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        memory::register_region(vm, slot as u32, &region)?;
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(range.start);
        self.replace(map);
        Ok(())
    }

    /// Puts memory at all addresses of the room, and makes the device by which the guest plugs it, `requested` bytes of it
    /// from the start.
    pub(super) fn add_device_region(&mut self, vm: &Vm, requested: u64) -> Result<Mem, BuildError> {
        let room = self.room.start..self.room.end();
        // What the guest plugs is taken from the host when it does.
        let backing = Backing {
            prefault: false,
            reserve: false,
            ..self.backing
        };
        self.insert(vm, &room, backing)?;
        let map = self.map.memory();
        let (_, region) = map
            .remove_region(GuestAddress(room.start), len(&room))
            .map_err(MemoryError::from)?;
        let page_size = self.backing.page_size();
        // A huge page that is missing when it is touched would be the end of the VMM.
        let populate = self.backing.prefault || self.backing.huge_pages.is_some();
        let region = MappedRegion::new(region, page_size, populate);
        let setup = MemSetup {
            name: "virtio-mem".to_owned(),
            address: room.start,
            block_size: DEFAULT_BLOCK_SIZE.max(page_size),
            requested,
        };
        Ok(Mem::new(Arc::new(region), setup)?)
    }

    /// Takes the memory at `range` away from KVM and from the devices.
    fn remove(&mut self, vm: &Vm, range: &Range<u64>) {
        let start = range.start;
        let slot = self.slots.iter().position(|slot| *slot == Some(start));
        let map = self.map.memory();
        let removed = map.remove_region(GuestAddress(start), len(range));
        drop(map);
        let (Some(slot), Ok((map, region))) = (slot, removed) else {
            tracing::error!(start, "memory that shall go is not in the map");
            return;
        };
        // From KVM first: what the guest sees stays mapped. A device lets go of it with the next work that it gets.
        match memory::unregister_region(vm, slot as u32) {
            Ok(()) => {
                self.slots[slot] = None;
                self.replace(map);
                if let Err(error) = give_back(&region) {
                    tracing::warn!(%error, start, "memory that the guest gave up is kept for a while");
                }
            }
            Err(error) => tracing::error!(%error, start, "KVM does not give memory back"),
        }
    }

    fn replace(&self, map: Ram) {
        let lock = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        lock.replace(map);
        let map = self.map.memory();
        for follower in self.followers.values() {
            follower.memory_changed(&map);
        }
    }

    /// Takes away what the guest has given up, and tells how much that was.
    pub(super) fn take_ejected(&mut self, vm: &Vm) -> u64 {
        let Growth::Acpi(slots) = &self.growth else {
            return 0;
        };
        let ejected = slots.take_ejected();
        for (_, range) in &ejected {
            self.remove(vm, range);
        }
        ejected.iter().map(|(_, range)| len(range)).sum()
    }
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Gives the pages of `region` back to the host, whoever has it mapped still: that can be a device without work, for as
/// long as it has none. Contents are lost.
fn give_back(region: &GuestRegionMmap<()>) -> io::Result<()> {
    guest_memory::discard(region, 0, region.len())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_that_was_given_up_is_the_hosts_while_a_device_has_the_map_of_before() {
        const START: GuestAddress = GuestAddress(4 << 30);
        for shared in [false, true] {
            let backing = Backing {
                shared,
                ..Backing::default()
            };
            let before = memory::allocate(&[(START, 2 << 20)], backing).unwrap();
            before.write_obj(7_u64, START).unwrap();
            let (_, region) = before.remove_region(START, 2 << 20).unwrap();
            give_back(&region).unwrap();
            assert_eq!(before.read_obj::<u64>(START).unwrap(), 0);
        }
    }
}
