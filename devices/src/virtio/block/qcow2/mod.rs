//! qcow2 images (QEMU's docs/interop/qcow2.rst), alone or on top of others.
//!
//! The crate `imago` knows tables and clusters. What is here decides which images it gets to see (`header`, `layout`), in
//! which order what it writes becomes durable (`image`), and moves the guest's data past it.

mod header;
mod image;
mod layer;
mod layout;
mod pieces;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, ShallowMapping};

pub use self::header::{Backing, Header, HeaderError};
use self::image::ImageFile;
pub use self::layer::write_layer;
use self::layout::Layout;
use super::disk::{BlockSizes, Disk, Pieces, Unmapping};
use super::file::end;
use super::lock::{Lock, LockError, LockExtent};
use super::resize::ResizeError;
use super::spec::SECTOR_SIZE;

/// Offset and length of the features that a writer that does not know them clears.
const AUTOCLEAR: (u64, usize) = (88, 8);

/// Why a file is no qcow2 disk.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The host does not let it be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// What it says about itself is wrong or not supported.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Part of the metadata is where it cannot be.
    #[error(
        "it is corrupt: it has a {kind} at {offset:#x}, expected one in a cluster of the file (qemu-img check tells more)"
    )]
    Place {
        /// What it is.
        kind: &'static str,
        /// Where it is said to be.
        offset: u64,
    },
    /// Refcounts of what is not there.
    #[error(
        "it is corrupt: block {index} of its refcounts is of clusters far behind the end of the file (qemu-img check tells more)"
    )]
    Refcounts {
        /// Index of the refcount block.
        index: u64,
    },
    /// Two parts of the metadata are in the same place.
    #[error("it is corrupt: {} and {} are both at {offset:#x} (qemu-img check tells more)", kinds[0], kinds[1])]
    Overlap {
        /// Where they are.
        offset: u64,
        /// What they are.
        kinds: [&'static str; 2],
    },
    /// The guest's disk holds nothing.
    #[error("its disk is empty, expected at least one sector of 512 bytes")]
    Empty,
    /// The last sector is not whole.
    #[error("its disk of {0} bytes does not consist of sectors of 512")]
    Size(u64),
    /// Writing would change what its snapshots hold.
    #[error(
        "it has {0} internal snapshots, expected none in an image that is written (readonly=on reads it)"
    )]
    Snapshots(u32),
    /// It builds on a file, and none was given; or the other way round.
    #[error("it builds on {}, which was not opened with it", .0.as_deref().unwrap_or("nothing"))]
    Backing(Option<String>),
    /// The format refuses it.
    #[error("its tables cannot be used")]
    Tables(#[source] io::Error),
}

impl Qcow2Error {
    fn of_header(error: io::Error) -> Self {
        match error.downcast::<HeaderError>() {
            Ok(error) => Self::Header(error),
            Err(error) => Self::Read(error),
        }
    }
}

/// An image that another one builds on. It is only read.
#[derive(Debug)]
pub struct BackingImage {
    format: FormatAccess<ImageFile>,
}

impl BackingImage {
    /// Takes a raw image, which was opened for reading.
    ///
    /// # Errors
    ///
    /// [`Qcow2Error::Read`], [`Qcow2Error::Empty`] and [`Qcow2Error::Size`].
    pub fn raw(file: File, lock: Option<ImageLock>) -> Result<Self, Qcow2Error> {
        let size = end(&file).map_err(Qcow2Error::Read)?;
        check_size(size)?;
        let file = ImageFile::read_only(file, lock.map(|lock| lock.0));
        let raw = Raw::open_image(file, false).map_err(Qcow2Error::Read)?;
        Ok(Self {
            format: FormatAccess::new(raw),
        })
    }

    /// Takes a qcow2 image, which was opened for reading, and the image that it builds on.
    ///
    /// # Errors
    ///
    /// [`Qcow2Error`].
    pub fn qcow2(
        file: File,
        lock: Option<ImageLock>,
        backing: Option<Self>,
    ) -> Result<Self, Qcow2Error> {
        let header = Header::read(&file).map_err(Qcow2Error::of_header)?;
        check_size(header.size)?;
        let file = ImageFile::read_only(file, lock.map(|lock| lock.0));
        let format = open_format(file, &header, false, backing)?;
        Ok(Self { format })
    }

    /// Bytes of the disk that the image holds.
    pub fn size(&self) -> u64 {
        self.format.size()
    }
}

/// Keeps others off an image as long as it is there.
#[derive(Debug)]
pub struct ImageLock(Lock);

impl ImageLock {
    /// Locks all that `file` has or may get, since an image grows when it is written to: against all, or, if `read_only`,
    /// against those that write.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn take(file: &File, read_only: bool) -> Result<Self, LockError> {
        Lock::take(file, LockExtent::Full, read_only, 0).map(Self)
    }
}

