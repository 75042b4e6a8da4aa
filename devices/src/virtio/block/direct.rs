//! Transfers that pass the host's page cache by (O_DIRECT).
//!
//! The host takes them only if memory and offsets are aligned. Those of guests nearly always are; others go through a
//! buffer that is.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::Pieces;

/// Bytes that go through the buffer at once, before alignment; a multiple of any alignment that there is.
const BUFFER_LEN: usize = 1 << 18;

/// The largest alignment that is believed.
const MAX_ALIGNMENT: usize = 1 << 16;

/// What transfers must be multiples of, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// For addresses of memory.
    pub(super) memory: usize,
    /// For offsets and lengths, each piece's included.
    pub(super) offset: usize,
}

/// How a file is accessed directly.
#[derive(Debug)]
pub(super) struct Direct {
    alignment: Alignment,
    /// Taken by all that change parts of the file's units, which they have to read before.
    buffer: Mutex<Buffer>,
}

impl Direct {
    /// Direct access to `file`, if it was opened so. The inner none is a file that cannot be accessed directly.
    pub(super) fn of(file: &File) -> io::Result<Option<Option<Self>>> {
        // SAFETY: F_GETFL takes no argument, and the descriptor is open.
        #[expect(unsafe_code)]
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        if flags & libc::O_DIRECT == 0 {
            return Ok(None);
        }
        let alignment = match told_alignment(file)? {
            Some(alignment) => alignment,
            None => usual_alignment(file)?,
        };
        let fits = |unit: usize| unit.is_power_of_two() && unit <= MAX_ALIGNMENT;
        Ok(Some(
            (fits(alignment.memory) && fits(alignment.offset)).then(|| Self::new(alignment)),
        ))
    }

    pub(super) fn new(alignment: Alignment) -> Self {
        Self {
            alignment,
            buffer: Mutex::new(Buffer::new(alignment.memory)),
        }
    }

    /// What offsets and lengths have to be multiples of.
    pub(super) fn unit(&self) -> u64 {
        self.alignment.offset as u64
    }

    /// Whether the host takes a transfer as it is.
    pub(super) fn takes(&self, pieces: Pieces<'_>, offset: u64) -> bool {
        let Alignment {
            memory,
            offset: unit,
        } = self.alignment;
        offset.is_multiple_of(unit as u64)
            && pieces.iovecs().iter().all(|piece| {
                piece.iov_base.addr().is_multiple_of(memory) && piece.iov_len.is_multiple_of(unit)
            })
    }

    /// Keeps others from changing parts of units.
    pub(super) fn lock(&self) -> impl Sized + '_ {
        self.buffer()
    }

    /// Reads through the buffer: as much as fits in there.
    pub(super) fn read_at(
        &self,
        file: &File,
        pieces: Pieces<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let mut buffer = self.buffer();
        let (start, head, count, len) = self.span(pieces, offset);
        let bytes = &mut buffer.bytes()[..len];
        let read = file.read_at(bytes, start)?;
        let count = read.saturating_sub(head).min(count);
        let mut from = &bytes[head..][..count];
        for piece in pieces.slices() {
            let (now, later) = from.split_at(from.len().min(piece.len()));
            piece.copy_from(now);
            from = later;
        }
        Ok(count)
    }

    /// Writes through the buffer: as much as fits in there. Units that are written in part are read first.
    pub(super) fn write_at(
        &self,
        file: &File,
        pieces: Pieces<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let mut buffer = self.buffer();
        let (start, head, count, len) = self.span(pieces, offset);
        let bytes = &mut buffer.bytes()[..len];
        if head != 0 || head + count != len {
            file.read_exact_at(bytes, start)?;
        }
        let mut to = &mut bytes[head..][..count];
        for piece in pieces.slices() {
            let (now, later) = to.split_at_mut(to.len().min(piece.len()));
            piece.copy_to(now);
            to = later;
        }
        let written = file.write_at(bytes, start)?;
        Ok(written.saturating_sub(head).min(count))
    }

    /// Where the units begin that a transfer is in, how many of its bytes they have before it, how many bytes of it go at
    /// once, and how many bytes its units have together.
    fn span(&self, pieces: Pieces<'_>, offset: u64) -> (u64, usize, usize, usize) {
        let unit = self.alignment.offset;
        let head = (offset % unit as u64) as usize;
        let total: usize = pieces.iovecs().iter().map(|piece| piece.iov_len).sum();
        let count = total.min(BUFFER_LEN - head);
        let len = (head + count).next_multiple_of(unit);
        (offset - head as u64, head, count, len)
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of [`BUFFER_LEN`] bytes that begins where the host wants it.
struct Buffer {
    bytes: Vec<u8>,
    first: usize,
}

impl fmt::Debug for Buffer {
    /// Without the bytes, which are the guest's, and many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").finish_non_exhaustive()
    }
}

impl Buffer {
    fn new(alignment: usize) -> Self {
        let bytes = vec![0; BUFFER_LEN + alignment];
        let first = bytes.as_ptr().addr().next_multiple_of(alignment) - bytes.as_ptr().addr();
        Self { bytes, first }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.first..][..BUFFER_LEN]
    }
}

/// The alignment that the host tells for `file` (`statx`, Linux 6.1), if it does. Zeros mean that there is none.
fn told_alignment(file: &File) -> io::Result<Option<Alignment>> {
    // SAFETY: all bits zero is a valid value of this structure of numbers.
    #[expect(unsafe_code)]
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a string that ends; the call writes one `statx`, and `facts` outlives it.
    #[expect(unsafe_code)]
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut facts,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(
        (facts.stx_mask & libc::STATX_DIOALIGN != 0).then_some(Alignment {
            memory: facts.stx_dio_mem_align as usize,
            offset: facts.stx_dio_offset_align as usize,
        }),
    )
}

/// An alignment that the host takes where it tells none: the logical block of a block device, and of a file what its file
/// system likes best, which is at least that.
fn usual_alignment(file: &File) -> io::Result<Alignment> {
    let metadata = file.metadata()?;
    let unit = if metadata.file_type().is_block_device() {
        super::file::device_block_sizes(file)?.logical
    } else {
        let preferred = metadata.blksize().clamp(512, 4096) as u32;
        super::file::floor_power_of_two(preferred)
    };
    Ok(Alignment {
        memory: unit as usize,
        offset: unit as usize,
    })
}

#[cfg(test)]
mod tests;
