//! Disks: opened once, shared by the block devices of one machine after the other.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::config::{
    self, DiskConfig, ImageType, LockGranularity, RateLimitGroupConfig, RateLimiterConfig,
    ReadErrorPolicy, VirtQueueAffinity, WriteErrorPolicy,
};
use devices::host_cpus::{HostCpuError, HostCpus};
use devices::platform::Platform;
use devices::rate_limit::{RateLimiter, RateLimits, TokenBucket};
use devices::virtio::block::{
    self, Block, BlockSetup, Disk, FileDisk, ID_LEN, LockError, LockExtent, Qcow2Disk, Qcow2Header,
    StopOn, StopOnWrite,
};

use super::descriptor;

mod holder;
mod image;

pub use self::holder::Holder;
pub use self::image::ChainError;

/// A disk that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("--disk: cannot open {origin} {}", purpose(*readonly, source))]
    Open {
        /// Where it is.
        origin: Origin,
        /// Whether it was to be opened for reading only.
        readonly: bool,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A descriptor that does not allow what the disk is for.
    #[error(
        "--disk: {origin} is not open for {}",
        if *readonly { "reading" } else { "reading and writing anywhere (readonly=on asks for reading only)" }
    )]
    Access {
        /// Whose descriptor it is.
        origin: Origin,
        /// Whether it was to be open for reading only.
        readonly: bool,
    },
    /// Neither a path nor a descriptor.
    #[error("--disk: path is missing: expected the path of an image, or a descriptor by the API")]
    Missing,
    /// The host's page cache cannot be passed by.
    #[error(
        "--disk: {origin} does not take direct=on: its file system has no direct access (O_DIRECT)"
    )]
    Direct {
        /// Where it is.
        origin: Origin,
    },
    /// A descriptor that passes the host's page cache by.
    #[error(
        "--disk: {origin} is open for direct access (O_DIRECT), expected a qcow2 image without"
    )]
    DirectQcow2 {
        /// Whose descriptor it is.
        origin: Origin,
    },
    /// Somebody else uses it.
    #[error(
        "--disk: {origin} is locked by {}, expected nobody else to {}",
        holder.as_ref().map_or_else(|| "somebody else".to_owned(), ToString::to_string),
        if *readonly {
            "write to it"
        } else {
            "use it (readonly=on shares it with others that only read)"
        }
    )]
    Locked {
        /// Where it is.
        origin: Origin,
        /// Whether it was to be read only.
        readonly: bool,
        /// Who has locked it, where that can be seen.
        holder: Option<Box<Holder>>,
    },
    /// The host refuses to lock it.
    #[error("--disk: cannot lock {origin}")]
    Lock {
        /// Where it is.
        origin: Origin,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file is no disk.
    #[error("--disk: {origin} cannot be a disk")]
    Unusable {
        /// Where it is.
        origin: Origin,
        /// What is wrong with it.
        #[source]
        source: block::DiskError,
    },
    /// The image does not begin as one of its format does.
    #[error("--disk: {origin} cannot be used as image_type=qcow2")]
    Header {
        /// Where it is.
        origin: Origin,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The image cannot be used.
    #[error("--disk: {origin} cannot be used as image_type=qcow2")]
    Qcow2 {
        /// Where it is.
        origin: Origin,
        /// What is wrong with it.
        #[source]
        source: Box<block::Qcow2Error>,
    },
    /// What an image builds on cannot be used with it.
    #[error(transparent)]
    Chain(Box<ChainError>),
    /// A layer cannot be made.
    #[error("--disk: cannot make the overlay at {origin}")]
    Make {
        /// Where it was to be.
        origin: Origin,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The limits that it shall share are not there.
    #[error(
        "--disk: rate_limit_group {group:?} of {id} is not there, expected one of the machine's rate_limit_groups"
    )]
    Group {
        /// Name of the device.
        id: String,
        /// Name of the group.
        group: String,
    },
    /// A queue's thread cannot run where it shall.
    #[error("--disk: queue_affinity of {id} cannot be had for queue {queue}")]
    Affinity {
        /// Name of the device.
        id: String,
        /// Index of the queue.
        queue: u16,
        /// What is wrong with the CPUs.
        #[source]
        source: Box<HostCpuError>,
    },
}

/// Where a disk comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Path of the image as configured.
    Path(PathBuf),
    /// Name of the device whose descriptor a client sent.
    Descriptor(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path {}", path.display()),
            Self::Descriptor(id) => write!(f, "the descriptor of {id}"),
        }
    }
}

fn purpose(readonly: bool, error: &io::Error) -> &'static str {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        _ if readonly => "for reading",
        PermissionDenied | ReadOnlyFilesystem => {
            "for writing too (readonly=on asks for reading only)"
        }
        _ => "for reading and writing",
    }
}