/// What a [`Qcow2Disk`] is made of.
#[derive(Debug)]
pub struct Qcow2Image {
    /// The image, opened for writing too unless `read_only`, and not for direct access.
    pub file: File,
    /// Whether writes fail.
    pub read_only: bool,
    /// Keeps others off.
    pub lock: Option<ImageLock>,
    /// What it builds on.
    pub backing: Option<BackingImage>,
    /// The folder in which the image was just made.
    pub folder: Option<File>,
}

/// A qcow2 image as a disk.
#[derive(Debug)]
pub struct Qcow2Disk {
    file: ImageFile,
    /// Held alone by what takes clusters away from the guest's disk, so that nobody is on their way into them.
    format: RwLock<FormatAccess<ImageFile>>,
    /// Held by what changes tables and refcounts.
    changes: Mutex<()>,
    read_only: bool,
    version: u32,
    cluster_size: u64,
    /// Bytes of the disk that it builds on, or 0.
    backing_size: u64,
    discard: bool,
}

impl Qcow2Disk {
    /// Opens an image.
    ///
    /// # Errors
    ///
    /// [`Qcow2Error`].
    pub fn new(image: Qcow2Image) -> Result<Self, Qcow2Error> {
        let Qcow2Image {
            file,
            read_only,
            lock,
            backing,
            folder,
        } = image;
        let header = Header::read(&file).map_err(Qcow2Error::of_header)?;
        check_size(header.size)?;
        let lock = lock.map(|lock| lock.0);
        let file = if read_only {
            ImageFile::read_only(file, lock)
        } else {
            if header.snapshots > 0 {
                return Err(Qcow2Error::Snapshots(header.snapshots));
            }
            if header.version > 2 {
                clear_autoclear(&file).map_err(Qcow2Error::Read)?;
            }
            let len = end(&file).map_err(Qcow2Error::Read)?;
            let layout = Layout::load(&file, &header, len)?;
            ImageFile::writable(file, lock, layout, len, folder)
        };
        let backing_size = backing.as_ref().map_or(0, BackingImage::size);
        let based = header.backing.is_some();
        let format = open_format(file.clone(), &header, !read_only, backing)?;
        Ok(Self {
            file,
            format: RwLock::new(format),
            changes: Mutex::new(()),
            read_only,
            version: header.version,
            cluster_size: header.cluster_size(),
            backing_size,
            // Version 2 cannot tell zeros from what is below.
            discard: !read_only && (header.version > 2 || !based),
        })
    }

    /// The same disk, which gives no clusters back: discards are not offered, and zeros keep their clusters.
    #[must_use]
    pub fn keeping_blocks(mut self) -> Self {
        self.discard = false;
        self
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<ImageFile>> {
        self.format.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<ImageFile>> {
        self.format.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes up to `len` bytes of `pieces` to where there may be no cluster yet.
    fn write_allocating(
        &self,
        format: &FormatAccess<ImageFile>,
        pieces: Pieces<'_>,
        offset: u64,
        len: u64,
    ) -> io::Result<usize> {
        let _changing = self.changing();
        let mapping = format.prepare_data_mapping(offset, len, true)?;
        let (at, len) = (mapping.offset(), mapping.length());
        // What is left out of a cluster was copied to it, so that the rest has to be written as a whole.
        mapping.storage().write_new(pieces, len, at)?;
        format.commit_data_mapping(mapping)?;
        Ok(len as usize)
    }

    /// Does `each` to the parts of a range that may hold something else than zeros, each of which is of one kind. The host's
    /// blocks are given back before, where the image gives any back.
    fn each_part(
        &self,
        format: &mut FormatAccess<ImageFile>,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&mut FormatAccess<ImageFile>, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let (mapping, len) = format.get_shallow_mapping(at, end - at)?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let punched = match mapping {
                ShallowMapping::Zero { .. } => {
                    at += len;
                    continue;
                }
                ShallowMapping::Raw {
                    offset,
                    writable: true,
                    ..
                } => Some(offset),
                _ => None,
            };
            if let Some(offset) = punched.filter(|_| self.discard) {
                self.file.punch(offset, len)?;
            }
            each(format, at, len)?;
            at += len;
        }
        Ok(())
    }

    fn grow(&self, format: &mut FormatAccess<ImageFile>, desired_size: u64) -> io::Result<()> {
        let old = format.size();
        // What is below must not show where the disk had ended; nor what a larger disk left in its last cluster.
        let hidden = old
            .next_multiple_of(self.cluster_size)
            .max(self.backing_size);
        let hidden = hidden.min(desired_size);
        if self.version < 3 && self.backing_size > old {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an image of version 2 cannot hide the larger image that it builds on",
            ));
        }
        format.resize_grow(desired_size, PreallocateMode::None)?;
        self.each_part(format, old, hidden - old, |format, offset, len| {
            if self.version < 3 {
                let mut zeros = IoBuffer::new(len as usize, 1)?;
                zeros.as_mut().into_slice().fill(0);
                return format.write(&zeros, offset);
            }
            format.write_zeroes(offset, len)
        })?;
        format.flush()?;
        self.file.settle()
    }
}

