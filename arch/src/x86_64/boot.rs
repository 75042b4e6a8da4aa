//! Boot data for the kernel: command line, memory map, initramfs and ACPI, by either boot protocol.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::layout::{CMDLINE_MAX, CMDLINE_START};
use super::memory_map::MemoryMapEntry;
use super::{boot_params, pvh, registers};
use crate::kernel::{BootProtocol, InitramfsRange, LoadedKernel};

/// What the boot vCPU's registers must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// How the kernel is entered.
    pub protocol: BootProtocol,
    /// Address of its first instruction.
    pub entry: GuestAddress,
    /// Address of `hvm_start_info` (PVH) or of `boot_params` (64-bit Linux boot protocol).
    pub boot_info: GuestAddress,
}

/// Boot data that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Too long a command line.
    #[error("the kernel command line has {len} bytes, expected at most {max}")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// Largest length that the kernel takes.
        max: usize,
    },
    /// A command line that is not plain text.
    #[error(
        "the kernel command line has {character:?} at byte {position}, expected ASCII text without NUL"
    )]
    CmdlineCharacter {
        /// The character that is refused.
        character: char,
        /// Its place.
        position: usize,
    },
    /// More memory map entries than the boot protocol takes.
    #[error("the memory map has {len} entries, expected at most {max}")]
    MapTooLong {
        /// Number of entries.
        len: usize,
        /// Largest number.
        max: usize,
    },
    /// Writing to guest memory failed.
    #[error("boot data cannot be written to guest memory at {addr:#x}")]
    Write {
        /// Where.
        addr: u64,
        /// What failed.
        source: GuestMemoryError,
    },
    /// Writing the structures of the boot protocol failed.
    #[error("the structures of the boot protocol cannot be written to guest memory")]
    Protocol(#[source] linux_loader::configurator::Error),
}

/// What either boot protocol tells the kernel, beside the kernel itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct BootInfo<'a> {
    /// Length of the command line, without its NUL.
    pub(super) cmdline_len: usize,
    pub(super) initramfs: Option<InitramfsRange>,
    pub(super) map: &'a [MemoryMapEntry],
    pub(super) rsdp: GuestAddress,
}

/// Writes everything the kernel reads at its entry into guest memory: command line, memory map, initramfs address, RSDP
/// address, descriptor and page tables.
pub fn configure_boot<M: GuestMemoryBackend>(
    mem: &M,
    kernel: &LoadedKernel,
    cmdline: &str,
    initramfs: Option<InitramfsRange>,
    map: &[MemoryMapEntry],
    rsdp: GuestAddress,
) -> Result<BootEntry, BootError> {
    write_cmdline(mem, cmdline, cmdline_limit(kernel))?;
    let info = BootInfo {
        cmdline_len: cmdline.len(),
        initramfs,
        map,
        rsdp,
    };
    registers::write_gdt(mem, kernel.protocol)?;
    let boot_info = match kernel.protocol {
        BootProtocol::Pvh => pvh::write(mem, &info)?,
        BootProtocol::Linux64 => {
            registers::write_page_tables(mem)?;
            boot_params::write(mem, kernel.setup_header.as_ref(), &info)?
        }
    };
    Ok(BootEntry {
        protocol: kernel.protocol,
        entry: kernel.entry,
        boot_info,
    })
}

/// Longest command line, without its NUL, that the kernel and the address map take.
fn cmdline_limit(kernel: &LoadedKernel) -> usize {
    /// Boot protocol version that brought `cmdline_size`; before it, 255 bytes are taken.
    const VERSION_CMDLINE_SIZE: u16 = 0x206;
    let room = CMDLINE_MAX as usize - 1;
    match &kernel.setup_header {
        Some(header) if { header.version } >= VERSION_CMDLINE_SIZE => {
            room.min(header.cmdline_size as usize)
        }
        Some(_) => 255,
        None => room,
    }
}

fn write_cmdline<M: GuestMemoryBackend>(
    mem: &M,
    cmdline: &str,
    max: usize,
) -> Result<(), BootError> {
    if let Some((position, character)) = cmdline
        .char_indices()
        .find(|(_, c)| !c.is_ascii() || *c == '\0')
    {
        return Err(BootError::CmdlineCharacter {
            character,
            position,
        });
    }
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    let mut bytes = Vec::with_capacity(cmdline.len() + 1);
    bytes.extend_from_slice(cmdline.as_bytes());
    bytes.push(0);
    write(mem, &bytes, CMDLINE_START)
}

/// Writes `bytes` at `addr`.
pub(super) fn write<M: GuestMemoryBackend>(
    mem: &M,
    bytes: &[u8],
    addr: u64,
) -> Result<(), BootError> {
    mem.write_slice(bytes, GuestAddress(addr))
        .map_err(|source| BootError::Write { addr, source })
}

#[cfg(test)]
mod tests;