/// An opened disk, and how the guest sees it.
#[derive(Clone, Debug)]
pub struct OpenDisk {
    id: String,
    disk: Arc<dyn Disk>,
    setup: BlockSetup,
    stop_on: StopOn,
}

impl OpenDisk {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it stores to, for the host's own use while no device has it.
    pub fn contents(&self) -> &dyn Disk {
        &*self.disk
    }

    /// A fresh block device for the disk. It tells `platform` of errors that stop the machine.
    pub fn device(&self, platform: Arc<dyn Platform>) -> Block {
        Block::new(Arc::clone(&self.disk), self.setup.clone()).stopping(self.stop_on, platform)
    }
}

/// Limits that several disks share, by name.
pub type Groups = BTreeMap<String, Arc<RateLimiter>>;

/// Full buckets for the limits that disks share.
pub fn groups(config: &[RateLimitGroupConfig]) -> Groups {
    let groups = config.iter();
    groups
        .map(|group| {
            let limits = limits(Some(&group.rate_limiter_config));
            (group.id.clone(), limiter(limits))
        })
        .collect()
}

/// Opens the disk that `config` names, or takes the one descriptor that a client opened for it. It shares the limits of its
/// group in `groups`.
///
/// # Errors
///
/// [`DiskError`] names the flag, the path and the reason.
pub fn open(
    config: &DiskConfig,
    descriptors: &[OwnedFd],
    groups: &Groups,
) -> Result<OpenDisk, DiskError> {
    let DiskConfig {
        path,
        readonly,
        image_type,
        backing_files,
        overlay,
        queue_size,
        num_queues,
        queue_affinity,
        sparse,
        lock_granularity,
        rate_limiter_config,
        rate_limit_group,
        werror,
        rerror,
        serial,
        id,
        disable_io_uring,
        ..
    } = config;
    let id = id.as_deref().unwrap_or("disk");
    let limiter = match (rate_limit_group, rate_limiter_config) {
        (Some(group), _) => groups.get(group).cloned().ok_or_else(|| DiskError::Group {
            id: id.to_owned(),
            group: group.clone(),
        })?,
        (None, config) => limiter(limits(config.as_ref())),
    };
    let format = match image_type {
        ImageType::Qcow2 => image::Format::Qcow2,
        // The configuration was checked: other formats do not come here.
        _ => image::Format::Raw,
    };
    let disk: Arc<dyn Disk> = match (path, overlay) {
        (Some(path), Some(overlay)) => {
            let disk = image::open_overlay(overlay, path, format, *backing_files)?;
            shared(disk, *sparse, Qcow2Disk::keeping_blocks)
        }
        _ => {
            let (origin, file) = open_image(config, id, descriptors)?;
            match format {
                image::Format::Qcow2 => {
                    let disk = image::open(file, &origin, *readonly, *backing_files)?;
                    shared(disk, *sparse, Qcow2Disk::keeping_blocks)
                }
                image::Format::Raw => {
                    let disk = open_raw(file, &origin, *readonly, *lock_granularity)?;
                    shared(disk, *sparse, FileDisk::keeping_blocks)
                }
            }
        }
    };
    let queues = queue_affinity.iter().flatten();
    let affinity = queues.map(
        |VirtQueueAffinity {
             queue_index,
             host_cpus,
         }| {
            let queue = *queue_index;
            let cpus = HostCpus::new(host_cpus).map_err(|source| DiskError::Affinity {
                id: id.to_owned(),
                queue,
                source: Box::new(source),
            })?;
            Ok((queue, cpus))
        },
    );
    Ok(OpenDisk {
        id: id.to_owned(),
        disk,
        setup: BlockSetup {
            name: format!("virtio-{id}"),
            id: identification(serial.as_deref().unwrap_or(id)),
            // The configuration was checked: there are not so many.
            queues: u16::try_from(*num_queues).unwrap_or(u16::MAX),
            queue_size: *queue_size,
            affinity: affinity.collect::<Result<_, DiskError>>()?,
            io_uring: !disable_io_uring,
            limiter,
        },
        stop_on: StopOn {
            reads: *rerror == ReadErrorPolicy::Stop,
            writes: match werror {
                WriteErrorPolicy::Report => StopOnWrite::Never,
                WriteErrorPolicy::Stop => StopOnWrite::Any,
                WriteErrorPolicy::Enospc => StopOnWrite::NoSpace,
            },
        },
    })
}

/// A disk that gives blocks back to the host if it is `sparse`, and is made one by `keeping` that does not, if it is not.
fn shared<D: Disk + 'static>(disk: D, sparse: bool, keeping: impl Fn(D) -> D) -> Arc<dyn Disk> {
    if sparse {
        Arc::new(disk)
    } else {
        Arc::new(keeping(disk))
    }
}

