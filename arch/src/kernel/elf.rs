//! ELF kernels of 32 and 64 bits: headers, the PVH note, segments.
//!
//! linux-loader's ELF loader wants a seekable file and 64-bit headers only; here the image may be a stream that is being
//! unpacked, so segments are taken in the order of the file.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::{BootProtocol, bytes_at};
use crate::x86_64::layout::HIGH_RAM_START;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` of the owner `Xen`: the PVH entry point.
const PHYS32_ENTRY: u32 = 18;
const PHYS32_ENTRY_OWNER: &[u8] = b"Xen\0";
/// Largest note segment that is searched; those of kernels have a few hundred bytes.
const NOTES_MAX: u64 = 64 << 10;

/// An ELF image that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Headers that are cut short or beyond the part of the file where they must be.
    #[error("its program headers are not within the first 4096 bytes")]
    HeadersOutOfReach,
    /// No segments to load.
    #[error("it has no segments to load, so it is not a linked kernel")]
    NoSegments,
    /// A segment below the memory that kernels may use.
    #[error("its segment at {start:#x} lies below {HIGH_RAM_START:#x}, where the boot data is")]
    SegmentTooLow {
        /// First address of the segment.
        start: u64,
    },
    /// A segment larger in the file than in memory.
    #[error(
        "its segment at {start:#x} has {file_len} bytes in the file and only {mem_len} in memory"
    )]
    SegmentSizes {
        /// First address of the segment.
        start: u64,
        /// Length in the file.
        file_len: u64,
        /// Length in memory.
        mem_len: u64,
    },
    /// A segment outside guest memory.
    #[error("it needs memory at {start:#x}, {len} bytes; give the guest more memory")]
    DoesNotFit {
        /// First address of the segment.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Segments that a stream cannot give.
    #[error("its segments overlap in the file")]
    Overlap,
    /// An entry point outside all segments.
    #[error("its entry point {entry:#x} is in none of its segments")]
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
    /// A 32-bit image without PVH note.
    #[error(
        "it is a 32-bit image without a PVH entry; expected an x86-64 kernel or one with a PVH entry"
    )]
    No64BitEntry,
    /// A note segment of an absurd size.
    #[error("its note segment has {0} bytes, expected at most {NOTES_MAX}")]
    NotesTooLong(u64),
    /// Reading the image failed.
    #[error("it cannot be read to the end")]
    Read(#[source] io::Error),
    /// Writing guest memory failed.
    #[error("it cannot be copied to guest memory at {start:#x}")]
    Copy {
        /// First address of the segment.
        start: u64,
        /// What failed.
        source: GuestMemoryError,
    },
}

/// Where an ELF image was put and where it starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoadedElf {
    pub(super) entry: GuestAddress,
    pub(super) protocol: BootProtocol,
    /// First address after the highest segment.
    pub(super) end: u64,
}

/// Whether the head of a file is that of a little-endian ELF image for x86, of either width.
pub(super) fn is_x86_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
        && matches!(head.get(4), Some(&(CLASS_32 | CLASS_64)))
        && head.get(5) == Some(&LITTLE_ENDIAN)
        && matches!(
            bytes_at(head, 18).map(u16::from_le_bytes),
            Some(EM_386 | EM_X86_64)
        )
}

/// Bytes of an ELF image in the order of the file.
pub(super) trait Source {
    /// Moves forward to `offset` from the start of the image.
    fn skip_to(&mut self, offset: u64) -> Result<(), ElfError>;
    /// Reads exactly `buf.len()` bytes.
    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()>;
    /// Copies the next `len` bytes to guest memory.
    fn copy<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        addr: GuestAddress,
        len: usize,
    ) -> Result<(), ElfError>;
}

/// An image in a file, read straight into guest memory.
pub(super) struct FileSource<'a> {
    file: &'a mut File,
    base: u64,
}

impl<'a> FileSource<'a> {
    /// The image that starts at offset `base` of `file`.
    pub(super) fn new(file: &'a mut File, base: u64) -> Self {
        Self { file, base }
    }
}

impl Source for FileSource<'_> {
    fn skip_to(&mut self, offset: u64) -> Result<(), ElfError> {
        let position = self.base.saturating_add(offset);
        self.file
            .seek(SeekFrom::Start(position))
            .map(drop)
            .map_err(ElfError::Read)
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(buf)
    }

    fn copy<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        addr: GuestAddress,
        len: usize,
    ) -> Result<(), ElfError> {
        mem.read_exact_volatile_from(addr, self.file, len)
            .map_err(|source| ElfError::Copy {
                start: addr.0,
                source,
            })
    }
}

/// An image that comes out of a decoder.
pub(super) struct StreamSource<R> {
    reader: R,
    position: u64,
}

impl<R: BufRead> StreamSource<R> {
    /// The image that `reader` gives from its first byte on.
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            position: 0,
        }
    }
}

impl<R: BufRead> Source for StreamSource<R> {
    fn skip_to(&mut self, offset: u64) -> Result<(), ElfError> {
        let mut left = offset.checked_sub(self.position).ok_or(ElfError::Overlap)?;
        while left > 0 {
            let available = fill(&mut self.reader).map_err(ElfError::Read)?.len();
            let n = available.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.reader.consume(n);
            left -= n as u64;
        }
        self.position = offset;
        Ok(())
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(buf)?;
        self.position += buf.len() as u64;
        Ok(())
    }

    fn copy<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        addr: GuestAddress,
        len: usize,
    ) -> Result<(), ElfError> {
        let mut done = 0;
        while done < len {
            let chunk = fill(&mut self.reader).map_err(ElfError::Read)?;
            let chunk = &chunk[..chunk.len().min(len - done)];
            mem.write_slice(chunk, GuestAddress(addr.0 + done as u64))
                .map_err(|source| ElfError::Copy {
                    start: addr.0,
                    source,
                })?;
            let n = chunk.len();
            self.reader.consume(n);
            done += n;
        }
        self.position += len as u64;
        Ok(())
    }
}

/// The next bytes of a stream that must have some.
fn fill(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    let chunk = reader.fill_buf()?;
    if chunk.is_empty() {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(chunk)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    offset: u64,
    file_len: u64,
    start: u64,
    mem_len: u64,
}

impl Segment {
    fn contains(&self, addr: u64) -> bool {
        addr >= self.start && addr - self.start < self.mem_len
    }
}

/// What the headers say: entry point, segments and notes in the order of the file.
#[derive(Debug)]
struct Headers {
    is_64_bit: bool,
    entry: u64,
    segments: Vec<Segment>,
    notes: Vec<Segment>,
}

impl Headers {
    fn parse(head: &[u8]) -> Option<Self> {
        let u16_at = |offset| bytes_at(head, offset).map(u16::from_le_bytes);
        let is_64_bit = head.get(4) == Some(&CLASS_64);
        // Widths and places of the fields differ between the classes (ELF specification, figures 1-3 and 2-1).
        let word = |offset: usize| {
            if is_64_bit {
                bytes_at(head, offset).map(u64::from_le_bytes)
            } else {
                bytes_at(head, offset)
                    .map(u32::from_le_bytes)
                    .map(u64::from)
            }
        };
        let (phoff, phentsize, phnum) = if is_64_bit {
            (32, 54, 56)
        } else {
            (28, 42, 44)
        };
        let (offset, paddr, filesz, memsz) = if is_64_bit {
            (8, 24, 32, 40)
        } else {
            (4, 12, 16, 20)
        };
        let table = usize::try_from(word(phoff)?).ok()?;
        let size = usize::from(u16_at(phentsize)?);

        let mut headers = Self {
            is_64_bit,
            entry: word(24)?,
            segments: Vec::new(),
            notes: Vec::new(),
        };
        for index in 0..usize::from(u16_at(phnum)?) {
            let at = table
                .checked_add(index * size)
                .filter(|at| *at < head.len())?;
            let kind = bytes_at(head, at).map(u32::from_le_bytes)?;
            let segment = Segment {
                offset: word(at + offset)?,
                file_len: word(at + filesz)?,
                start: word(at + paddr)?,
                mem_len: word(at + memsz)?,
            };
            match kind {
                PT_LOAD if segment.mem_len > 0 => headers.segments.push(segment),
                PT_NOTE => headers.notes.push(segment),
                _ => {}
            }
        }
        headers.segments.sort_by_key(|segment| segment.offset);
        headers.notes.sort_by_key(|note| note.offset);
        Some(headers)
    }

    /// Checks that every segment has its place; gives the first address after all of them.
    fn check<M: GuestMemoryBackend>(&self, mem: &M) -> Result<u64, ElfError> {
        let mut end = 0;
        for &Segment {
            file_len,
            start,
            mem_len,
            ..
        } in &self.segments
        {
            if start < HIGH_RAM_START {
                return Err(ElfError::SegmentTooLow { start });
            }
            if file_len > mem_len {
                return Err(ElfError::SegmentSizes {
                    start,
                    file_len,
                    mem_len,
                });
            }
            let fits =
                usize::try_from(mem_len).is_ok_and(|len| mem.check_range(GuestAddress(start), len));
            let segment_end = start.checked_add(mem_len).filter(|_| fits);
            end = end.max(segment_end.ok_or(ElfError::DoesNotFit {
                start,
                len: mem_len,
            })?);
        }
        if self.segments.is_empty() {
            Err(ElfError::NoSegments)
        } else {
            Ok(end)
        }
    }

    /// The segment that holds all of `note`, which can be read from guest memory once the segment is there.
    fn holder(&self, note: &Segment) -> Option<GuestAddress> {
        let note_end = note.offset.checked_add(note.file_len)?;
        self.segments
            .iter()
            .find(|s| s.offset <= note.offset && note_end <= s.offset.saturating_add(s.file_len))
            .map(|s| GuestAddress(s.start + (note.offset - s.offset)))
    }
}

/// Copies an ELF image's segments to guest memory and finds its entry point. `head` is the start of the image.
pub(super) fn load<M: GuestMemoryBackend, S: Source>(
    mem: &M,
    source: &mut S,
    head: &[u8],
) -> Result<LoadedElf, ElfError> {
    let headers = Headers::parse(head).ok_or(ElfError::HeadersOutOfReach)?;
    let end = headers.check(mem)?;
    if let Some(note) = headers.notes.iter().find(|note| note.file_len > NOTES_MAX) {
        return Err(ElfError::NotesTooLong(note.file_len));
    }

    let mut pvh_entry = None;
    let mut loose_notes = headers
        .notes
        .iter()
        .filter(|note| headers.holder(note).is_none())
        .peekable();
    for segment in &headers.segments {
        while let Some(note) = loose_notes.next_if(|note| note.offset < segment.offset) {
            pvh_entry = pvh_entry.or(read_note(source, note)?);
        }
        if segment.file_len > 0 {
            source.skip_to(segment.offset)?;
            source.copy(mem, GuestAddress(segment.start), segment.file_len as usize)?;
        }
    }
    for note in loose_notes {
        pvh_entry = pvh_entry.or(read_note(source, note)?);
    }
    for note in &headers.notes {
        if let Some(addr) = headers.holder(note) {
            let mut bytes = vec![0; note.file_len as usize];
            mem.read_slice(&mut bytes, addr)
                .map_err(|source| ElfError::Copy {
                    start: addr.0,
                    source,
                })?;
            pvh_entry = pvh_entry.or(find_pvh_entry(&bytes));
        }
    }

    let (entry, protocol) = match pvh_entry {
        Some(entry) => (u64::from(entry), BootProtocol::Pvh),
        None if headers.is_64_bit => (headers.entry, BootProtocol::Linux64),
        None => return Err(ElfError::No64BitEntry),
    };
    if !headers
        .segments
        .iter()
        .any(|segment| segment.contains(entry))
    {
        return Err(ElfError::EntryOutside { entry });
    }
    Ok(LoadedElf {
        entry: GuestAddress(entry),
        protocol,
        end,
    })
}

fn read_note<S: Source>(source: &mut S, note: &Segment) -> Result<Option<u32>, ElfError> {
    let mut bytes = vec![0; note.file_len as usize];
    source.skip_to(note.offset)?;
    source.read_exact(&mut bytes).map_err(ElfError::Read)?;
    Ok(find_pvh_entry(&bytes))
}

/// The PVH entry point among ELF notes, whose names and descriptors are padded to four bytes.
fn find_pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let word = |offset| bytes_at(notes, offset).map(u32::from_le_bytes);
        let (name_len, desc_len, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let body = notes.get(12..)?;
        let desc = body.get(name_len.checked_next_multiple_of(4)?..)?;
        if kind == PHYS32_ENTRY && body.get(..name_len)? == PHYS32_ENTRY_OWNER && desc_len >= 4 {
            return desc.first_chunk().copied().map(u32::from_le_bytes);
        }
        notes = desc.get(desc_len.checked_next_multiple_of(4)?..)?;
    }
}
