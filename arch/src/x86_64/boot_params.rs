//! The zero page of the 64-bit Linux boot protocol.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::boot::{BootError, BootInfo};
use super::layout::{CMDLINE_START, ZERO_PAGE_START};

/// Loader id for loaders without a number of their own.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Protocol version for kernels that have no header of their own: 2.15.
const VERSION: u16 = 0x20f;
/// Alignment of x86-64 kernels: 2 MiB.
const ALIGNMENT: u32 = 2 << 20;

/// Writes `boot_params` and gives its address. ELF kernels have no `header`.
pub(super) fn write<M: GuestMemoryBackend>(
    mem: &M,
    header: Option<&setup_header>,
    info: &BootInfo<'_>,
) -> Result<GuestAddress, BootError> {
    let params = make(header, info)?;
    let addr = GuestAddress(ZERO_PAGE_START);
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, addr), mem)
        .map_err(BootError::Protocol)?;
    Ok(addr)
}

fn make(header: Option<&setup_header>, info: &BootInfo<'_>) -> Result<boot_params, BootError> {
    let hdr = header.copied().unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        version: VERSION,
        kernel_alignment: ALIGNMENT,
        loadflags: LOADED_HIGH,
        cmdline_size: info.cmdline_len as u32,
        ..setup_header::default()
    });
    let mut params = boot_params {
        hdr,
        acpi_rsdp_addr: info.rsdp.0,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE_START as u32;
    if let Some(initramfs) = info.initramfs {
        let (start, len) = (initramfs.start.0, initramfs.len);
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = (start as u32, (start >> 32) as u32);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = (len as u32, (len >> 32) as u32);
    }

    // A copy, since a reference into the packed structure would be unaligned.
    let mut table = params.e820_table;
    if info.map.len() > table.len() {
        return Err(BootError::MapTooLong {
            len: info.map.len(),
            max: table.len(),
        });
    }
    for (slot, entry) in table.iter_mut().zip(info.map) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.len,
            r#type: entry.kind as u32,
        };
    }
    params.e820_table = table;
    params.e820_entries = info.map.len() as u8;
    Ok(params)
}