/// Opens the file of the disk `id`, or copies the descriptor that came for it.
fn open_image(
    config: &DiskConfig,
    id: &str,
    descriptors: &[OwnedFd],
) -> Result<(Origin, File), DiskError> {
    let DiskConfig {
        path,
        readonly,
        direct,
        image_type,
        ..
    } = config;
    let (readonly, direct) = (*readonly, *direct);
    let (origin, file) = match (descriptors.first(), path) {
        (Some(descriptor), _) => {
            let origin = Origin::Descriptor(id.to_owned());
            let file = descriptor::copy(descriptor.as_fd()).and_then(|file| {
                if direct {
                    descriptor::make_direct(&file)?;
                }
                Ok(Some(file))
            });
            (origin, file)
        }
        (None, Some(path)) => {
            let origin = Origin::Path(path.clone());
            (origin, open_file(path, readonly, direct))
        }
        (None, None) => return Err(DiskError::Missing),
    };
    let failed = |source| DiskError::Open {
        origin: origin.clone(),
        readonly,
        source,
    };
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) if direct => DiskError::Direct {
            origin: origin.clone(),
        },
        _ => failed(source),
    })?;
    let file = file.ok_or_else(|| kind(&origin, "pipe"))?;
    if !descriptor::allows(&file, !readonly).map_err(failed)? {
        return Err(DiskError::Access { origin, readonly });
    }
    if *image_type == ImageType::Qcow2 && descriptor::is_direct(&file).map_err(failed)? {
        return Err(DiskError::DirectQcow2 { origin });
    }
    Ok((origin, file))
}

fn kind(origin: &Origin, kind: &'static str) -> DiskError {
    DiskError::Unusable {
        origin: origin.clone(),
        source: block::DiskError::Kind(kind),
    }
}

/// Opens the raw image in `file`.
fn open_raw(
    file: File,
    origin: &Origin,
    readonly: bool,
    granularity: LockGranularity,
) -> Result<FileDisk, DiskError> {
    let failed = |source| DiskError::Open {
        origin: origin.clone(),
        readonly,
        source,
    };
    let seen = file.try_clone().map_err(failed)?;
    if matches!(Qcow2Header::read(&seen), Ok(header) if header.size > 0) {
        tracing::warn!(%origin, "raw disk begins like a qcow2 image: image_type=qcow2 uses it as one");
    }
    let disk = FileDisk::new(file, readonly);
    let mut disk = disk.map_err(|source| DiskError::Unusable {
        origin: origin.clone(),
        source,
    })?;
    lock(&mut disk, &seen, granularity, origin)?;
    Ok(disk)
}

/// Keeps others off `disk`, which is `file`. Where the host has no locks, nobody is kept off.
fn lock(
    disk: &mut FileDisk,
    file: &File,
    granularity: LockGranularity,
    origin: &Origin,
) -> Result<(), DiskError> {
    let extent = match granularity {
        LockGranularity::ByteRange => LockExtent::ByteRange,
        LockGranularity::Full => LockExtent::Full,
    };
    match disk.lock(extent) {
        Ok(()) => Ok(()),
        Err(LockError::Held) => Err(DiskError::Locked {
            origin: origin.clone(),
            readonly: disk.read_only(),
            holder: holder::find(file).map(Box::new),
        }),
        Err(LockError::Host(error)) => unlocked(origin, error),
    }
}

/// Fails unless `error` says that there are no locks to be had.
fn unlocked(origin: &Origin, error: io::Error) -> Result<(), DiskError> {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOLCK) => {
            tracing::warn!(%origin, %error, "disk is not locked: its file system has no locks");
            Ok(())
        }
        _ => Err(DiskError::Lock {
            origin: origin.clone(),
            source: error,
        }),
    }
}

/// Full buckets for the limits of a device.
pub(super) fn limiter(limits: RateLimits) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(limits, Instant::now()))
}

/// The limits that `config` names; there are none without it.
pub fn limits(config: Option<&RateLimiterConfig>) -> RateLimits {
    let bucket = |bucket: &config::TokenBucket| TokenBucket {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time: Duration::from_millis(bucket.refill_time),
    };
    RateLimits {
        bandwidth: config.and_then(|limits| limits.bandwidth.as_ref().map(bucket)),
        ops: config.and_then(|limits| limits.ops.as_ref().map(bucket)),
    }
}

/// Opens `path`, but no pipe, on which opening would wait for somebody at its other end.
fn open_file(path: &Path, readonly: bool, direct: bool) -> io::Result<Option<File>> {
    if fs::metadata(path)?.file_type().is_fifo() {
        return Ok(None);
    }
    File::options()
        .read(true)
        .write(!readonly)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .map(Some)
}

/// The first bytes of `text`, filled up with zeros.
fn identification(text: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    id
}

#[cfg(test)]
mod tests;
