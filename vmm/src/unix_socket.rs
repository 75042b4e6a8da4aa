//! Unix stream sockets: those of others, and our own, that only their owner may connect to.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tracing::warn;

/// Only the owner may connect: whoever does has the guest or its console.
const MODE: u32 = 0o600;
/// Clients that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Why nobody can listen at a path. The path is for the caller to name.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path names something else.
    #[error("the path exists and is not a socket; remove it or name another")]
    NotASocket,
    /// Somebody answers there.
    #[error("another process is listening there; name another path")]
    InUse,
    /// The path does not fit into a socket address.
    #[error("the path has {len} bytes, expected at most {max}")]
    PathTooLong {
        /// Its length in bytes.
        len: usize,
        /// Largest length in bytes.
        max: usize,
    },
    /// A call was refused.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// The file by which clients find a socket; removed when this is dropped, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let still = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if still && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

/// Listens at `path`. The file of a process that was killed is replaced; at no time can another user connect.
///
/// # Errors
///
/// [`SocketError`]; what is at the path stays.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    remove_stale(path)?;
    let listener = bind(path)?;
    let metadata = fs::symlink_metadata(path).map_err(host("look at it"))?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (metadata.dev(), metadata.ino()),
    };
    Ok((listener, file))
}

/// Whether `socket` is a stream socket that listens.
pub fn is_listening(socket: &UnixListener) -> bool {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is one int, for which there is room, and its length is told.
    #[expect(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    result == 0 && value != 0 && socket.local_addr().is_ok()
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Host { action, source }
}

/// Removes a socket that nobody listens on, which a killed process left behind.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(host("look at it"))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket);
    }
    match try_connect(path)? {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(host("remove the stale socket"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // With so many who wait to be accepted, another one would wait for that.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse),
        Ok(_) => Err(SocketError::InUse),
        Err(error) => Err(host("find out whether it is in use")(error)),
    }
}

/// Connects to who listens at `path`, and does not wait for it to take more connections than it has queued.
///
/// # Errors
///
/// What `connect` reports, [`io::ErrorKind::WouldBlock`] among it, or that there can be no such address.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    try_connect(path).map_err(|error| match error {
        SocketError::Host { source, .. } => source,
        error => io::Error::new(io::ErrorKind::InvalidInput, error.to_string()),
    })?
}

/// Connects without waiting. The inner result is that of `connect`.
fn try_connect(path: &Path) -> Result<io::Result<UnixStream>, SocketError> {
    let address = address(path)?;
    let socket = socket(libc::SOCK_NONBLOCK)?;
    // SAFETY: the address is a sockaddr_un of the length given, its path ends in a NUL, and the descriptor is open.
    #[expect(unsafe_code)]
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as libc::socklen_t,
        )
    };
    Ok(check(result).map(|_| socket.into()))
}

/// The address that leads to `path`, which ends in a NUL in it.
fn address(path: &Path) -> Result<libc::sockaddr_un, SocketError> {
    // SAFETY: all-zero is a valid sockaddr_un.
    #[expect(unsafe_code)]
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    let max = address.sun_path.len() - 1;
    if bytes.len() > max {
        return Err(SocketError::PathTooLong {
            len: bytes.len(),
            max,
        });
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

fn socket(flags: libc::c_int) -> Result<OwnedFd, SocketError> {
    // SAFETY: socket takes no pointer, and a descriptor it returns is new and ours.
    #[expect(unsafe_code)]
    let socket = unsafe {
        check(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags,
            0,
        ))
        .map(|fd| OwnedFd::from_raw_fd(fd))
    };
    socket.map_err(host("create a socket"))
}

fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let address = address(path)?;
    let socket = File::from(socket(0)?);
    // Before the bind, this is the mode that the file is born with.
    socket
        .set_permissions(Permissions::from_mode(MODE))
        .map_err(host("set its permissions"))?;
    // SAFETY: the address is a sockaddr_un of the length given, its path ends in a NUL, and the descriptor is open.
    #[expect(unsafe_code)]
    unsafe {
        check(libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as libc::socklen_t,
        ))
        .map_err(host("bind to it"))?;
        check(libc::listen(socket.as_raw_fd(), BACKLOG)).map_err(host("listen on it"))?;
    }
    Ok(OwnedFd::from(socket).into())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_for_its_owner_alone_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_listener, file) = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, _file) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse)));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn connection_that_would_have_to_wait_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_listener, _file) = listen(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(waiting.len() >= BACKLOG as usize);
        let long = folder.path().join("a".repeat(108));
        let error = connect(&long).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn listener_that_accepts_nobody_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: the descriptor is open, and the call takes no pointer.
        #[expect(unsafe_code)]
        let shortened = unsafe { libc::listen(listener.as_raw_fd(), 0) };
        assert_eq!(shortened, 0);
        // The only one for whom there is room.
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse)));
    }

    #[test]
    fn other_file_at_the_path_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "data").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn file_that_somebody_else_put_there_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_listener, file) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "data").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
