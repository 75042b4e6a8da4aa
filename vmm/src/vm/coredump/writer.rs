//! A core on its way from guest memory to a file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;

use devices::memory::Ram;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

use super::elf::Layout;
use super::touched::{PAGE, Touched, pagemap};

/// The most that one call writes, in bytes.
const MAX_WRITE: u64 = 4 << 20;

/// Memory that is one piece of a core: a part of one region of guest memory, in whole pages.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::vm) struct Piece {
    /// Guest physical addresses.
    pub(in crate::vm) addresses: Range<u64>,
    /// Those of them that hold anything, in whole pages, ascending. Others are not touched.
    pub(in crate::vm) in_use: Vec<Range<u64>>,
}

/// Writes a core of `notes` and of the `pieces` of `ram` to `file`, which is empty. A page of zeros becomes a hole.
///
/// Memory goes from where it is to the file: besides, one page is copied at a time, to see whether it is one of zeros.
///
/// # Errors
///
/// The file cannot take it, or the kernel does not tell of the process's memory.
pub(super) fn write(file: &mut File, ram: &Ram, pieces: &[Piece], notes: &[u8]) -> io::Result<()> {
    let addresses: Vec<_> = pieces.iter().map(|piece| piece.addresses.clone()).collect();
    let layout = Layout::new(&addresses, notes);
    check_size(layout.len)?;
    file.write_all(&layout.front)?;
    let pagemap = pagemap();
    for (piece, offset) in pieces.iter().zip(&layout.offsets) {
        write_piece(file, ram, piece, *offset, pagemap.as_ref())?;
    }
    // The last pages may be holes.
    file.set_len(layout.len)
}

fn write_piece(
    file: &mut File,
    ram: &Ram,
    piece: &Piece,
    offset: u64,
    pagemap: Option<&Arc<File>>,
) -> io::Result<()> {
    let Piece { addresses, in_use } = piece;
    let region = ram
        .find_region(GuestAddress(addresses.start))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let base = region.start_addr().0;
    let mut touched = Touched::new(region, pagemap);
    for used in in_use {
        let (mut at, end) = (used.start - base, used.end - base);
        while let Some(range) = touched.next(at..end)? {
            at = range.end;
            let start = offset + (base + range.start - addresses.start);
            write_range(file, region, range, start)?;
        }
    }
    Ok(())
}

/// Writes what is not zero in `range` of `region`, offsets in bytes, to offset `start` of the file.
fn write_range(
    file: &mut File,
    region: &GuestRegionMmap<()>,
    range: Range<u64>,
    start: u64,
) -> io::Result<()> {
    let memory = slice(region, &range)?;
    let len = memory.len() as u64;
    let mut page = [0; PAGE as usize];
    let mut at = 0;
    while at < len {
        // From the first page that is not zero to the first one after it that is.
        let from = at;
        while at < len && at - from < MAX_WRITE && !is_zero(&memory, at, &mut page)? {
            at += PAGE;
        }
        if at == from {
            at += PAGE;
            continue;
        }
        let run = memory
            .subslice(from as usize, (at.min(len) - from) as usize)
            .map_err(io_error)?;
        file.seek(SeekFrom::Start(start + from))?;
        file.write_all_volatile(&run).map_err(io_error)?;
    }
    Ok(())
}

/// Whether the page at offset `at` of `memory` is all zeros. It is copied to `page`.
fn is_zero(
    memory: &VolatileSlice<'_>,
    at: u64,
    page: &mut [u8; PAGE as usize],
) -> io::Result<bool> {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    memory.read_slice(page, at as usize).map_err(io_error)?;
    Ok(*page == ZEROS)
}

