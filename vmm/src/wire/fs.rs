//! Directories that other processes serve: the connection to each is made once, and shared by the devices of one machine
//! after the other.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use api::config::FsConfig;
use api::event::Events;
use devices::virtio::fs::{Fs, FsError as DeviceError, FsSetup, needs};
use devices::virtio::vhost_user::{Backend, BackendError, Peer, Timeouts};

use crate::unix_socket;

/// A directory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The process that serves it cannot be reached, or does not fit.
    #[error("--fs {tag}: is virtiofsd listening at its socket?")]
    Backend {
        /// The tag as configured.
        tag: String,
        /// What is wrong with it.
        #[source]
        source: Box<BackendError>,
    },
    /// The device cannot be made.
    #[error("--fs")]
    Device(#[from] DeviceError),
}

impl FsError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Backend { source, .. } => !matches!(**source, BackendError::Watch { .. }),
            Self::Device(_) => true,
        }
    }
}

/// The connection to a process that serves a directory.
#[derive(Debug)]
pub struct OpenFs {
    id: String,
    setup: FsSetup,
    backend: Arc<Backend>,
}

impl OpenFs {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh device.
    ///
    /// # Errors
    ///
    /// The configuration does not fit a device.
    pub fn device(&self) -> Result<Fs, FsError> {
        Ok(Fs::new(self.setup.clone(), Arc::clone(&self.backend))?)
    }
}

/// Who listens at a path.
struct At {
    id: String,
    path: PathBuf,
    events: Events,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Peer for At {
    fn connect(&self) -> io::Result<UnixStream> {
        unix_socket::connect(&self.path)
    }

    fn lost(&self, reason: &str) {
        let properties = [("id", self.id.as_str()), ("reason", reason)];
        self.events.publish("vm", "backend-lost", &properties);
    }

    fn found(&self) {
        let properties = [("id", self.id.as_str())];
        self.events.publish("vm", "backend-connected", &properties);
    }
}

/// Connects to the socket that `config` names. A later loss of the process is published in `events`.
///
/// # Errors
///
/// [`FsError`] names the flag, the socket and the reason.
pub fn open(config: &FsConfig, events: &Events) -> Result<OpenFs, FsError> {
    let id = config.id.as_deref().unwrap_or("fs").to_owned();
    let peer = Arc::new(At {
        id: id.clone(),
        path: config.socket.clone(),
        events: events.clone(),
    });
    let backend = Backend::connect(peer, needs(config.num_queues), Timeouts::default());
    let backend = backend.map_err(|source| FsError::Backend {
        tag: config.tag.clone(),
        source: Box::new(source),
    })?;
    Ok(OpenFs {
        setup: FsSetup {
            name: format!("virtio-{id}"),
            tag: config.tag.clone(),
            request_queues: config.num_queues,
            queue_size: config.queue_size,
        },
        id,
        backend: Arc::new(backend),
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::time::Instant;

    use super::*;

    #[test]
    fn socket_that_nobody_listens_at_is_named_with_its_tag() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("fs");
        let config = FsConfig {
            tag: "home".to_owned(),
            socket: socket.clone(),
            ..FsConfig::default()
        };
        let error = open(&config, &Events::new(Instant::now())).unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(
            error.to_string(),
            "--fs home: is virtiofsd listening at its socket?"
        );
        let expected = format!(
            "cannot connect to the vhost-user backend at {}",
            socket.display()
        );
        assert_eq!(error.source().unwrap().to_string(), expected);
    }
}
