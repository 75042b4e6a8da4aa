//! Parts of the pieces of a transfer, moved without a list of their own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::virtio::block::disk::Pieces;

/// Pieces of memory that lie next to each other in a transfer's list, or a part of one.
enum Run<'a> {
    Whole(&'a [libc::iovec]),
    Part([libc::iovec; 1]),
}

/// Bytes of all pieces.
pub(super) fn total(pieces: Pieces<'_>) -> u64 {
    pieces
        .iovecs()
        .iter()
        .map(|piece| piece.iov_len as u64)
        .sum()
}

/// What one call can move of the `len` bytes after the first `skip`: as many whole pieces as fit, or a part of one.
fn run(pieces: Pieces<'_>, skip: u64, len: u64) -> Run<'_> {
    let mut list = pieces.iovecs();
    let mut skip = skip;
    while let Some((first, rest)) = list.split_first()
        && first.iov_len as u64 <= skip
    {
        skip -= first.iov_len as u64;
        list = rest;
    }
    let mut left = len;
    let whole = list.iter().take_while(|piece| {
        let fits = piece.iov_len as u64 <= left;
        if fits {
            left -= piece.iov_len as u64;
        }
        fits
    });
    let whole = if skip == 0 { whole.count() } else { 0 };
    match list.first() {
        Some(first) if whole == 0 => Run::Part([libc::iovec {
            iov_base: first.iov_base.wrapping_byte_add(skip as usize),
            iov_len: (first.iov_len as u64 - skip).min(len) as usize,
        }]),
        _ => Run::Whole(&list[..whole]),
    }
}

impl Run<'_> {
    fn list(&self) -> &[libc::iovec] {
        match self {
            Self::Whole(list) => list,
            Self::Part(list) => list,
        }
    }
}

fn result(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn offset_of(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Fills up to `len` bytes of `pieces` from `offset`.
pub(super) fn read(file: &File, pieces: Pieces<'_>, len: u64, offset: u64) -> io::Result<usize> {
    let run = run(pieces, 0, len);
    let (list, offset) = (run.list(), offset_of(offset)?);
    // SAFETY: `Pieces` promises that the iovecs name memory that may be written, and the list has parts of them.
    #[allow(unsafe_code)]
    let count = unsafe {
        libc::preadv(
            file.as_raw_fd(),
            list.as_ptr(),
            list.len() as libc::c_int,
            offset,
        )
    };
    result(count)
}

/// Writes up to `len` bytes of `pieces` after the first `skip` to `offset`.
pub(super) fn write(
    file: &File,
    pieces: Pieces<'_>,
    skip: u64,
    len: u64,
    offset: u64,
) -> io::Result<usize> {
    let run = run(pieces, skip, len);
    let (list, offset) = (run.list(), offset_of(offset)?);
    // SAFETY: `Pieces` promises that the iovecs name memory that may be read, and the list has parts of them.
    #[allow(unsafe_code)]
    let count = unsafe {
        libc::pwritev(
            file.as_raw_fd(),
            list.as_ptr(),
            list.len() as libc::c_int,
            offset,
        )
    };
    result(count)
}

/// Fills the first `len` bytes of `pieces` with zeros, and tells how many they are.
pub(super) fn fill_zeros(pieces: Pieces<'_>, len: u64) -> usize {
    fill(pieces, len, |_, slice| {
        slice.write_bytes(0);
    })
}

/// Fills `pieces` from `bytes`.
pub(super) fn fill_from(pieces: Pieces<'_>, bytes: &[u8]) -> usize {
    fill(pieces, bytes.len() as u64, |done, slice| {
        slice.copy_from(&bytes[done..]);
    })
}

fn fill(pieces: Pieces<'_>, len: u64, with: impl Fn(usize, Slice<'_>)) -> usize {
    let mut done = 0;
    for slice in pieces.slices() {
        let count = slice.len().min(len as usize - done);
        if let Ok(part) = slice.subslice(0, count) {
            with(done, Slice(part));
        }
        done += count;
    }
    done
}

struct Slice<'a>(vm_memory::VolatileSlice<'a>);

impl Slice<'_> {
    fn copy_from(&self, bytes: &[u8]) {
        self.0.copy_from(bytes);
    }

    fn write_bytes(&self, value: u8) {
        let Slice(slice) = self;
        // SAFETY: the slice's memory is mapped for writing, and nobody holds a reference to it.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::write_bytes(slice.ptr_guard_mut().as_ptr(), value, slice.len());
        }
    }
}
