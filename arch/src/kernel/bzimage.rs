//! bzImage kernels (the Linux/x86 boot protocol): the ELF inside, or the image as it is.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::elf::{FileSource, LoadedElf, StreamSource};
use super::payload::unpack;
use super::{
    BootProtocol, Compression, ElfError, HEAD_LEN, KernelError, KernelImage, LoadedKernel,
    PayloadError, bytes_at, elf,
};
use crate::x86_64::layout::HIGH_RAM_START;

const SETUP_HEADER_START: usize = 0x1f1;
const BOOT_FLAG_START: usize = 0x1fe;
const BOOT_FLAG: [u8; 2] = [0x55, 0xaa];
const JUMP_OFFSET: usize = 0x201;
const MAGIC_START: usize = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";
const SECTOR: u64 = 512;
/// Setup sectors where the header says 0.
const SETUP_SECTS_DEFAULT: u8 = 4;
/// Distance of the 64-bit entry from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// Protocol versions that brought `payload_offset`, `pref_address` with `init_size`, and `xloadflags`.
const VERSION_PAYLOAD: u16 = 0x208;
const VERSION_PREF_ADDRESS: u16 = 0x20a;
const VERSION_XLOADFLAGS: u16 = 0x20c;
/// Length of the size bytes after the packed kernel.
const SIZE_BYTES: u64 = 4;

/// Whether the head of a file is that of a bzImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    bytes_at(head, MAGIC_START) == Some(MAGIC) && bytes_at(head, BOOT_FLAG_START) == Some(BOOT_FLAG)
}

/// Loads the ELF inside, or the bzImage itself where that cannot be unpacked here.
pub(super) fn load<M: GuestMemoryBackend>(
    mem: &M,
    file: &mut File,
    head: &[u8],
) -> Result<LoadedKernel, KernelError> {
    let header =
        parse_header(head).ok_or(KernelError::DamagedBzImage("its header is cut short"))?;
    if { header.version } < 0x200 || header.loadflags & LOADED_HIGH == 0 {
        return Err(KernelError::DamagedBzImage(
            "it is an old zImage, expected one that loads at 1 MiB",
        ));
    }
    let file_len = file.seek(SeekFrom::End(0)).map_err(KernelError::Read)?;
    let code_start = protected_mode_start(&header);
    if file_len <= code_start + ENTRY_64 {
        return Err(KernelError::DamagedBzImage(
            "the file ends before its protected-mode code",
        ));
    }

    match load_payload(mem, file, &header, file_len) {
        Ok((elf, compression)) => Ok(LoadedKernel {
            entry: elf.entry,
            protocol: elf.protocol,
            end: elf.end,
            setup_header: Some(header),
            image: KernelImage::BzImage { compression },
        }),
        Err(PayloadError::Elf(error @ ElfError::DoesNotFit { .. })) => Err(error.into()),
        Err(reason)
            if { header.version } >= VERSION_XLOADFLAGS
                && header.xloadflags & XLF_KERNEL_64 != 0 =>
        {
            load_self_extracting(mem, file, &header, file_len - code_start, reason)
        }
        Err(reason) => Err(KernelError::Not64Bit(reason)),
    }
}

/// The setup header, with zeroes for the fields that an older protocol version does not have.
fn parse_header(head: &[u8]) -> Option<setup_header> {
    // The header's length is coded in the jump instruction at its start (boot protocol, "The Real-Mode Kernel Header").
    let len = MAGIC_START + usize::from(*head.get(JUMP_OFFSET)?) - SETUP_HEADER_START;
    let mut header = setup_header::default();
    let fields = header.as_mut_slice();
    let len = len.min(fields.len());
    fields[..len].copy_from_slice(head.get(SETUP_HEADER_START..SETUP_HEADER_START + len)?);
    Some(header)
}

/// File offset of the protected-mode code.
fn protected_mode_start(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 {
        SETUP_SECTS_DEFAULT
    } else {
        header.setup_sects
    };
    (u64::from(sectors) + 1) * SECTOR
}

