//! What the guest boots: opened once, read again at each start of the guest.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use api::config::PayloadConfig;
use api::request::{Descriptors, INITRAMFS, KERNEL};
use devices::virtio::block::Disk;

use super::descriptor;
use crate::boot_disk::{self, BootDiskError, Booted, Limits};

/// A payload file that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// No kernel is named.
    #[error(
        "payload.kernel is missing: expected the path of a kernel, --kernel on the command line"
    )]
    NoKernel,
    /// The guest's own disk cannot be read.
    #[error("--boot-disk {id}")]
    BootDisk {
        /// Name of the disk.
        id: String,
        /// Why.
        #[source]
        source: BootDiskError,
    },
    /// The file cannot be opened.
    #[error("{field}: cannot open {}", path.display())]
    Open {
        /// Name of the configuration field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The path leads to something that holds no data.
    #[error("{field}: {} is not a regular file", path.display())]
    NotAFile {
        /// Name of the configuration field.
        field: &'static str,
        /// Its value.
        path: PathBuf,
    },
}

impl PayloadError {
    /// Whether the configuration is at fault, and not the host.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::BootDisk { .. })
    }
}

/// An opened file and the path it was opened by, for messages.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Its path as configured.
    pub path: PathBuf,
}

/// What the guest boots.
#[derive(Debug)]
pub struct Payload {
    /// Where the kernel is from.
    pub source: PayloadSource,
    /// The kernel's command line, or what is appended to that of the disk.
    pub cmdline: String,
}

/// What is entered first.
#[derive(Debug)]
pub enum Image {
    /// A kernel.
    Kernel(Opened),
    /// A firmware, which finds a kernel on the guest's disks.
    Firmware(Opened),
}

/// Where the kernel is from.
#[derive(Debug)]
pub enum PayloadSource {
    /// Files of the host's.
    Files {
        /// What is entered first.
        image: Image,
        /// The initial RAM disk.
        initramfs: Option<Opened>,
    },
    /// The guest's own disk.
    Disk(BootDisk),
}

/// The disk that the guest boots from.
#[derive(Debug)]
pub struct BootDisk {
    id: String,
    /// The process that reads it, started before the machine is, and kept for the reboots. None after it had to be ended.
    reader: Mutex<Option<boot_disk::Reader>>,
}

impl BootDisk {
    fn open(id: &str) -> Result<Self, BootDiskError> {
        Ok(Self {
            id: id.to_owned(),
            reader: Mutex::new(Some(start_reader()?)),
        })
    }

    /// Name of the disk.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Finds what `disk` boots.
    ///
    /// # Errors
    ///
    /// [`BootDiskError`].
    pub fn read(&self, disk: &dyn Disk, limits: Limits) -> Result<Booted, BootDiskError> {
        let mut kept = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have killed it while it waited.
        let mut reader = match kept.take_if(|reader| reader.is_alive()) {
            Some(reader) => reader,
            None => start_reader()?,
        };
        let result = reader.read(disk, limits);
        // Whatever else is wrong, the process may still be busy with it.
        if matches!(result, Ok(_) | Err(BootDiskError::Refused(_))) {
            *kept = Some(reader);
        }
        result
    }
}

fn start_reader() -> Result<boot_disk::Reader, BootDiskError> {
    boot_disk::Reader::start(Path::new("/proc/self/exe"))
}

/// Opens what `config` names.
///
/// # Errors
///
/// [`PayloadError`] names the field and the path.
pub fn open(config: &PayloadConfig, descriptors: &Descriptors) -> Result<Payload, PayloadError> {
    let PayloadConfig {
        kernel,
        initramfs,
        boot_disk,
        cmdline,
        firmware,
        ..
    } = config;
    let cmdline = cmdline.clone().unwrap_or_default();
    if let Some(id) = boot_disk {
        let disk = BootDisk::open(id).map_err(|source| PayloadError::BootDisk {
            id: id.clone(),
            source,
        })?;
        return Ok(Payload {
            source: PayloadSource::Disk(disk),
            cmdline,
        });
    }
    let image = match opened("--firmware", firmware.as_deref(), &[])? {
        Some(firmware) => Image::Firmware(firmware),
        None => {
            let kernel = opened("--kernel", kernel.as_deref(), descriptors.get(KERNEL))?;
            Image::Kernel(kernel.ok_or(PayloadError::NoKernel)?)
        }
    };
    let initramfs = initramfs.as_deref();
    Ok(Payload {
        source: PayloadSource::Files {
            image,
            initramfs: opened("--initramfs", initramfs, descriptors.get(INITRAMFS))?,
        },
        cmdline,
    })
}

/// The file that a client opened, or the one at `path`; none without either.
fn opened(
    field: &'static str,
    path: Option<&Path>,
    descriptors: &[OwnedFd],
) -> Result<Option<Opened>, PayloadError> {
    let file = match (descriptors.first(), path) {
        (Some(descriptor), _) => descriptor::reader(descriptor.as_fd()),
        // Without O_NONBLOCK, the open of a pipe would wait for its writer.
        (None, Some(path)) => File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path),
        (None, None) => return Ok(None),
    };
    let path = path.unwrap_or(Path::new("(a descriptor)"));
    checked(field, path, file).map(Some)
}

/// `file` as it was opened for `path`, if it can be a payload.
fn checked(
    field: &'static str,
    path: &Path,
    file: io::Result<File>,
) -> Result<Opened, PayloadError> {
    let checked = file.and_then(|file| {
        if !descriptor::allows(&file, false)? {
            return Err(io::Error::other("the descriptor is not open for reading"));
        }
        Ok((file.metadata()?.is_file(), file))
    });
    let path = path.to_owned();
    match checked {
        Ok((true, file)) => Ok(Opened { file, path }),
        Ok((false, _)) => Err(PayloadError::NotAFile { field, path }),
        Err(source) => Err(PayloadError::Open {
            field,
            path,
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_at(path: &Path) -> PayloadConfig {
        PayloadConfig {
            kernel: Some(path.to_owned()),
            ..PayloadConfig::default()
        }
    }

    #[test]
    fn missing_kernel_is_named_with_its_flag() {
        let error = open(
            &kernel_at(Path::new("/nowhere/vmlinux")),
            &Descriptors::none(),
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "--kernel: cannot open /nowhere/vmlinux");
    }

    #[test]
    fn directory_is_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&kernel_at(folder.path()), &Descriptors::none()).unwrap_err();
        assert!(matches!(error, PayloadError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn pipe_without_a_writer_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path is a string that ends in a NUL.
        #[expect(unsafe_code)]
        let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
        assert_eq!(made, 0);
        let error = open(&kernel_at(&path), &Descriptors::none()).unwrap_err();
        assert!(matches!(error, PayloadError::NotAFile { .. }), "{error}");
    }
}
