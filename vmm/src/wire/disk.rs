//! Disks: opened once, shared by the block devices of one machine after the other.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::config::DiskConfig;
use devices::virtio::block::{self, Block, BlockSetup, Disk, FileDisk, ID_LEN};

use super::descriptor;

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
    /// The file is no disk.
    #[error("--disk: {origin} cannot be a disk")]
    Unusable {
        /// Where it is.
        origin: Origin,
        /// What is wrong with it.
        #[source]
        source: block::DiskError,
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
}

impl OpenDisk {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh block device for the disk.
    pub fn device(&self) -> Block {
        Block::new(Arc::clone(&self.disk), self.setup.clone())
    }
}

/// Opens the disk that `config` names, or takes the one descriptor that a client opened for it.
///
/// # Errors
///
/// [`DiskError`] names the flag, the path and the reason.
pub fn open(config: &DiskConfig, descriptors: &[OwnedFd]) -> Result<OpenDisk, DiskError> {
    let DiskConfig {
        path,
        readonly,
        queue_size,
        serial,
        id,
        ..
    } = config;
    let readonly = *readonly;
    let id = id.as_deref().unwrap_or("disk");
    let (origin, file) = match (descriptors.first(), path) {
        (Some(descriptor), _) => {
            let origin = Origin::Descriptor(id.to_owned());
            (origin, descriptor::copy(descriptor.as_fd()).map(Some))
        }
        (None, Some(path)) => (Origin::Path(path.clone()), open_file(path, readonly)),
        (None, None) => return Err(DiskError::Missing),
    };
    let failed = |source| DiskError::Open {
        origin: origin.clone(),
        readonly,
        source,
    };
    let unusable = |source| DiskError::Unusable {
        origin: origin.clone(),
        source,
    };
    let file = file.map_err(failed)?;
    let file = file.ok_or_else(|| unusable(block::DiskError::Kind("pipe")))?;
    if !descriptor::allows(&file, !readonly).map_err(failed)? {
        return Err(DiskError::Access { origin, readonly });
    }
    let disk = FileDisk::new(file, readonly).map_err(unusable)?;
    Ok(OpenDisk {
        id: id.to_owned(),
        disk: Arc::new(disk),
        setup: BlockSetup {
            name: format!("virtio-{id}"),
            id: identification(serial.as_deref().unwrap_or(id)),
            queues: 1,
            queue_size: *queue_size,
        },
    })
}

/// Opens `path`, but no pipe, on which opening would wait for somebody at its other end.
fn open_file(path: &Path, readonly: bool) -> io::Result<Option<File>> {
    if fs::metadata(path)?.file_type().is_fifo() {
        return Ok(None);
    }
    File::options()
        .read(true)
        .write(!readonly)
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
mod tests {
    use std::error::Error;
    use std::os::fd::AsRawFd;

    use devices::virtio::VirtioDevice;

    use super::*;

    fn config(path: &Path) -> DiskConfig {
        DiskConfig {
            path: Some(path.to_owned()),
            ..DiskConfig::default()
        }
    }

    fn image(len: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        file
    }

    /// The error and its causes, as the binary prints them.
    fn failure(config: &DiskConfig) -> String {
        let error = open(config, &[]).unwrap_err();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    #[test]
    fn missing_file_is_named_with_flag_path_and_reason() {
        assert_eq!(
            failure(&DiskConfig {
                readonly: true,
                ..config(Path::new("/nowhere/root.img"))
            }),
            "--disk: cannot open path /nowhere/root.img for reading: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn only_a_refused_write_is_answered_by_readonly() {
        let text = |kind: io::ErrorKind| purpose(false, &kind.into());
        assert!(text(io::ErrorKind::ReadOnlyFilesystem).contains("readonly=on"));
        assert!(text(io::ErrorKind::PermissionDenied).contains("readonly=on"));
        assert_eq!(text(io::ErrorKind::NotFound), "for reading and writing");
    }

    #[test]
    fn directory_is_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let config = DiskConfig {
            readonly: true,
            ..config(folder.path())
        };
        assert!(failure(&config).ends_with(
            "cannot be a disk: it is a directory, expected a regular file or a block device"
        ));
    }

    #[test]
    fn character_device_is_no_disk() {
        let text = failure(&config(Path::new("/dev/null")));
        assert_eq!(
            text,
            "--disk: path /dev/null cannot be a disk: it is a character device, expected a regular file or a block device"
        );
    }

    #[test]
    fn empty_image_is_refused() {
        assert!(failure(&config(image(0).path())).contains("it is empty"));
    }

    #[test]
    fn image_with_part_of_a_sector_is_refused_with_both_sizes() {
        let text = failure(&config(image(1000).path()));
        assert!(
            text.ends_with(
                "its size of 1000 bytes is not a multiple of 512, expected for example 1024"
            ),
            "{text}"
        );
    }

    #[test]
    fn capacity_and_read_only_reach_the_guest() {
        let file = image(1 << 20);
        for (readonly, feature) in [(false, 0), (true, 1 << 5)] {
            let config = DiskConfig {
                readonly,
                ..config(file.path())
            };
            let opened = open(&config, &[]).unwrap();
            let device = opened.device();
            let mut capacity = [0; 8];
            device.read_config(0, &mut capacity);
            assert_eq!(u64::from_le_bytes(capacity), 2048);
            assert_eq!(device.features() & (1 << 5), feature);
        }
    }

    #[test]
    fn opened_disk_outlives_its_path_and_gives_devices_again() {
        let file = image(512);
        let opened = open(&config(file.path()), &[]).unwrap();
        file.close().unwrap();
        drop(opened.device());
        assert_eq!(opened.device().name(), "virtio-disk");
    }

    #[test]
    fn descriptor_is_not_passed_to_children() {
        let opened = open(&config(image(512).path()), &[]).unwrap();
        let fd = opened.disk.descriptor().unwrap().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .map(|flags| i32::from_str_radix(flags.trim(), 8).unwrap())
            .unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
    }

    #[test]
    fn descriptor_takes_the_place_of_a_path_and_is_left_to_its_owner() {
        let file = image(1 << 20);
        let descriptors = [OwnedFd::from(file.reopen().unwrap())];
        let config = DiskConfig {
            id: Some("root".to_owned()),
            ..DiskConfig::default()
        };
        for _ in 0..2 {
            let opened = open(&config, &descriptors).unwrap();
            assert_eq!((opened.id(), opened.disk.size()), ("root", 1 << 20));
        }
    }

    #[test]
    fn descriptor_that_cannot_be_written_is_refused_for_a_disk_that_can() {
        let file = image(512);
        let descriptors = [OwnedFd::from(File::open(file.path()).unwrap())];
        let config = DiskConfig {
            id: Some("root".to_owned()),
            ..DiskConfig::default()
        };
        let error = open(&config, &descriptors).unwrap_err().to_string();
        assert!(
            error.contains("the descriptor of root is not open for reading and writing"),
            "{error}"
        );
        let config = DiskConfig {
            readonly: true,
            ..config
        };
        open(&config, &descriptors).unwrap();
    }

    #[test]
    fn identification_is_filled_up_with_zeros() {
        assert_eq!(&identification("_disk0")[..8], b"_disk0\0\0");
        assert_eq!(
            &identification("a serial of 20 bytes and more"),
            b"a serial of 20 bytes"
        );
    }
}
