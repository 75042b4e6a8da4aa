//! qcow2 images: what they build on, and the layers that are put on others.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::virtio::block::{
    Backing, BackingImage, ImageLock, LockError, Qcow2Disk, Qcow2Header, Qcow2Image, write_layer,
};

use super::{DiskError, Origin, holder, open_file};

/// Most images that build on each other.
const MAX_LAYERS: usize = 32;

/// Names of the formats in an image's header.
const RAW: &str = "raw";
const QCOW2: &str = "qcow2";

/// The format of an image that another one builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => RAW,
            Self::Qcow2 => QCOW2,
        }
    }
}

/// What is wrong with images that build on each other.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The image names a file that was not asked for.
    #[error(
        "--disk: {origin} builds on {}, expected an image that builds on no other {}",
        backing.display(),
        match origin {
            Origin::Path(_) => "(backing_files=on allows it)",
            Origin::Descriptor(_) => "where a descriptor is all there is of it",
        }
    )]
    BackingNotAllowed {
        /// Where it is.
        origin: Origin,
        /// What it builds on.
        backing: PathBuf,
    },
    /// The image does not tell the format of what it builds on, or one that is not supported.
    #[error(
        "--disk: {origin} builds on {}, {}",
        backing.display(),
        match stated {
            Some(stated) => format!("which is of format {stated:?}, expected raw or qcow2"),
            None => format!(
                "but does not tell its format, which is never guessed (qemu-img rebase -u -F raw|qcow2 -b {} states it)",
                backing.display()
            ),
        }
    )]
    BackingFormat {
        /// Where it is.
        origin: Origin,
        /// What it builds on.
        backing: PathBuf,
        /// The format.
        stated: Option<String>,
    },
    /// An image builds on itself.
    #[error("--disk: {origin} builds on {}, which builds on it", backing.display())]
    Loop {
        /// Where the image is.
        origin: Origin,
        /// What it builds on.
        backing: PathBuf,
    },
    /// Too many images build on each other.
    #[error("--disk: {} is more than {most} images deep, expected no more", backing.display())]
    TooManyLayers {
        /// The first that is one too many.
        backing: PathBuf,
        /// How many there may be.
        most: usize,
    },
    /// There is a layer, but of something else.
    #[error(
        "--disk: overlay {} builds on {found}, expected {} ({format})",
        layer.display(),
        base.display()
    )]
    OtherBase {
        /// Where the layer is.
        layer: PathBuf,
        /// What it builds on.
        found: String,
        /// What it should build on.
        base: PathBuf,
        /// The format of that.
        format: &'static str,
    },
}

impl From<ChainError> for DiskError {
    fn from(error: ChainError) -> Self {
        Self::Chain(Box::new(error))
    }
}

/// Opens the qcow2 image in `file`. What it builds on is opened for reading, if `backing_files` allows that.
pub(super) fn open(
    file: File,
    origin: &Origin,
    readonly: bool,
    backing_files: bool,
) -> Result<Qcow2Disk, DiskError> {
    let lock = lock(&file, origin, readonly)?;
    let header = header(&file, origin)?;
    let backing = match (&header.backing, origin) {
        (None, _) => None,
        (Some(backing), Origin::Path(path)) if backing_files => {
            let mut chain = Chain::from(&file, origin)?;
            Some(chain.open(path, backing)?)
        }
        (Some(backing), _) => return Err(not_allowed(origin, backing)),
    };
    let image = Qcow2Image {
        file,
        read_only: readonly,
        lock,
        backing,
        folder: None,
    };
    disk(image, origin)
}

