//! The source of entropy: opened once, shared by the entropy devices of one machine after the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use api::config::RngConfig;
use devices::virtio::rng::Rng;

/// A source that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// The file cannot be opened.
    #[error("--rng: cannot open src {}", path.display())]
    Open {
        /// Path of the source as configured.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file does not go on giving bytes.
    #[error(
        "--rng: src {} is a {kind}, expected a character device such as /dev/urandom, or a pipe",
        path.display()
    )]
    Kind {
        /// Path of the source as configured.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
}

/// An opened source of entropy.
#[derive(Clone, Debug)]
pub struct OpenRng {
    id: String,
    source: Arc<File>,
}

impl OpenRng {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh entropy device.
    pub fn device(&self) -> Rng {
        Rng::new(format!("virtio-{}", self.id), Arc::clone(&self.source))
    }
}

/// Opens the source that `config` names.
///
/// # Errors
///
/// [`RngError`] names the flag, the path and the reason.
pub fn open(config: &RngConfig) -> Result<OpenRng, RngError> {
    let path = &config.src;
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| Ok((file.metadata()?.file_type(), file)));
    let (kind, file) = opened.map_err(|source| RngError::Open {
        path: path.clone(),
        source,
    })?;
    if !kind.is_char_device() && !kind.is_fifo() {
        let kind = match kind {
            kind if kind.is_dir() => "directory",
            kind if kind.is_block_device() => "block device",
            _ => "regular file",
        };
        return Err(RngError::Kind {
            path: path.clone(),
            kind,
        });
    }
    Ok(OpenRng {
        id: config.id.as_deref().unwrap_or("rng").to_owned(),
        source: Arc::new(file),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use devices::virtio::VirtioDevice;

    use super::*;

    fn config(src: &Path) -> RngConfig {
        RngConfig {
            src: src.to_owned(),
            ..RngConfig::default()
        }
    }

    #[test]
    fn default_source_gives_devices_again() {
        let opened = open(&RngConfig::default()).unwrap();
        drop(opened.device());
        assert_eq!(opened.device().name(), "virtio-rng");
    }

    #[test]
    fn missing_source_is_named_with_its_flag() {
        let error = open(&config(Path::new("/nowhere/random"))).unwrap_err();
        assert_eq!(error.to_string(), "--rng: cannot open src /nowhere/random");
    }

    #[test]
    fn source_that_ends_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&config(folder.path())).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("is a directory, expected a character device")
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = open(&config(file.path())).unwrap_err();
        assert!(error.to_string().contains("is a regular file"));
    }
}
