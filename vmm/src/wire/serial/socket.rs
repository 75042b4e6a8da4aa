//! A Unix stream socket that serves one client at a time.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, warn};

use super::SerialError;
use super::poll::check;

/// Only the owner may connect: whoever does has the guest's console.
const MODE: u32 = 0o600;

/// The listener, its file, and its client. The next client waits until the one before it has gone.
pub(super) struct Socket {
    listener: UnixListener,
    client: Option<UnixStream>,
    /// The client has ended its sending side; it may go on reading.
    input_ended: bool,
    file: SocketFile,
}

/// The file by which clients find the socket; removed in the end, if it is still the one that was made.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if still && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the serial port's socket");
        }
    }
}

impl Socket {
    pub(super) fn listen(path: &Path) -> Result<Self, SerialError> {
        let fail = |action| failed(path, action);
        remove_stale(path)?;
        let listener = bind(path)?;
        listener
            .set_nonblocking(true)
            .map_err(fail("listen on it"))?;
        let metadata = fs::symlink_metadata(path).map_err(fail("look at it"))?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        };
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
                debug!(path = %self.file.path.display(), "serial client connected");
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
        debug!(path = %self.file.path.display(), "serial client disconnected");
        self.client = None;
    }
}

/// The error of `action` on the socket at `path`; made for `map_err`.
fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> SerialError {
    move |source| SerialError::Path {
        mode: "socket",
        path: path.to_owned(),
        action,
        source,
    }
}

/// Removes a socket that nobody listens on, which a killed process left behind.
fn remove_stale(path: &Path) -> Result<(), SerialError> {
    let fail = |action| failed(path, action);
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(fail("look at it"))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(SerialError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(fail("remove the stale socket"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(SerialError::SocketInUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(fail("find out whether it is in use")(error)),
    }
}

fn bind(path: &Path) -> Result<UnixListener, SerialError> {
    let fail = |action| failed(path, action);
    // SAFETY: all-zero is a valid sockaddr_un.
    #[allow(unsafe_code)]
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    let max = address.sun_path.len() - 1;
    if bytes.len() > max {
        return Err(SerialError::SocketPathTooLong {
            path: path.to_owned(),
            max,
        });
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: socket takes no pointer, and a descriptor it returns is new and ours.
    #[allow(unsafe_code)]
    let socket = unsafe {
        check(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            0,
        ))
        .map(|fd| OwnedFd::from_raw_fd(fd))
    };
    let socket = File::from(socket.map_err(fail("create a socket"))?);
    // Before the bind, this is the mode that the file is born with: at no time can another user connect.
    socket
        .set_permissions(Permissions::from_mode(MODE))
        .map_err(fail("set its permissions"))?;
    // SAFETY: the address is a sockaddr_un of the length given, its path ends in a NUL, and the descriptor is open.
    #[allow(unsafe_code)]
    unsafe {
        check(libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as libc::socklen_t,
        ))
        .map_err(fail("bind to it"))?;
        check(libc::listen(socket.as_raw_fd(), 8)).map_err(fail("listen on it"))?;
    }
    Ok(OwnedFd::from(socket).into())
}