/// Opens the layer at `layer` over the image at `base`, and makes it if there is none.
pub(super) fn open_overlay(
    layer: &Path,
    base: &Path,
    format: Format,
    backing_files: bool,
) -> Result<Qcow2Disk, DiskError> {
    let origin = Origin::Path(layer.to_owned());
    let base_origin = Origin::Path(base.to_owned());
    let base_file = open_path(base, true)?;
    let mut chain = Chain::from(&base_file, &base_origin)?;
    let backing = chain.layer(base_file, &base_origin, format, backing_files)?;
    let size = backing.size();
    let made = match fs::symlink_metadata(layer) {
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_layer(layer, base, format, size)?
        }
        Err(source) => return Err(failed(&origin, false)(source)),
    };
    let (file, folder) = match made {
        Some((file, folder)) => (file, Some(folder)),
        None => (open_path(layer, false)?, None),
    };
    let lock = lock(&file, &origin, false)?;
    let header = header(&file, &origin)?;
    check_base(&header, layer, base, format)?;
    let image = Qcow2Image {
        file,
        read_only: false,
        lock,
        backing: Some(backing),
        folder,
    };
    disk(image, &origin)
}

/// Makes an empty layer, which has its name only when it is whole. Returns it with the folder that it is in; none if
/// somebody else made one meanwhile.
fn make_layer(
    layer: &Path,
    base: &Path,
    format: Format,
    size: u64,
) -> Result<Option<(File, File)>, DiskError> {
    let origin = Origin::Path(layer.to_owned());
    let make = |source| DiskError::Make {
        origin: origin.clone(),
        source,
    };
    let parent = folder_of(layer);
    let folder = File::open(parent).map_err(make)?;
    // The layer may be found by another working directory.
    let target = fs::canonicalize(base).map_err(failed(&Origin::Path(base.to_owned()), true))?;
    let Some(target) = target.to_str() else {
        return Err(make(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of the image below is not UTF-8, which qcow2 needs",
        )));
    };
    let unnamed = File::options()
        .read(true)
        .write(true)
        .mode(0o644)
        .custom_flags(libc::O_TMPFILE)
        .open(parent);
    let file = match unnamed {
        Ok(file) => {
            write_layer(&file, size, target, format.name()).map_err(make)?;
            match name(&file, layer) {
                Ok(()) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                Err(error) => return Err(make(error)),
            }
        }
        // The file system has no files without a name.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            let file = match options.open(layer) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                Err(error) => return Err(make(error)),
            };
            if let Err(error) = write_layer(&file, size, target, format.name()) {
                // It is of no use to anybody; that it stays there is the lesser error.
                let _ = fs::remove_file(layer);
                return Err(make(error));
            }
            file
        }
        Err(error) => return Err(make(error)),
    };
    Ok(Some((file, folder)))
}

/// Gives `file`, which has no name, the name `path`, unless something has that name.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(invalid)?;
    let to = CString::new(path.as_os_str().as_bytes()).map_err(invalid)?;
    // SAFETY: the call reads two strings that end with a zero and outlive it.
    #[expect(unsafe_code)]
    let result = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Checks that the layer at `layer` builds on the image at `base`.
fn check_base(
    header: &Qcow2Header,
    layer: &Path,
    base: &Path,
    format: Format,
) -> Result<(), ChainError> {
    let other = |found: String| ChainError::OtherBase {
        layer: layer.to_owned(),
        found,
        base: base.to_owned(),
        format: format.name(),
    };
    let Some(backing) = &header.backing else {
        return Err(other("nothing".to_owned()));
    };
    let found = located(layer, &backing.name);
    let stated = backing.format.as_deref();
    let described = || {
        format!(
            "{} ({})",
            found.display(),
            stated.unwrap_or("of no stated format")
        )
    };
    // One file may have several names.
    let same = match (fs::metadata(&found), fs::metadata(base)) {
        (Ok(found), Ok(base)) => (found.dev(), found.ino()) == (base.dev(), base.ino()),
        _ => false,
    };
    if !same || stated != Some(format.name()) {
        return Err(other(described()));
    }
    Ok(())
}

/// Images that build on each other, while they are opened.
struct Chain {
    /// Device and inode of each.
    seen: Vec<(u64, u64)>,
}

impl Chain {
    /// A chain that begins with `file`.
    fn from(file: &File, origin: &Origin) -> Result<Self, DiskError> {
        let metadata = file.metadata().map_err(failed(origin, true))?;
        Ok(Self {
            seen: vec![(metadata.dev(), metadata.ino())],
        })
    }

