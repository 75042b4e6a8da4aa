//! Raw images.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

use super::direct::Direct;
use super::disk::{BlockSizes, Disk, Pieces, Unmapping, is_unsupported};
use super::lock::{Lock, LockError, LockExtent};
use super::resize::ResizeError;
use super::spec::SECTOR_SIZE;

/// `fallocate` modes: free the blocks of a range, which reads as zeros then; and make it read as zeros with its blocks.
pub(super) const PUNCH_HOLE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
pub(super) const ZERO_RANGE: libc::c_int = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// linux/fs.h: _IO(0x12, 119) and _IO(0x12, 127); both take the first byte and the length.
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host refused to tell about the file.
    #[error("cannot find out its {what}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe, a socket or a character device.
    #[error("it is a {0}, expected a regular file or a block device")]
    Kind(&'static str),
    /// It holds nothing.
    #[error("it is empty, expected at least one sector of 512 bytes")]
    Empty,
    /// The last sector is not whole.
    #[error("its size of {size} bytes is not a multiple of 512, expected for example {next}")]
    Size {
        /// Size in bytes.
        size: u64,
        /// The next multiple of 512.
        next: u64,
    },
    /// It was opened for direct access, which the host does not have for it.
    #[error("it cannot be accessed directly (O_DIRECT), past the host's page cache")]
    Direct,
    /// The last unit of direct access is not whole.
    #[error(
        "its size of {size} bytes is not a multiple of the {unit} that direct access to it needs"
    )]
    DirectSize {
        /// Size in bytes.
        size: u64,
        /// The unit in bytes.
        unit: u64,
    },
}

/// A raw image: a regular file or a block device.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    /// It is a block device and no regular file.
    device: bool,
    size: AtomicU64,
    read_only: bool,
    block_sizes: BlockSizes,
    /// Ranges can be discarded.
    discard: bool,
    /// The page cache is passed by.
    pub(super) direct: Option<Direct>,
    lock: Option<Lock>,
}

