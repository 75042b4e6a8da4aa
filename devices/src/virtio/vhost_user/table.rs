//! The guest's memory as a backend is told of it.

use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::error::BackendError;
use crate::memory::Ram;

/// Regions that every backend takes in one table.
const TABLE_LEN: usize = 8;

/// A region: guest physical address and length in bytes, address in this process, and offset in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    guest: u64,
    len: u64,
    user: u64,
    offset: u64,
}

/// The regions that a backend was told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table(Vec<Region>);

/// Regions with the descriptors of their files, which are open for as long as the memory is held that they come from.
pub(super) struct Described {
    table: Table,
    infos: Vec<VhostUserMemoryRegionInfo>,
}

impl Described {
    /// All regions of `memory`.
    pub(super) fn new(memory: &Ram) -> Result<Self, BackendError> {
        let infos: Vec<_> = memory
            .iter()
            .map(|region| {
                VhostUserMemoryRegionInfo::from_guest_region(region).map_err(|_| {
                    BackendError::NotShared {
                        address: region.start_addr().0,
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        let table = infos.iter().map(|info| Region {
            guest: info.guest_phys_addr,
            len: info.memory_size,
            user: info.userspace_addr,
            offset: info.mmap_offset,
        });
        Ok(Self {
            table: Table(table.collect()),
            infos,
        })
    }

    pub(super) fn table(&self) -> Table {
        self.table.clone()
    }

    /// Whether a backend with `slots` for regions that come and go, if it has any, can take all.
    pub(super) fn fits(&self, slots: Option<u64>) -> bool {
        let most = slots.map_or(TABLE_LEN, |slots| {
            usize::try_from(slots).unwrap_or(usize::MAX)
        });
        self.infos.len() <= most
    }

    /// Tells `frontend`, whose rings do not run, of all regions.
    pub(super) fn announce(&self, frontend: &mut Frontend) -> vhost::Result<()> {
        let (first, more) = self.infos.split_at(self.infos.len().min(TABLE_LEN));
        frontend.set_mem_table(first)?;
        more.iter()
            .try_for_each(|info| frontend.add_mem_region(info).map(|_| ()))
    }

    /// Tells `frontend`, which knows the regions of `before`, what changed. A backend without slots gets a new table.
    pub(super) fn announce_change(
        &self,
        before: &Table,
        slots: bool,
        frontend: &mut Frontend,
    ) -> vhost::Result<()> {
        if !slots {
            return self.announce(frontend);
        }
        for gone in before
            .0
            .iter()
            .filter(|region| !self.table.0.contains(region))
        {
            frontend.remove_mem_region(&VhostUserMemoryRegionInfo {
                guest_phys_addr: gone.guest,
                memory_size: gone.len,
                userspace_addr: gone.user,
                mmap_offset: gone.offset,
                // Not sent: a region that goes is known by its addresses.
                mmap_handle: -1,
            })?;
        }
        let regions = self.table.0.iter().zip(&self.infos);
        for (_, info) in regions.filter(|(region, _)| !before.0.contains(region)) {
            frontend.add_mem_region(info)?;
        }
        Ok(())
    }
}
