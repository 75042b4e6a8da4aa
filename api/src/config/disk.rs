//! `--disk`: virtio block devices.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::option::{self, OptionString};
use super::rate_limiter::{RATE_LIMITER_RENAMES, unlimited_as_none};
use super::section::{Passed, Section, check_id, check_path, check_queue_size};
use super::{ConfigError, RateLimiterConfig, ReadErrorPolicy, WriteErrorPolicy};

/// Length of the string that the get-id request answers (virtio 1.2, 5.2.6).
const SERIAL_BYTES: usize = 20;

/// Most queues of a disk, each of which has a thread.
const MAX_QUEUES: usize = 256;

/// A disk. `--disk path=PATH[,readonly=on|off,image_type=raw|qcow2,backing_files=on|off,overlay=PATH,direct=on|off,num_queues=N,`
/// `queue_size=N,queue_affinity=[0@[1,3-4]],sparse=on|off,lock_granularity=byte-range|full,bw_size=N,bw_one_time_burst=N,`
/// `bw_refill_time=MS,ops_size=N,ops_one_time_burst=N,ops_refill_time=MS,rate_limit_group=GROUP,werror=report|stop|enospc,`
/// `rerror=report|stop,serial=S,id=ID]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Image file or block device. Required, unless an open descriptor of it comes with the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub path: Option<PathBuf>,
    /// Whether the guest can only read.
    pub readonly: bool,
    /// Descriptors per queue: a power of two from 4 to 32768.
    pub queue_size: u16,
    /// What the get-id request answers, at most 20 bytes: the disk's serial number in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 20, pattern = "^[\\x00-\\x7F]*$")]
    pub serial: Option<String>,
    /// Name of the device. [`VmConfig::assign_ids`](super::VmConfig::assign_ids) gives one to those without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^(?!__)[!-~]+$")]
    pub id: Option<String>,
    /// Format of the image: `Raw` or `Qcow2`. `Unknown` means `Raw`, as formats are never guessed from contents that a guest
    /// can write.
    pub image_type: ImageType,
    /// Whether the host's page cache is passed by (O_DIRECT). A descriptor that was opened so is used so in any case. Only
    /// `false` for a qcow2 image or an overlay.
    pub direct: bool,
    /// Number of queues, each served by a thread of its own: 1 to 256.
    #[schema(minimum = 1, maximum = 256)]
    pub num_queues: usize,
    /// Whether a virtual IOMMU is in front. Only `false`.
    pub iommu: bool,
    /// PCI segment. Only 0.
    #[schema(format = "int16")]
    pub pci_segment: u16,
    /// PCI slot. Not supported: slots are given in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uint8")]
    pub pci_device_id: Option<u8>,
    /// Whether another process serves the disk. Only `false`.
    pub vhost_user: bool,
    /// Socket of that process. Not supported. `socket` on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Name of one of the machine's `rate_limit_groups`, the limits of which hold for this disk and the others of the group
    /// together. Not beside limits of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_group: Option<String>,
    /// Limits of bytes and operations, all queues together. `bw_*` and `ops_*` on the command line.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "unlimited_as_none"
    )]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// Host CPUs that the queues' threads run on. The thread of a queue that is not named runs where the host likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_affinity: Option<Vec<VirtQueueAffinity>>,
    /// Whether a qcow2 image may name another file that it builds on, which is opened for reading then. An image that names
    /// one is refused otherwise. Only `false` for a raw image.
    pub backing_files: bool,
    /// Path of a layer that takes what the guest writes, so that the image at `path` is only read and can be shared. A qcow2
    /// image is made there if there is none; one that is there already is gone on with, if it builds on `path`. Not with
    /// `readonly`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub overlay: Option<PathBuf>,
    /// Whether blocks that the guest discards, or has filled with zeros, are given back to the host where it can take them.
    /// If not, discards are not offered.
    pub sparse: bool,
    /// What part of the image is locked (F_OFD_SETLK) against others that lock it: against all, or, if the guest can only read,
    /// against those that write. The whole of a qcow2 image in any case, as it grows.
    pub lock_granularity: LockGranularity,
    /// Whether io_uring is done without where there is one: a few threads per queue make calls that block.
    /// `_disable_io_uring` on the command line.
    pub disable_io_uring: bool,
    /// Whether Linux' older asynchronous I/O is done without. It is never used, so that either value is kept to.
    /// `_disable_aio` on the command line.
    pub disable_aio: bool,
    /// What becomes of writes, discards and zeroing that fail on the host. Flushes that fail are always reported: the host has
    /// forgotten by then what it could not make durable.
    #[serde(skip_serializing_if = "WriteErrorPolicy::is_default")]
    pub werror: WriteErrorPolicy,
    /// What becomes of reads that fail on the host.
    #[serde(skip_serializing_if = "ReadErrorPolicy::is_default")]
    pub rerror: ReadErrorPolicy,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImageType {
    /// Virtual Hard Disk of fixed size. Not supported.
    FixedVhd,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The disk's blocks in order.
    Raw,
    /// Virtual Hard Disk v2. Not supported.
    Vhdx,
    /// Not stated: raw.
    #[default]
    Unknown,
}

