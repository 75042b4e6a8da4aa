//! A Unix stream socket that serves one client at a time.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use tracing::{debug, warn};

use super::error::LineFault;
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
    pub(super) fn listen(path: &Path) -> Result<Self, LineFault> {
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
                debug!(path = %self.file.path().display(), "client connected");
                self.client = Some(client);
                self.input_ended = false;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                warn!(path = %self.file.path().display(), %error, "cannot accept a client of a socket");
                // The client still waits, and the listener is ready at once again. Without a client there is nothing
                // else to do.
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }

    pub(super) fn disconnect(&mut self) {
        debug!(path = %self.file.path().display(), "client disconnected");
        self.client = None;
    }
}

/// What is wrong with the socket at `path`; made for `map_err`.
fn failed(path: &Path) -> impl FnOnce(SocketError) -> LineFault {
    let path = path.to_owned();
    move |error| match error {
        SocketError::NotASocket => LineFault::NotASocket { path },
        SocketError::InUse => LineFault::SocketInUse { path },
        SocketError::PathTooLong { max, .. } => LineFault::SocketPathTooLong { path, max },
        SocketError::Host { action, source } => LineFault::Path {
            mode: "socket",
            path,
            action,
            source,
        },
    }
}
