//! Which guest memory was ever touched. Reading what was not would be slow, and would take memory from the host.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestRegionMmap};

/// Size of a page in bytes.
pub(super) const PAGE: u64 = 4096;

/// Pages that one look at the page table tells of.
const WINDOW: u64 = 8192;
/// Bytes that the kernel tells of a page.
const ENTRY: u64 = 8;
/// Bits of an entry: the page is there, or has a place in swap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Tells of a region of guest memory which pages may hold something else than zeros.
///
/// That needs memory whose missing pages are zeros: anonymous memory that nobody else fills, or all of a file.
pub(super) struct Touched {
    source: Source,
    /// Length of the region in bytes.
    len: u64,
}

enum Source {
    /// The kernel does not tell.
    Unknown,
    /// The file knows its holes.
    File(FileOffset),
    /// The process's page table.
    PageTable(PageTable),
}

struct PageTable {
    pagemap: Arc<File>,
    /// The region's address in the process.
    start: u64,
    /// What was read last: the pages of these offsets of the region.
    window: Range<u64>,
    entries: Vec<u8>,
}

/// The kernel's account of this process's pages, if the process may see it.
pub(super) fn pagemap() -> Option<Arc<File>> {
    File::open("/proc/self/pagemap").map(Arc::new).ok()
}

impl Touched {
    pub(super) fn new(region: &GuestRegionMmap<()>, pagemap: Option<&Arc<File>>) -> Self {
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let source = match (region.file_offset(), pagemap) {
            (Some(file), _) if shared => Source::File(file.clone()),
            // The page table does not tell what a file holds.
            (Some(_), _) | (None, None) => Source::Unknown,
            (None, Some(pagemap)) => Source::PageTable(PageTable {
                pagemap: Arc::clone(pagemap),
                start: region.as_ptr() as u64,
                window: 0..0,
                entries: Vec::new(),
            }),
        };
        let len = region.size() as u64;
        Self { source, len }
    }

    /// The first touched pages in `range`, whole pages of the region, as offsets in bytes. There may be more after them.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub(super) fn next(&mut self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        match &mut self.source {
            Source::Unknown => Ok(Some(range)),
            Source::File(file) => next_in_file(file, range),
            Source::PageTable(table) => table.next(range, self.len),
        }
    }
}

fn next_in_file(file: &FileOffset, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let base = file.start();
    let start = match seek(file.file(), base + range.start, libc::SEEK_DATA) {
        // Nothing but a hole up to the end of the file.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        result => result? - base,
    };
    if start >= range.end {
        return Ok(None);
    }
    let end = seek(file.file(), base + start, libc::SEEK_HOLE)? - base;
    Ok(Some(start..end.min(range.end)))
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    // SAFETY: the descriptor is open, and the call takes no pointer. Nobody uses the position of the memory's file.
    #[expect(unsafe_code)]
    let result = unsafe { libc::lseek64(file.as_raw_fd(), offset as libc::off64_t, whence) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl PageTable {
    fn next(&mut self, range: Range<u64>, len: u64) -> io::Result<Option<Range<u64>>> {
        let mut at = range.start;
        while at < range.end {
            if !self.window.contains(&at) {
                self.read(at, len)?;
            }
            let end = self.window.end.min(range.end);
            let pages = (at..end).step_by(PAGE as usize);
            let mut touched = pages.skip_while(|page| !self.is_touched(*page));
            if let Some(start) = touched.next() {
                let end = touched.find(|page| !self.is_touched(*page)).unwrap_or(end);
                return Ok(Some(start..end));
            }
            at = end;
        }
        Ok(None)
    }

    /// Reads what the kernel tells of the pages from `at` on.
    fn read(&mut self, at: u64, len: u64) -> io::Result<()> {
        let pages = WINDOW.min((len - at).div_ceil(PAGE));
        self.window = 0..0;
        self.entries.resize((pages * ENTRY) as usize, 0);
        let offset = (self.start + at) / PAGE * ENTRY;
        self.pagemap.read_exact_at(&mut self.entries, offset)?;
        self.window = at..at + pages * PAGE;
        Ok(())
    }

    /// Whether the page at offset `page`, which is in the window, is there.
    fn is_touched(&self, page: u64) -> bool {
        let at = ((page - self.window.start) / PAGE * ENTRY) as usize;
        let entry = self.entries[at..].first_chunk().copied();
        let entry = entry.map_or(0, u64::from_ne_bytes);
        entry & (PRESENT | SWAPPED) != 0
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::kvm::memory::{Backing, allocate};

    /// Two regions, of which the second has a touched page near its start and one beyond a window's end.
    fn touched(shared: bool) -> (devices::memory::Ram, Vec<Range<u64>>) {
        let high = 1 << 32;
        let len = 64 << 20;
        let regions = [(GuestAddress(0), 1 << 20), (GuestAddress(high), len)];
        let backing = Backing {
            shared,
            ..Backing::default()
        };
        let ram = allocate(&regions, backing).unwrap();
        let pages = [0x3000, 0x4000, WINDOW * PAGE + 0x5000];
        for page in pages {
            ram.write_obj(1_u8, GuestAddress(high + page + 77)).unwrap();
        }
        let region = ram.iter().nth(1).unwrap();
        let mut touched = Touched::new(region, pagemap().as_ref());
        let mut found = Vec::new();
        let mut at = 0x1000;
        while let Some(range) = touched.next(at..len as u64).unwrap() {
            at = range.end;
            found.push(range);
        }
        drop(touched);
        (ram, found)
    }

    #[test]
    fn touched_pages_are_told_and_no_other() {
        let late = WINDOW * PAGE + 0x5000;
        for shared in [false, true] {
            let (_ram, found) = touched(shared);
            assert_eq!(found, [0x3000..0x5000, late..late + PAGE], "{shared}");
        }
    }

    #[test]
    fn range_that_ends_before_the_next_touched_page_has_none() {
        for shared in [false, true] {
            let (ram, _) = touched(shared);
            let region = ram.iter().nth(1).unwrap();
            let mut touched = Touched::new(region, pagemap().as_ref());
            assert_eq!(touched.next(0..0x3000).unwrap(), None);
            assert_eq!(touched.next(0..0x4000).unwrap(), Some(0x3000..0x4000));
        }
    }

    #[test]
    fn all_is_taken_for_touched_where_the_kernel_does_not_tell() {
        let (ram, _) = touched(false);
        let region = ram.iter().nth(1).unwrap();
        let mut touched = Touched::new(region, None);
        assert_eq!(touched.next(0..0x3000).unwrap(), Some(0..0x3000));
        assert_eq!(touched.next(0x3000..0x3000).unwrap(), None);
    }
}