fn slice<'a>(region: &'a GuestRegionMmap<()>, range: &Range<u64>) -> io::Result<VolatileSlice<'a>> {
    let len = (range.end - range.start) as usize;
    region
        .get_slice(MemoryRegionAddress(range.start), len)
        .map_err(io::Error::other)
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// Whether the process may write a file of `len` bytes: the kernel ends one that writes more than it may.
fn check_size(len: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one structure, for which there is a place.
    #[expect(unsafe_code)]
    let result = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if result == 0 && len > limit.rlim_cur {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::kvm::memory::{Backing, allocate};

    const HIGH: u64 = 1 << 32;
    const LOW_LEN: u64 = 1 << 20;
    const HIGH_LEN: u64 = 16 << 20;

    fn ram(shared: bool) -> Ram {
        let regions = [
            (GuestAddress(0), LOW_LEN as usize),
            (GuestAddress(HIGH), HIGH_LEN as usize),
        ];
        let backing = Backing {
            shared,
            ..Backing::default()
        };
        allocate(&regions, backing).unwrap()
    }

    fn piece(addresses: Range<u64>) -> Piece {
        Piece {
            in_use: vec![addresses.clone()],
            addresses,
        }
    }

    fn all() -> [Piece; 2] {
        [piece(0..LOW_LEN), piece(HIGH..HIGH + HIGH_LEN)]
    }

    /// Where memory begins in a core whose notes are short.
    const FIRST: u64 = 4096;

    #[test]
    fn core_holds_memory_byte_for_byte() {
        for shared in [false, true] {
            let ram = ram(shared);
            // More than one call writes, with a page of zeros in it.
            let pattern: Vec<u8> = (0..6_u32 << 20).map(|at| (at % 251) as u8).collect();
            ram.write_slice(&pattern, GuestAddress(HIGH + 0x1000))
                .unwrap();
            ram.write_slice(&[0; 4096], GuestAddress(HIGH + 0x8000))
                .unwrap();
            ram.write_obj(0x55_u8, GuestAddress(LOW_LEN - 1)).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            write(&mut file, &ram, &all(), &[1; 8]).unwrap();
            assert_eq!(file.metadata().unwrap().len(), FIRST + LOW_LEN + HIGH_LEN);
            let mut expected = vec![0; HIGH_LEN as usize];
            let mut found = expected.clone();
            ram.read_slice(&mut expected, GuestAddress(HIGH)).unwrap();
            file.read_exact_at(&mut found, FIRST + LOW_LEN).unwrap();
            assert!(expected == found, "shared: {shared}");
            let mut low = vec![0; LOW_LEN as usize];
            file.read_exact_at(&mut low, FIRST).unwrap();
            assert!(low[..low.len() - 1].iter().all(|byte| *byte == 0));
            assert_eq!(low.last(), Some(&0x55));
        }
    }

    #[test]
    fn zeros_take_no_room_in_the_file_whether_written_or_not() {
        let ram = ram(false);
        let zeros = vec![0; 4 << 20];
        ram.write_slice(&zeros, GuestAddress(HIGH)).unwrap();
        ram.write_obj(1_u8, GuestAddress(HIGH + HIGH_LEN - 0x3000))
            .unwrap();
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, &ram, &all(), &[]).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), FIRST + LOW_LEN + HIGH_LEN);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{}", metadata.blocks());
    }

    #[test]
    fn memory_that_is_not_in_use_is_not_read() {
        let ram = ram(false);
        for address in [HIGH, HIGH + 0x2000, HIGH + 0x4000] {
            ram.write_obj(9_u8, GuestAddress(address)).unwrap();
        }
        let pieces = [Piece {
            addresses: HIGH..HIGH + 0x5000,
            in_use: vec![HIGH..HIGH + 0x1000, HIGH + 0x4000..HIGH + 0x5000],
        }];
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, &ram, &pieces, &[]).unwrap();
        let mut found = [0; 0x5000];
        file.read_exact_at(&mut found, FIRST).unwrap();
        assert_eq!((found[0], found[0x2000], found[0x4000]), (9, 0, 9));
        assert_eq!(file.metadata().unwrap().len(), FIRST + 0x5000);
    }

    #[test]
    fn full_disk_is_told_as_such() {
        let ram = ram(false);
        ram.write_obj(1_u8, GuestAddress(0)).unwrap();
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = write(&mut full, &ram, &all(), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
