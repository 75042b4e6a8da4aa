//! The socket device: its listening socket is made once, and shared by the devices of one machine after the other.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use api::config::VsockConfig;
use devices::virtio::vsock::{Connector, Vsock, VsockError as DeviceError};

use crate::unix_socket::{self, SocketError, SocketFile};

/// Sockets that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Nobody can listen at the path.
    #[error("--vsock: cannot listen at socket {}", path.display())]
    Listen {
        /// The path as configured.
        path: PathBuf,
        /// Why.
        #[source]
        source: SocketError,
    },
    /// The device cannot be made.
    #[error("--vsock")]
    Device(#[from] DeviceError),
}

impl VsockError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Listen { .. } | Self::Device(DeviceError::Cid(_)) => true,
            Self::Device(DeviceError::Listener(_)) => false,
        }
    }
}

/// The socket where programs on the host connect to the guest. Its file goes when this is dropped.
#[derive(Debug)]
pub struct OpenVsock {
    id: String,
    cid: u32,
    listener: Arc<UnixListener>,
    file: SocketFile,
}

impl OpenVsock {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh device.
    ///
    /// # Errors
    ///
    /// The listening socket cannot be used.
    pub fn device(&self) -> Result<Vsock, VsockError> {
        let connector = Arc::new(Beside(self.file.path().to_owned()));
        let name = format!("virtio-{}", self.id);
        let listener = Arc::clone(&self.listener);
        Ok(Vsock::new(name, self.cid, listener, connector)?)
    }
}

/// The programs that the guest can connect to: who listens at the path of the device's socket with `_PORT` behind it.
#[derive(Debug)]
struct Beside(PathBuf);

impl Connector for Beside {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.0.clone().into_os_string();
        path.push(format!("_{port}"));
        unix_socket::connect(path.as_ref())
    }
}

/// Listens at the socket that `config` names.
///
/// # Errors
///
/// [`VsockError`] names the flag, the path and the reason.
pub fn open(config: &VsockConfig) -> Result<OpenVsock, VsockError> {
    let path = &config.socket;
    let (listener, file) = unix_socket::listen(path).map_err(|source| VsockError::Listen {
        path: path.clone(),
        source,
    })?;
    Ok(OpenVsock {
        id: config.id.as_deref().unwrap_or("vsock").to_owned(),
        cid: config.cid,
        listener: Arc::new(listener),
        file,
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use devices::virtio::VirtioDevice;

    use super::*;

    fn config(socket: PathBuf) -> VsockConfig {
        VsockConfig {
            cid: 3,
            socket,
            ..VsockConfig::default()
        }
    }

    #[test]
    fn socket_gives_devices_again_and_goes_with_the_last_use() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let opened = open(&config(socket.clone())).unwrap();
        drop(opened.device().unwrap());
        assert_eq!(opened.device().unwrap().name(), "virtio-vsock");
        UnixStream::connect(&socket).unwrap();
        drop(opened);
        assert!(!socket.exists());
    }

    #[test]
    fn path_that_cannot_be_listened_at_is_named_with_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let _first = open(&config(socket.clone())).unwrap();
        let error = open(&config(socket.clone())).unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(
            error.to_string(),
            format!("--vsock: cannot listen at socket {}", socket.display())
        );
        assert_eq!(
            error.source().unwrap().to_string(),
            "another process is listening there; name another path"
        );
    }

    #[test]
    fn port_of_the_guest_is_the_socket_of_that_number() {
        let folder = tempfile::tempdir().unwrap();
        let beside = Beside(folder.path().join("vsock"));
        assert!(beside.connect(52).is_err());
        let listener = UnixListener::bind(folder.path().join("vsock_52")).unwrap();
        beside.connect(52).unwrap();
        assert!(beside.connect(5).is_err());
        listener.accept().unwrap();
    }
}