/// What part of an image file is locked against other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum LockGranularity {
    /// The bytes of the file.
    #[default]
    ByteRange,
    /// The whole file.
    Full,
}

/// Host CPUs that the thread of one queue runs on, written `0@[1,3-4]` on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtQueueAffinity {
    /// Index of the queue, below `num_queues`.
    #[schema(maximum = 255)]
    pub queue_index: u16,
    /// Indices of host CPUs.
    pub host_cpus: Vec<usize>,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            path: None,
            readonly: false,
            queue_size: 128,
            serial: None,
            id: None,
            image_type: ImageType::default(),
            direct: false,
            num_queues: 1,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            vhost_user: false,
            vhost_socket: None,
            rate_limit_group: None,
            rate_limiter_config: None,
            queue_affinity: None,
            backing_files: false,
            overlay: None,
            sparse: true,
            lock_granularity: LockGranularity::default(),
            disable_io_uring: false,
            disable_aio: false,
            werror: WriteErrorPolicy::default(),
            rerror: ReadErrorPolicy::default(),
        }
    }
}

impl Section for DiskConfig {
    const UNSUPPORTED: &'static [&'static str] = &[
        "iommu",
        "pci_segment",
        "pci_device_id",
        "vhost_user",
        "vhost_socket",
    ];

    fn check(&self) -> Result<(), ConfigError> {
        if let Some(path) = &self.path {
            check_path("path", path)?;
        }
        check_queue_size(self.queue_size)?;
        self.check_queues()?;
        if let (Some(group), Some(_)) = (&self.rate_limit_group, &self.rate_limiter_config) {
            return Err(ConfigError::invalid(
                "rate_limit_group",
                format!("{group:?}"),
                "expected either a group or limits of the disk's own, not both",
            ));
        }
        check_id(self.id.as_deref())?;
        if let Some(serial) = &self.serial
            && (serial.len() > SERIAL_BYTES || !serial.is_ascii())
        {
            return Err(ConfigError::invalid(
                "serial",
                format!("{serial:?}"),
                format!("expected at most {SERIAL_BYTES} ASCII characters"),
            ));
        }
        self.check_format()
    }

    fn check_backing(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        let passed = passed(self.id.as_deref().unwrap_or_default());
        if passed > 0 && self.backing_files {
            return Err(ConfigError::invalid(
                "backing_files",
                true,
                "expected false for an image by descriptor, as what it builds on is named relative to its path",
            ));
        }
        if let Some(overlay) = self.overlay.as_ref().filter(|_| passed > 0) {
            return Err(ConfigError::invalid(
                "overlay",
                format!("{overlay:?}"),
                "expected none over an image by descriptor, as an overlay names the path of what it builds on",
            ));
        }
        match (&self.path, passed) {
            (Some(_), 0) | (None, 1) => Ok(()),
            (None, 0) => Err(ConfigError::missing(
                "path",
                "the path of an image file or a block device",
            )),
            (Some(path), _) => Err(ConfigError::invalid(
                "path",
                format!("{path:?}"),
                "expected either a path or a descriptor, not both",
            )),
            (None, count) => Err(ConfigError::invalid(
                "fds",
                format!("of {count} descriptors"),
                "expected one descriptor",
            )),
        }
    }
}