fn load_payload<M: GuestMemoryBackend>(
    mem: &M,
    file: &mut File,
    header: &setup_header,
    file_len: u64,
) -> Result<(LoadedElf, Compression), PayloadError> {
    let len = u64::from(header.payload_length);
    if { header.version } < VERSION_PAYLOAD || len <= SIZE_BYTES {
        return Err(PayloadError::Missing);
    }
    let start = protected_mode_start(header) + u64::from(header.payload_offset);
    if start + len > file_len {
        return Err(PayloadError::OutOfFile);
    }
    let packed_len = len - SIZE_BYTES;
    let mut word_at = |offset| {
        let mut word = [0; 4];
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut word)?;
        Ok(word)
    };
    let unpacked_len =
        u32::from_le_bytes(word_at(start + packed_len).map_err(PayloadError::Unpack)?);
    let compression = Compression::detect(word_at(start).map_err(PayloadError::Unpack)?)?;
    file.seek(SeekFrom::Start(start))
        .map_err(PayloadError::Unpack)?;

    let elf = if compression == Compression::None {
        let mut head = Vec::new();
        file.by_ref()
            .take(packed_len.min(HEAD_LEN))
            .read_to_end(&mut head)
            .map_err(PayloadError::Unpack)?;
        check_elf(&head)?;
        elf::load(mem, &mut FileSource::new(file, start), &head)
    } else {
        // gzip counts its own trailer, which holds the same size, as part of the file format.
        let packed_len = if compression == Compression::Gzip {
            len
        } else {
            packed_len
        };
        let mut stream = unpack(compression, file.take(packed_len), unpacked_len)
            .map_err(PayloadError::Unpack)?;
        let mut head = Vec::new();
        stream
            .by_ref()
            .take(HEAD_LEN)
            .read_to_end(&mut head)
            .map_err(PayloadError::Unpack)?;
        check_elf(&head)?;
        let mut source = StreamSource::new(Cursor::new(&head).chain(stream));
        elf::load(mem, &mut source, &head)
    };
    elf.map(|elf| (elf, compression)).map_err(PayloadError::Elf)
}

fn check_elf(head: &[u8]) -> Result<(), PayloadError> {
    if elf::is_x86_elf(head) {
        Ok(())
    } else {
        Err(PayloadError::NotElf)
    }
}

/// Loads the bzImage for its own decompressor, entered at its 64-bit entry.
fn load_self_extracting<M: GuestMemoryBackend>(
    mem: &M,
    file: &mut File,
    header: &setup_header,
    code_len: u64,
    reason: PayloadError,
) -> Result<LoadedKernel, KernelError> {
    let (start, needed) = placement(header, code_len);
    let end = start.saturating_add(needed);
    let fits =
        usize::try_from(needed).is_ok_and(|needed| mem.check_range(GuestAddress(start), needed));
    if !fits {
        return Err(KernelError::BzImageDoesNotFit { start, end });
    }
    let loaded = BzImage::load(mem, Some(GuestAddress(start)), file, None)
        .map_err(KernelError::CopyBzImage)?;
    Ok(LoadedKernel {
        entry: GuestAddress(start + ENTRY_64),
        protocol: BootProtocol::Linux64,
        end: end.max(loaded.kernel_end),
        setup_header: loaded.setup_header.map(|loaded| setup_header {
            code32_start: loaded.code32_start,
            ..*header
        }),
        image: KernelImage::SelfExtracting { reason },
    })
}

/// Where the protected-mode code goes and how many bytes it needs there until the kernel runs.
///
/// A relocatable kernel goes where it wants to run, so that it need not move itself; others go to 1 MiB.
fn placement(header: &setup_header, code_len: u64) -> (u64, u64) {
    if { header.version } < VERSION_PREF_ADDRESS {
        return (HIGH_RAM_START, code_len);
    }
    let (preferred, init_size) = ({ header.pref_address }, u64::from(header.init_size));
    if header.relocatable_kernel != 0 && preferred >= HIGH_RAM_START {
        (preferred, init_size.max(code_len))
    } else {
        // The kernel unpacks itself to its preferred address, beyond the place it was loaded at.
        let run_end = preferred
            .saturating_add(init_size)
            .saturating_sub(HIGH_RAM_START);
        (HIGH_RAM_START, run_end.max(code_len))
    }
}
