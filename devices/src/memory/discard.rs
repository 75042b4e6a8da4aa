//! Guest memory that goes back to the host while it stays mapped.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// Gives the pages from `offset` on, `len` bytes of `region`, back to the host. Their contents are lost; they can be touched
/// as before, and are zeros then. The range is in whole pages, explicit huge pages included.
///
/// # Errors
///
/// The range is not within the region, or the host refused. Some of it may have been given back.
pub fn discard(region: &GuestRegionMmap<()>, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.checked_add(len);
    if end.is_none_or(|end| end > region.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let shared = region.flags() & libc::MAP_SHARED != 0;
    let Some(file) = region.file_offset().filter(|_| shared) else {
        return advise(region, offset, len, libc::MADV_DONTNEED);
    };
    // The pages are the file's: dropping them from this mapping alone would free nothing.
    let fd = file.file().as_raw_fd();
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let start = (file.start() + offset) as libc::off64_t;
    loop {
        // SAFETY: `fd` is open for as long as `region` is held, and no address is passed. As for contents, see `advise`.
        #[expect(unsafe_code)]
        let result = unsafe { libc::fallocate64(fd, mode, start, len as libc::off64_t) };
        match last_error(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Takes the pages from `offset` on, `len` bytes of `region`, from the host, ready to be written to.
///
/// # Errors
///
/// The range is not within the region, or the host has no memory. Some of it may have been taken.
pub fn populate(region: &GuestRegionMmap<()>, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.checked_add(len);
    if end.is_none_or(|end| end > region.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match advise(region, offset, len, libc::MADV_POPULATE_WRITE) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Advises the host on a range that was checked to be within `region`.
fn advise(
    region: &GuestRegionMmap<()>,
    offset: u64,
    len: u64,
    advice: libc::c_int,
) -> io::Result<()> {
    let address = region.as_ptr().wrapping_add(offset as usize);
    // SAFETY: the range was checked to be within the mapping, which `region` owns. Guest memory is only ever accessed as
    // memory that changes at any time, so losing contents breaks no reference.
    #[expect(unsafe_code)]
    let result = unsafe { libc::madvise(address.cast(), len as usize, advice) };
    last_error(result)
}

fn last_error(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
