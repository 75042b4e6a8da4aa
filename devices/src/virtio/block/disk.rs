//! What a block device stores to and reads from.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

use super::resize::ResizeError;

/// Block sizes of a disk in bytes, powers of two, each at least 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// The smallest unit that can be addressed.
    pub logical: u32,
    /// The smallest unit that is written without reading first; at least the logical size.
    pub physical: u32,
}

/// How the host takes whole ranges of a disk away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmapping {
    /// Ranges can be discarded. Without this, ranges of zeros keep their blocks as well.
    pub discard: bool,
    /// [`Disk::descriptor`] is a regular file, on which `fallocate` does what [`Disk::discard`] and [`Disk::write_zeroes`]
    /// do, so that io_uring can do it.
    pub fallocate: bool,
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

/// Fills `buffer` from byte `offset` of `disk` on, for the host's own use.
///
/// # Errors
///
/// As for [`Disk::read_at`], and [`io::ErrorKind::UnexpectedEof`] where the disk ends before.
pub fn read_exact(disk: &dyn Disk, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let piece = [libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }];
        // SAFETY: the piece is the buffer, which is borrowed for writing until after the call, in which nobody else refers to it.
        #[allow(unsafe_code)]
        let pieces = unsafe { Pieces::new(&piece) };
        match disk.read_at(pieces, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                buffer = &mut buffer[len..];
                offset += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the host has no way to do what was asked, here and now and later.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// An opened disk, shared by the queues of one block device.
///
/// Any of its calls may be made from several threads at once. Which of two that overlap in time takes effect first is open, as
/// it is to the driver; one that is made after another has returned finds what that did.
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
    /// [`ResizeError::Host`], [`ResizeError::Direct`], [`ResizeError::Locked`], and [`ResizeError::BlockDevice`] for a disk whose size is changed elsewhere unless it has that
    /// size already. The disk is unchanged then.
    fn resize(&self, desired_size: u64) -> Result<(), ResizeError>;

    /// Whether writes fail.
    fn read_only(&self) -> bool;

    /// The block sizes, which are told to the guest.
    fn block_sizes(&self) -> BlockSizes;

    /// The descriptor of a file whose bytes are the bytes of the disk, for io_uring. None sends all transfers through the
    /// calls below, which a few threads make.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Whether a transfer can be done by [`Disk::descriptor`] as it is. If not, it goes through the calls below, which block
    /// and take everything. Always, if not said otherwise.
    fn takes(&self, _pieces: Pieces<'_>, _offset: u64) -> bool {
        true
    }

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

    /// What can be done to ranges besides reading and writing them; does not change. Nothing, if not said otherwise.
    fn unmapping(&self) -> Unmapping {
        Unmapping::default()
    }

    /// Lets the host forget the `len` bytes from `offset` on, which are whole sectors of the disk. What they read as after
    /// that is not known.
    ///
    /// # Errors
    ///
    /// As for [`Disk::read_at`]; EOPNOTSUPP and [`io::ErrorKind::Unsupported`] if the host has no way to do it, which is the
    /// answer if not said otherwise. The guest is told of that by a status of its own.
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets the `len` bytes from `offset` on, which are whole sectors of the disk, read as zeros. They keep their blocks on
    /// the host unless `unmap`.
    ///
    /// # Errors
    ///
    /// As for [`Disk::discard`]; the device writes zeros then where the host has no better way.
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
