//! The initramfs: as high as it may lie, so that the kernel has free memory around itself.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::LoadedKernel;
use crate::x86_64::layout::LOW_RAM_END;

const PAGE: u64 = 4096;
/// Boot protocol version that brought `initrd_addr_max`.
const VERSION_INITRD_ADDR_MAX: u16 = 0x203;

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitramfsRange {
    /// First address, page aligned.
    pub start: GuestAddress,
    /// Length in bytes.
    pub len: u64,
}

/// Where an initramfs may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitramfsPlacement {
    /// First address that is free: after the kernel.
    pub lowest: u64,
    /// First address that is not: the end of low RAM, or the kernel's limit where that is lower.
    pub limit: u64,
}

/// An initramfs that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// Reading the file failed.
    #[error("the initramfs cannot be read")]
    Read(#[source] io::Error),
    /// The file is empty.
    #[error("the initramfs file is empty; expected a cpio archive, packed or not")]
    Empty,
    /// No room between the kernel and its limit.
    #[error(
        "the initramfs has {len} bytes, but only {room} are free between the kernel's end at {lowest:#x} and \
         {limit:#x}; give the guest more memory"
    )]
    DoesNotFit {
        /// Length of the initramfs.
        len: u64,
        /// Bytes that are free.
        room: u64,
        /// First free address.
        lowest: u64,
        /// First address that is not free.
        limit: u64,
    },
    /// Copying to guest memory failed.
    #[error("the initramfs cannot be copied to guest memory at {start:#x}")]
    Copy {
        /// Where it should go.
        start: u64,
        /// What failed.
        source: GuestMemoryError,
    },
}

impl InitramfsPlacement {
    /// Between the end of `kernel` and the end of the low RAM of a guest with `ram_size` bytes, or the limit in the
    /// kernel's header where that is lower.
    pub fn after(kernel: &LoadedKernel, ram_size: u64) -> Self {
        let limit = match &kernel.setup_header {
            Some(header) if { header.version } >= VERSION_INITRD_ADDR_MAX => {
                u64::from(header.initrd_addr_max) + 1
            }
            _ => LOW_RAM_END,
        };
        Self {
            lowest: kernel.end,
            limit: limit.min(ram_size).min(LOW_RAM_END),
        }
    }

    /// The highest page where `len` bytes fit.
    fn start(&self, len: u64) -> Option<u64> {
        let lowest = self.lowest.checked_next_multiple_of(PAGE)?;
        let start = self.limit.checked_sub(len)? / PAGE * PAGE;
        (start >= lowest).then_some(start)
    }
}

/// Puts an initramfs into guest memory, as high as `placement` allows, on a page boundary.
pub fn load_initramfs<M: GuestMemoryBackend>(
    mem: &M,
    file: &mut File,
    placement: InitramfsPlacement,
) -> Result<InitramfsRange, InitramfsError> {
    let len = file.seek(SeekFrom::End(0)).map_err(InitramfsError::Read)?;
    file.seek(SeekFrom::Start(0))
        .map_err(InitramfsError::Read)?;
    if len == 0 {
        return Err(InitramfsError::Empty);
    }
    let InitramfsPlacement { lowest, limit } = placement;
    let start = placement
        .start(len)
        .ok_or_else(|| InitramfsError::DoesNotFit {
            len,
            room: limit.saturating_sub(lowest),
            lowest,
            limit,
        })?;
    mem.read_exact_volatile_from(GuestAddress(start), file, len as usize)
        .map_err(|source| InitramfsError::Copy { start, source })?;
    Ok(InitramfsRange {
        start: GuestAddress(start),
        len,
    })
}