/// Opens the format on `file`, which is only read unless `writable`.
fn open_format(
    file: ImageFile,
    header: &Header,
    writable: bool,
    backing: Option<BackingImage>,
) -> Result<FormatAccess<ImageFile>, Qcow2Error> {
    if header.backing.is_some() != backing.is_some() {
        let name = header.backing.as_ref().map(|backing| backing.name.clone());
        return Err(Qcow2Error::Backing(name));
    }
    let builder = Qcow2::<ImageFile>::builder(file)
        .write(writable)
        .data_file(None)
        .backing(backing.map(|backing| backing.format));
    // Whatever the image names, nothing is opened by its name.
    let qcow2 = builder.open(DenyImplicitOpenGate::default());
    Ok(FormatAccess::new(qcow2.map_err(Qcow2Error::Tables)?))
}

fn check_size(size: u64) -> Result<(), Qcow2Error> {
    match size {
        0 => Err(Qcow2Error::Empty),
        size if size.is_multiple_of(SECTOR_SIZE) => Ok(()),
        size => Err(Qcow2Error::Size(size)),
    }
}

/// Takes note that whatever those features keep beside the guest's data is not kept up to date.
fn clear_autoclear(file: &File) -> io::Result<()> {
    let (at, len) = AUTOCLEAR;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at)?;
    if bytes.iter().any(|byte| *byte != 0) {
        file.write_all_at(&vec![0; len], at)?;
        file.sync_data()?;
    }
    Ok(())
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.shared().size()
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        let mut format = self.alone();
        let _changing = self.changing();
        let size = format.size();
        if desired_size < size {
            return Err(ResizeError::Shrink { desired_size, size });
        }
        if desired_size == size {
            return Ok(());
        }
        self.grow(&mut format, desired_size)
            .map_err(|source| ResizeError::Host {
                desired_size,
                source,
            })
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            logical: SECTOR_SIZE as u32,
            physical: self.cluster_size.min(4096) as u32,
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        let format = self.shared();
        let (mapping, len) = format.get_mapping(offset, pieces::total(pieces))?;
        match mapping {
            Mapping::Raw {
                storage, offset, ..
            } => storage.read_pieces(pieces, len, offset),
            Mapping::Zero { .. } => Ok(pieces::fill_zeros(pieces, len)),
            Mapping::Eof { .. } => Ok(0),
            // Compressed.
            _ => {
                let inside = self.cluster_size - offset % self.cluster_size;
                let mut bytes = vec![0; len.min(inside) as usize];
                format.read(&mut bytes, offset)?;
                Ok(pieces::fill_from(pieces, &bytes))
            }
        }
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        let len = {
            let format = self.shared();
            let (mapping, len) = format.get_shallow_mapping(offset, pieces::total(pieces))?;
            match mapping {
                ShallowMapping::Raw {
                    storage,
                    offset,
                    writable: true,
                    ..
                } => {
                    return storage.write_in_place(pieces, len, offset);
                }
                // The cluster that is copied is given up, while others may read it.
                ShallowMapping::Raw { .. } => len,
                ShallowMapping::Eof { .. } => return Ok(0),
                _ => return self.write_allocating(&format, pieces, offset, len),
            }
        };
        let format = self.alone();
        self.write_allocating(&format, pieces, offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let format = self.shared();
        let _changing = self.changing();
        format.flush()?;
        self.file.settle()
    }

    fn unmapping(&self) -> Unmapping {
        Unmapping {
            discard: self.discard,
            fallocate: false,
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut format = self.alone();
        let _changing = self.changing();
        let based = self.backing_size > 0;
        self.each_part(&mut format, offset, len, |format, offset, len| {
            if based {
                format.discard_to_any(offset, len)
            } else {
                // There is nothing below that would show.
                format.discard_to_backing(offset, len)
            }
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if self.version < 3 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut format = self.alone();
        let _changing = self.changing();
        if unmap && self.discard {
            return self.each_part(&mut format, offset, len, |format, offset, len| {
                format.discard_to_zero(offset, len)
            });
        }
        let end = offset.saturating_add(len);
        if end > format.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        format.write_zeroes(offset, len)
    }
}

#[cfg(test)]
mod tests;