    /// Opens what the image at `path` builds on.
    fn open(&mut self, path: &Path, backing: &Backing) -> Result<BackingImage, DiskError> {
        let origin = || Origin::Path(path.to_owned());
        let found = located(path, &backing.name);
        let format = match backing.format.as_deref() {
            Some(RAW) => Format::Raw,
            Some(QCOW2) => Format::Qcow2,
            stated => {
                return Err(ChainError::BackingFormat {
                    origin: origin(),
                    backing: found,
                    stated: stated.map(str::to_owned),
                }
                .into());
            }
        };
        let file = open_path(&found, true)?;
        let metadata = file.metadata().map_err(failed(&origin(), true))?;
        let key = (metadata.dev(), metadata.ino());
        if self.seen.contains(&key) {
            return Err(ChainError::Loop {
                origin: origin(),
                backing: found,
            }
            .into());
        }
        if self.seen.len() == MAX_LAYERS {
            return Err(ChainError::TooManyLayers {
                backing: found,
                most: MAX_LAYERS,
            }
            .into());
        }
        self.seen.push(key);
        self.layer(file, &Origin::Path(found), format, true)
    }

    /// An image that is built on, and what it builds on itself, if `backing_files` allows that.
    fn layer(
        &mut self,
        file: File,
        origin: &Origin,
        format: Format,
        backing_files: bool,
    ) -> Result<BackingImage, DiskError> {
        let lock = lock(&file, origin, true)?;
        let image = match format {
            Format::Raw => BackingImage::raw(file, lock),
            Format::Qcow2 => {
                let header = header(&file, origin)?;
                let below = match (&header.backing, origin) {
                    (None, _) => None,
                    (Some(backing), Origin::Path(path)) if backing_files => {
                        Some(self.open(path, backing)?)
                    }
                    (Some(backing), _) => return Err(not_allowed(origin, backing)),
                };
                BackingImage::qcow2(file, lock, below)
            }
        };
        image.map_err(|source| DiskError::Qcow2 {
            origin: origin.clone(),
            source: Box::new(source),
        })
    }
}

/// Where an image that the image at `path` calls `name` is.
fn located(path: &Path, name: &str) -> PathBuf {
    // The folder of the image itself, and not of a link to it.
    let own = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    folder_of(&own).join(name)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

fn header(file: &File, origin: &Origin) -> Result<Qcow2Header, DiskError> {
    Qcow2Header::read(file).map_err(|source| DiskError::Header {
        origin: origin.clone(),
        source,
    })
}

fn disk(image: Qcow2Image, origin: &Origin) -> Result<Qcow2Disk, DiskError> {
    Qcow2Disk::new(image).map_err(|source| DiskError::Qcow2 {
        origin: origin.clone(),
        source: Box::new(source),
    })
}

fn open_path(path: &Path, readonly: bool) -> Result<File, DiskError> {
    let origin = Origin::Path(path.to_owned());
    match open_file(path, readonly, false) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(super::kind(&origin, "pipe")),
        Err(source) => Err(failed(&origin, readonly)(source)),
    }
}

/// Keeps others off `file`. Where the host has no locks, nobody is kept off.
fn lock(file: &File, origin: &Origin, readonly: bool) -> Result<Option<ImageLock>, DiskError> {
    match ImageLock::take(file, readonly) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Held) => Err(DiskError::Locked {
            origin: origin.clone(),
            readonly,
            holder: holder::find(file).map(Box::new),
        }),
        Err(LockError::Host(error)) => super::unlocked(origin, error).map(|()| None),
    }
}

fn failed(origin: &Origin, readonly: bool) -> impl Fn(io::Error) -> DiskError + use<> {
    let origin = origin.clone();
    move |source| DiskError::Open {
        origin: origin.clone(),
        readonly,
        source,
    }
}

fn not_allowed(origin: &Origin, backing: &Backing) -> DiskError {
    let backing = match origin {
        Origin::Path(path) => located(path, &backing.name),
        Origin::Descriptor(_) => PathBuf::from(&backing.name),
    };
    ChainError::BackingNotAllowed {
        origin: origin.clone(),
        backing,
    }
    .into()
}

#[cfg(test)]
mod tests;