impl DiskConfig {
    /// Checks what the format of the image has to do with.
    fn check_format(&self) -> Result<(), ConfigError> {
        let qcow2 = match self.image_type {
            ImageType::Raw | ImageType::Unknown => false,
            ImageType::Qcow2 => true,
            other => {
                return Err(ConfigError::invalid(
                    "image_type",
                    format!("{other:?}"),
                    "expected Raw or Qcow2, as podvisor does not support other formats",
                ));
            }
        };
        if self.backing_files && !qcow2 {
            return Err(ConfigError::invalid(
                "backing_files",
                true,
                "expected false for a raw image, which builds on nothing (image_type tells the format)",
            ));
        }
        if self.direct && (qcow2 || self.overlay.is_some()) {
            return Err(ConfigError::invalid(
                "direct",
                true,
                "expected false for a qcow2 image or an overlay, which go through the host's page cache",
            ));
        }
        if let Some(overlay) = &self.overlay {
            check_path("overlay", overlay)?;
            if self.path.as_ref() == Some(overlay) {
                return Err(ConfigError::invalid(
                    "overlay",
                    format!("{overlay:?}"),
                    "expected another file than path, which it builds on",
                ));
            }
            if self.readonly {
                return Err(ConfigError::invalid(
                    "overlay",
                    format!("{overlay:?}"),
                    "expected none on a disk that the guest can only read",
                ));
            }
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_QUEUES).contains(&self.num_queues) {
            return Err(ConfigError::invalid(
                "num_queues",
                self.num_queues,
                format!("expected 1 to {MAX_QUEUES}"),
            ));
        }
        let invalid = |value: String, problem: String| {
            Err(ConfigError::invalid("queue_affinity", value, problem))
        };
        let affinity = self.queue_affinity.as_deref().unwrap_or_default();
        for (at, queue) in affinity.iter().enumerate() {
            let index = queue.queue_index;
            if usize::from(index) >= self.num_queues {
                return invalid(
                    format!("of queue {index}"),
                    format!("expected queues 0 to {}", self.num_queues - 1),
                );
            }
            if affinity[..at]
                .iter()
                .any(|other| other.queue_index == index)
            {
                return invalid(
                    format!("of queue {index}"),
                    "expected each queue once".to_owned(),
                );
            }
            if queue.host_cpus.is_empty() {
                return invalid(
                    format!("[] of queue {index}"),
                    "expected at least one host CPU".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// Checks the disk, for which descriptors come under its name.
    ///
    /// # Errors
    /// What is wrong first, with the name of the field.
    pub fn validate_with(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        Section::validate_with(self, passed)
    }
}

impl OptionString for DiskConfig {
    const RENAMES: &'static [(&'static str, &'static str)] = &{
        let [a, b, c, d, e, f] = RATE_LIMITER_RENAMES;
        [
            ("socket", "vhost_socket"),
            ("_disable_io_uring", "disable_io_uring"),
            ("_disable_aio", "disable_aio"),
            a,
            b,
            c,
            d,
            e,
            f,
        ]
    };
}

impl FromStr for DiskConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}

/// A disk that a client adds. `path=PATH[,...]` as for [`DiskConfig`], or `fd=N[,...]` with a descriptor of the image or
/// block device in place of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedDisk {
    /// The disk.
    pub config: DiskConfig,
    /// Number that the descriptor has in the client; at least 3.
    pub fd: Option<i32>,
}

impl FromStr for AddedDisk {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (config, fd) = option::parse_with_fd(text)?;
        Ok(Self { config, fd })
    }
}