impl FileDisk {
    /// Takes an opened file, which was opened for writing too unless `read_only`, and with O_DIRECT if the host's page cache
    /// shall be passed by. Its size and what the host can do with it are asked for now.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn new(file: File, read_only: bool) -> Result<Self, DiskError> {
        let query = |what| move |source| DiskError::Query { what, source };
        let metadata = file.metadata().map_err(query("file type"))?;
        let kind = metadata.file_type();
        let block_sizes = if kind.is_file() {
            // The preferred unit of the file system: a smaller write would make the host read first. Network file systems
            // name units that no disk has.
            let physical = metadata.blksize().clamp(512, 4096) as u32;
            BlockSizes {
                logical: 512,
                physical: floor_power_of_two(physical),
            }
        } else if kind.is_block_device() {
            device_block_sizes(&file).map_err(query("block size"))?
        } else if kind.is_dir() {
            return Err(DiskError::Kind("directory"));
        } else if kind.is_fifo() {
            return Err(DiskError::Kind("pipe"));
        } else if kind.is_socket() {
            return Err(DiskError::Kind("socket"));
        } else {
            return Err(DiskError::Kind("character device"));
        };
        let size = end(&file).map_err(query("size"))?;
        if size == 0 {
            return Err(DiskError::Empty);
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            let next = size.next_multiple_of(SECTOR_SIZE);
            return Err(DiskError::Size { size, next });
        }
        let direct = match Direct::of(&file).map_err(query("alignment"))? {
            Some(None) => return Err(DiskError::Direct),
            direct => direct.flatten(),
        };
        if let Some(direct) = &direct
            && !size.is_multiple_of(direct.unit())
        {
            // Writing the last unit would make the file longer.
            let unit = direct.unit();
            return Err(DiskError::DirectSize { size, unit });
        }
        let device = kind.is_block_device();
        Ok(Self {
            direct,
            lock: None,
            discard: !read_only && can_discard(&file, device, size),
            file,
            device,
            size: size.into(),
            read_only,
            block_sizes,
        })
    }

    /// Keeps others off the file as long as this disk is there: all who write, and if the disk can be written, all who read.
    /// Those are meant who lock it as well.
    ///
    /// # Errors
    ///
    /// [`LockError`]; nothing is locked then.
    pub fn lock(&mut self, extent: LockExtent) -> Result<(), LockError> {
        self.lock = Some(Lock::take(&self.file, extent, self.read_only, self.size())?);
        Ok(())
    }

    /// The same disk, which gives no blocks back to the host: discards are not offered, and zeros keep their blocks.
    #[must_use]
    pub fn keeping_blocks(mut self) -> Self {
        self.discard = false;
        self
    }

    /// Locks what the disk grows by.
    fn lock_up_to(&self, desired_size: u64) -> Result<(), ResizeError> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        lock.cover(desired_size).map_err(|error| match error {
            LockError::Held => ResizeError::Locked { desired_size },
            LockError::Host(source) => ResizeError::Host {
                desired_size,
                source,
            },
        })
    }

    /// Direct access in units larger than sectors, parts of which are written by reading the unit before.
    fn parts(&self) -> Option<&Direct> {
        self.direct
            .as_ref()
            .filter(|direct| direct.unit() > SECTOR_SIZE)
    }

    fn range_ioctl(&self, request: libc::c_ulong, offset: u64, len: u64) -> io::Result<()> {
        range_ioctl(&self.file, request, offset, len)
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        let refused = |source| ResizeError::Host {
            desired_size,
            source,
        };
        if let Some(direct) = &self.direct
            && !desired_size.is_multiple_of(direct.unit())
        {
            let unit = direct.unit();
            return Err(ResizeError::Direct { desired_size, unit });
        }
        let found = end(&self.file).map_err(refused)?;
        if self.device {
            if found != desired_size {
                return Err(ResizeError::BlockDevice {
                    desired_size,
                    found,
                });
            }
        } else {
            if found < desired_size {
                check_file_limit(desired_size).map_err(refused)?;
                self.lock_up_to(desired_size)?;
            }
            self.file.set_len(desired_size).map_err(refused)?;
        }
        self.size.store(desired_size, Ordering::Release);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        if let Some(direct) = self
            .direct
            .as_ref()
            .filter(|direct| !direct.takes(pieces, offset))
        {
            return direct.read_at(&self.file, pieces, offset);
        }
        let (iovecs, count, offset) = arguments(pieces, offset)?;
        // SAFETY: `Pieces` promises that the iovecs name memory that may be written.
        #[allow(unsafe_code)]
        let done = unsafe { libc::preadv(self.file.as_raw_fd(), iovecs, count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        if let Some(direct) = self
            .direct
            .as_ref()
            .filter(|direct| !direct.takes(pieces, offset))
        {
            return direct.write_at(&self.file, pieces, offset);
        }
        let (iovecs, count, offset) = arguments(pieces, offset)?;
        // SAFETY: `Pieces` promises that the iovecs name memory that may be read.
        #[allow(unsafe_code)]
        let done = unsafe { libc::pwritev(self.file.as_raw_fd(), iovecs, count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn takes(&self, pieces: Pieces<'_>, offset: u64) -> bool {
        let direct = self.direct.as_ref();
        direct.is_none_or(|direct| direct.takes(pieces, offset))
    }

    fn unmapping(&self) -> Unmapping {
        Unmapping {
            discard: self.discard,
            // A sector in a larger unit must not be zeroed while another in there is written.
            fallocate: !self.device && self.parts().is_none(),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _alone = self.parts().map(Direct::lock);
        if self.device {
            self.range_ioctl(BLKDISCARD, offset, len)
        } else {
            fallocate(&self.file, PUNCH_HOLE, offset, len)
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let _alone = self.parts().map(Direct::lock);
        if unmap {
            match fallocate(&self.file, PUNCH_HOLE, offset, len) {
                // A block device without a way to free blocks that read as zeros then.
                Err(error) if self.device && is_unsupported(&error) => {}
                result => return result,
            }
        }
        if self.device {
            self.range_ioctl(BLKZEROOUT, offset, len)
        } else {
            fallocate(&self.file, ZERO_RANGE, offset, len)
        }
    }
}

/// Whether ranges of `file` can be discarded; finding out changes nothing.
fn can_discard(file: &File, device: bool, size: u64) -> bool {
    let answer = if device {
        // Half a sector cannot be discarded, which is an error of its own if whole ones can.
        match range_ioctl(file, BLKDISCARD, 1, 1) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    } else {
        // Far beyond the end there is nothing to free, though somebody make the file longer just now.
        fallocate(file, PUNCH_HOLE, size.saturating_add(1 << 30), SECTOR_SIZE)
    };
    answer.is_ok()
}

pub(super) fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(offset).map_err(invalid)?;
    let len = libc::off_t::try_from(len).map_err(invalid)?;
    // SAFETY: the call takes numbers, and the descriptor is open.
    #[expect(unsafe_code)]
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn range_ioctl(file: &File, request: libc::c_ulong, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the requests that come here read two 64-bit numbers, and `range` outlives the call.
    #[expect(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw const range) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The size of `file`: where seeking says that its end is, for block devices as well, whose metadata have no size.
pub(super) fn end(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Fails if the process may not make a file of `size` bytes (RLIMIT_FSIZE): the host would end it by SIGXFSZ.
pub(super) fn check_file_limit(size: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one `rlimit`, and `limit` outlives it.
    #[expect(unsafe_code)]
    let result = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if size > limit.rlim_cur {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(())
}

/// `pieces` and `offset` as the system calls take them.
fn arguments(
    pieces: Pieces<'_>,
    offset: u64,
) -> io::Result<(*const libc::iovec, libc::c_int, libc::off_t)> {
    let iovecs = pieces.iovecs();
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok((
        iovecs.as_ptr(),
        libc::c_int::try_from(iovecs.len()).map_err(invalid)?,
        libc::off_t::try_from(offset).map_err(invalid)?,
    ))
}

pub(super) fn device_block_sizes(file: &File) -> io::Result<BlockSizes> {
    // linux/fs.h: _IO(0x12, 104) and _IO(0x12, 123).
    const BLKSSZGET: libc::c_ulong = 0x1268;
    const BLKPBSZGET: libc::c_ulong = 0x127b;

    let ask = |request: libc::c_ulong| {
        let mut value: libc::c_uint = 0;
        // SAFETY: both requests write one int, and `value` outlives the call.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut value) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(value)
        }
    };
    let logical = floor_power_of_two(ask(BLKSSZGET)?.clamp(512, 1 << 16));
    let physical = floor_power_of_two(ask(BLKPBSZGET)?.clamp(logical, 1 << 20));
    Ok(BlockSizes { logical, physical })
}

pub(super) fn floor_power_of_two(value: u32) -> u32 {
    1 << value.max(1).ilog2()
}

#[cfg(test)]
mod tests;
