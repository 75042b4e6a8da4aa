//! A Unix stream socket that serves one client at a time.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use tracing::{debug, warn};

use super::SerialError;
use crate::unix_socket::{self, SocketError, SocketFile};

/// The listener, its file, and its client. The next client waits until the one before it has gone.
pub(super) struct Socket {
    listener: UnixListener,
    client: Option<UnixStream>,
    /// The client has ended its sending side; it may go on reading.
    input_ended: bool,
    file: SocketFile,
}

impl Socket {
    pub(super) fn listen(path: &Path) -> Result<Self, SerialError> {
        let (listener, file) = unix_socket::listen(path).map_err(failed(path))?;
        listener
            .set_nonblocking(true)
            .map_err(|source| SocketError::Host {
                action: "listen on it",
                source,
            })
            .map_err(failed(path))?;
        Ok(Self {
            listener,
            client: None,
            input_ended: false,
            file,
        })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn client(&self) -> Option<&UnixStream> {
        self.client.as_ref()
    }

    pub(super) fn has_input(&self) -> bool {
        self.client.is_some() && !self.input_ended
    }

    pub(super) fn input_ended(&mut self) {
        self.input_ended = true;
    }

    /// Takes the client that waits, if there is one.
    pub(super) fn accept(&mut self) {
        let accepted = self.listener.accept().and_then(|(client, _)| {
            client.set_nonblocking(true)?;
            Ok(client)
        });
        match accepted {
            Ok(client) => {
                debug!(path = %self.file.path().display(), "serial client connected");
                self.client = Some(client);
                self.input_ended = false;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                warn!(%error, "cannot accept a client of the serial port's socket");
                // The client still waits, and the listener is ready at once again. Without a client there is nothing
                // else to do.
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }

    pub(super) fn disconnect(&mut self) {
        debug!(path = %self.file.path().display(), "serial client disconnected");
        self.client = None;
    }
}

/// What is wrong with the socket at `path`; made for `map_err`.
fn failed(path: &Path) -> impl FnOnce(SocketError) -> SerialError {
    let path = path.to_owned();
    move |error| match error {
        SocketError::NotASocket => SerialError::NotASocket { path },
        SocketError::InUse => SerialError::SocketInUse { path },
        SocketError::PathTooLong { max, .. } => SerialError::SocketPathTooLong { path, max },
        SocketError::Host { action, source } => SerialError::Path {
            mode: "socket",
            path,
            action,
            source,
        },
    }
}
