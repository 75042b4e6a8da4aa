//! The start-of-day structures of the PVH boot protocol.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::boot::{BootError, BootInfo};
use super::layout::{
    CMDLINE_START, PVH_MEMMAP_MAX, PVH_MEMMAP_START, PVH_MODLIST_START, PVH_START_INFO_START,
};

/// Version of `hvm_start_info` that has a memory map.
const VERSION: u32 = 1;
const MAP_MAX: usize = PVH_MEMMAP_MAX as usize / size_of::<hvm_memmap_table_entry>();

/// Writes `hvm_start_info` with memory map and module list, and gives its address.
pub(super) fn write<M: GuestMemoryBackend>(
    mem: &M,
    info: &BootInfo<'_>,
) -> Result<GuestAddress, BootError> {
    if info.map.len() > MAP_MAX {
        return Err(BootError::MapTooLong {
            len: info.map.len(),
            max: MAP_MAX,
        });
    }
    let modules: Vec<_> = info
        .initramfs
        .iter()
        .map(|initramfs| hvm_modlist_entry {
            paddr: initramfs.start.0,
            size: initramfs.len,
            ..Default::default()
        })
        .collect();
    let map: Vec<_> = info
        .map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.len,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() {
            0
        } else {
            PVH_MODLIST_START
        },
        cmdline_paddr: CMDLINE_START,
        rsdp_paddr: info.rsdp.0,
        memmap_paddr: PVH_MEMMAP_START,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };

    let addr = GuestAddress(PVH_START_INFO_START);
    let mut params = BootParams::new(&start_info, addr);
    params.set_sections(&map, GuestAddress(PVH_MEMMAP_START));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(PVH_MODLIST_START));
    }
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(BootError::Protocol)?;
    Ok(addr)
}
