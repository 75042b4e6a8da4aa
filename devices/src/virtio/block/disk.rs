//! What a block device stores to and reads from.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::VolatileSlice;

use super::resize::ResizeError;
use super::spec::SECTOR_SIZE;

/// Block sizes of a disk in bytes, powers of two, each at least 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// The smallest unit that can be addressed.
    pub logical: u32,
    /// The smallest unit that is written without reading first; at least the logical size.
    pub physical: u32,
}

/// Pieces of host memory, in order, that a transfer fills or empties.
#[derive(Clone, Copy)]
pub struct Pieces<'a> {
    iovecs: &'a [libc::iovec],
    memory: PhantomData<VolatileSlice<'a>>,
}

impl<'a> Pieces<'a> {
    /// Names the pieces.
    ///
    /// # Safety
    ///
    /// For `'a`, each piece is memory that is mapped for reading, and for writing if the transfer fills it. Anybody may
    /// access it at the same time, as guests do; nobody holds a reference to it.
    #[allow(unsafe_code)]
    pub unsafe fn new(iovecs: &'a [libc::iovec]) -> Self {
        Self {
            iovecs,
            memory: PhantomData,
        }
    }

    /// The pieces as the kernel takes them; there are at most 1024.
    pub fn iovecs(self) -> &'a [libc::iovec] {
        self.iovecs
    }

    /// The pieces as memory.
    pub fn slices(self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.iovecs.iter().map(|piece| {
            // SAFETY: the promise made to `Pieces::new`.
            #[allow(unsafe_code)]
            unsafe {
                VolatileSlice::new(piece.iov_base.cast(), piece.iov_len)
            }
        })
    }
}

impl fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iovecs.iter().map(|piece| piece.iov_len))
            .finish()
    }
}

/// An opened disk, shared by the queues of one block device.
///
/// Transfers may do less than was asked, as the system calls may: the device goes on where they stopped.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Size in bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Gives the disk `desired_size` bytes, a multiple of 512 above 0, which [`Disk::size`] tells from then on. What a
    /// smaller disk had beyond its new end is lost; what a larger one has beyond its old end reads as zeros.
    ///
    /// Transfers up to the smaller of both sizes go on meanwhile, others are not on their way. The disk is not read-only.
    ///
    /// # Errors
    ///
    /// [`ResizeError::Host`], and [`ResizeError::BlockDevice`] for a disk whose size is changed elsewhere unless it has that
    /// size already. The disk is unchanged then.
    fn resize(&self, desired_size: u64) -> Result<(), ResizeError>;

    /// Whether writes fail.
    fn read_only(&self) -> bool;

    /// The block sizes, which are told to the guest.
    fn block_sizes(&self) -> BlockSizes;

    /// The descriptor of a file whose bytes are the bytes of the disk, for io_uring. None sends all transfers through the
    /// calls below.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Fills `pieces` from byte `offset`, and tells how many bytes were read; 0 is the end of the disk.
    ///
    /// # Errors
    ///
    /// The host's, which the guest gets to see as an I/O error. Interrupted is tried again.
    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize>;

    /// Writes `pieces` from byte `offset` on, and tells how many bytes were written.
    ///
    /// # Errors
    ///
    /// As for [`Disk::read_at`].
    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize>;

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    ///
    /// As for [`Disk::read_at`].
    fn flush(&self) -> io::Result<()>;
}

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
}

impl FileDisk {
    /// Takes an opened file, which was opened for writing too unless `read_only`. Its size is asked for now.
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
        Ok(Self {
            file,
            device: kind.is_block_device(),
            size: size.into(),
            read_only,
            block_sizes,
        })
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
        let (iovecs, count, offset) = arguments(pieces, offset)?;
        // SAFETY: `Pieces` promises that the iovecs name memory that may be written.
        #[allow(unsafe_code)]
        let done = unsafe { libc::preadv(self.file.as_raw_fd(), iovecs, count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        let (iovecs, count, offset) = arguments(pieces, offset)?;
        // SAFETY: `Pieces` promises that the iovecs name memory that may be read.
        #[allow(unsafe_code)]
        let done = unsafe { libc::pwritev(self.file.as_raw_fd(), iovecs, count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The size of `file`: where seeking says that its end is, for block devices as well, whose metadata have no size.
fn end(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Fails if the process may not make a file of `size` bytes (RLIMIT_FSIZE): the host would end it by SIGXFSZ.
fn check_file_limit(size: u64) -> io::Result<()> {
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

fn device_block_sizes(file: &File) -> io::Result<BlockSizes> {
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

fn floor_power_of_two(value: u32) -> u32 {
    1 << value.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_device_is_asked_for_its_size_and_not_given_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1024).unwrap();
        let mut disk = FileDisk::new(file.reopen().unwrap(), false).unwrap();
        // A file that may not be cut stands for the device: what is asked for is the same.
        disk.device = true;
        assert!(matches!(
            disk.resize(512),
            Err(ResizeError::BlockDevice {
                desired_size: 512,
                found: 1024
            })
        ));
        file.as_file().set_len(4096).unwrap();
        assert!(matches!(
            disk.resize(8192),
            Err(ResizeError::BlockDevice {
                desired_size: 8192,
                found: 4096
            })
        ));
        assert_eq!(disk.size(), 1024);
        disk.resize(4096).unwrap();
        assert_eq!(disk.size(), 4096);
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
    }
}
