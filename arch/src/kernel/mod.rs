//! Kernels and initramfs images: from an opened file to guest memory.
//!
//! An ELF kernel goes segment by segment from the file to guest memory. The ELF inside a bzImage is unpacked on the
//! host as a stream, because a host does that faster than a guest and because the kernel inside has the PVH entry.

mod bzimage;
mod elf;
mod identify;
mod initramfs;
mod payload;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{GuestAddress, GuestMemoryBackend};

pub use elf::ElfError;
pub use initramfs::{InitramfsError, InitramfsPlacement, InitramfsRange, load_initramfs};
pub use payload::{Compression, PayloadError};

/// Bytes at the start of a kernel file that hold all of its headers.
const HEAD_LEN: u64 = 4096;

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// The Xen PVH entry point: 32-bit protected mode, `hvm_start_info` in `ebx`.
    Pvh,
    /// The 64-bit Linux boot protocol: long mode, `boot_params` in `rsi`.
    Linux64,
}

/// Which kind of file the kernel came from.
#[derive(Debug)]
pub enum KernelImage {
    /// An ELF image.
    Elf,
    /// A bzImage whose ELF was unpacked on the host.
    BzImage {
        /// How it was packed.
        compression: Compression,
    },
    /// A bzImage that unpacks itself in the guest.
    SelfExtracting {
        /// Why the host did not unpack it.
        reason: PayloadError,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Address of the first instruction.
    pub entry: GuestAddress,
    /// How to enter it.
    pub protocol: BootProtocol,
    /// First address after what the kernel occupies before it knows the memory map.
    pub end: u64,
    /// Setup header of a bzImage, whichever way it is entered.
    pub setup_header: Option<setup_header>,
    /// Which kind of file it came from.
    pub image: KernelImage,
}

/// A kernel that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading the file failed.
    #[error("the kernel cannot be read")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error(
        "the kernel file is {found}; expected an x86-64 Linux kernel: an ELF image (vmlinux) or a bzImage (vmlinuz)"
    )]
    NotAKernel {
        /// What the file is.
        found: String,
    },
    /// The file is an ELF image that cannot be booted.
    #[error("the kernel's ELF image cannot be loaded")]
    Elf(#[from] ElfError),
    /// A 32-bit bzImage without a PVH entry.
    #[error(
        "the kernel is a 32-bit bzImage and its ELF image cannot be entered directly; expected an x86-64 kernel"
    )]
    Not64Bit(#[source] PayloadError),
    /// A bzImage that is cut short or has senseless sizes in its header.
    #[error("the kernel is a damaged bzImage: {0}")]
    DamagedBzImage(&'static str),
    /// A bzImage that needs more memory than the guest has.
    #[error(
        "the kernel needs memory from {start:#x} to {end:#x} to unpack itself; give the guest more memory"
    )]
    BzImageDoesNotFit {
        /// First address it needs.
        start: u64,
        /// First address after what it needs.
        end: u64,
    },
    /// Copying a bzImage to guest memory failed.
    #[error("the bzImage cannot be copied to guest memory")]
    CopyBzImage(#[source] linux_loader::loader::Error),
}

/// Puts a kernel into guest memory, which must be zero where the kernel's uninitialized data will be.
///
/// An ELF image is entered at its PVH entry, or by the 64-bit Linux boot protocol where it has none. So is the ELF image
/// inside a bzImage; where that cannot be unpacked here, the bzImage unpacks itself in the guest.
pub fn load_kernel<M: GuestMemoryBackend>(
    mem: &M,
    kernel: &mut File,
) -> Result<LoadedKernel, KernelError> {
    let head = read_head(kernel).map_err(KernelError::Read)?;
    if bzimage::is_bzimage(&head) {
        return bzimage::load(mem, kernel, &head);
    }
    if elf::is_x86_elf(&head) {
        let elf = elf::load(mem, &mut elf::FileSource::new(kernel, 0), &head)?;
        return Ok(LoadedKernel {
            entry: elf.entry,
            protocol: elf.protocol,
            end: elf.end,
            setup_header: None,
            image: KernelImage::Elf,
        });
    }
    let found = identify::describe(kernel).map_err(KernelError::Read)?;
    Err(KernelError::NotAKernel { found })
}

/// A firmware that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// Reading the file failed.
    #[error("the firmware cannot be read")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error(
        "the firmware file is {found}; expected an ELF image with a PVH entry, such as Cloud Hypervisor's build of edk2 \
         (CLOUDHV.fd)"
    )]
    NotAFirmware {
        /// What the file is.
        found: String,
    },
    /// The file is an ELF image that cannot be loaded.
    #[error("the firmware's ELF image cannot be loaded")]
    Elf(#[from] ElfError),
    /// The file is an ELF image without the note that a firmware has.
    #[error("the firmware's ELF image has no PVH entry")]
    NoPvhEntry,
}

/// Puts a firmware into guest memory: an ELF image that is entered at its PVH entry.
pub fn load_firmware<M: GuestMemoryBackend>(
    mem: &M,
    firmware: &mut File,
) -> Result<LoadedKernel, FirmwareError> {
    let head = read_head(firmware).map_err(FirmwareError::Read)?;
    if !elf::is_x86_elf(&head) {
        let found = identify::describe(firmware).map_err(FirmwareError::Read)?;
        return Err(FirmwareError::NotAFirmware { found });
    }
    let elf = match elf::load(mem, &mut elf::FileSource::new(firmware, 0), &head) {
        Err(ElfError::No64BitEntry) => return Err(FirmwareError::NoPvhEntry),
        result => result?,
    };
    if elf.protocol != BootProtocol::Pvh {
        return Err(FirmwareError::NoPvhEntry);
    }
    Ok(LoadedKernel {
        entry: elf.entry,
        protocol: elf.protocol,
        end: elf.end,
        setup_header: None,
        image: KernelImage::Elf,
    })
}

/// The first [`HEAD_LEN`] bytes, or fewer where the file is shorter.
fn read_head(kernel: &mut File) -> io::Result<Vec<u8>> {
    kernel.seek(SeekFrom::Start(0))?;
    let mut head = Vec::with_capacity(HEAD_LEN as usize);
    kernel.by_ref().take(HEAD_LEN).read_to_end(&mut head)?;
    Ok(head)
}

/// Little-endian number of `N` bytes at `offset`, if the slice reaches that far.
fn bytes_at<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..)?.first_chunk().copied()
}
