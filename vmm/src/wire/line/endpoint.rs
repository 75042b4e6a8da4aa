//! What a line's bytes go to and come from.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use devices::virtio::console::WindowSize;
use tracing::warn;

use super::error::LineFault;
use super::poll::{self, window_size};
use super::pty::Pty;
use super::socket::Socket;

/// Bytes that a pipe takes without blocking once poll(2) says that it takes any.
const PIPE_BUF: usize = 4096;

/// One end of the line, in the state of its connection.
pub(super) enum Endpoint {
    /// Two descriptors that are there from the start and do not come back: standard input and output, or a file.
    Streams {
        input: Option<File>,
        output: Option<Sink>,
    },
    Pty(Pty),
    Socket(Socket),
}

/// An output that never blocks the thread for long.
pub(super) struct Sink {
    file: File,
    /// The descriptor is shared with other processes and blocks: writes are small, and poll comes first.
    blocking: bool,
    /// A failure was logged. The guest decides how often there is one, so there is one line.
    failed: bool,
}

impl Endpoint {
    /// Standard input and output.
    pub(super) fn standard() -> Result<Self, LineFault> {
        let fail = |source| LineFault::Host {
            mode: "tty",
            action: "use standard input and output",
            source,
        };
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?;
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(fail)?;
        Self::streams(input, output).map_err(fail)
    }

    /// Any two descriptors.
    pub(super) fn streams(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let output = File::from(output);
        let kind = output.metadata()?.file_type();
        let may_block = kind.is_fifo() || kind.is_socket() || output.is_terminal();
        // The flags of a description that other processes share are not ours to change. Opened again, it is our own.
        let own = may_block
            .then(|| {
                OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(format!("/proc/self/fd/{}", output.as_raw_fd()))
                    .ok()
            })
            .flatten();
        let sink = Sink {
            blocking: may_block && own.is_none(),
            failed: false,
            file: own.unwrap_or(output),
        };
        Ok(Self::Streams {
            input: Some(input.into()),
            output: Some(sink),
        })
    }

    /// A file to write to, created or emptied.
    pub(super) fn file(path: &Path) -> Result<Self, LineFault> {
        // Without O_NONBLOCK, the open of a pipe would wait for its reader.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| LineFault::Path {
                mode: "file",
                path: path.to_owned(),
                action: "open it for writing",
                source,
            })?;
        let sink = Sink {
            file,
            blocking: false,
            failed: false,
        };
        Ok(Self::Streams {
            input: None,
            output: Some(sink),
        })
    }

    /// A new pseudo-terminal.
    pub(super) fn pty() -> Result<Self, LineFault> {
        Pty::open().map(Self::Pty)
    }

    /// A listening socket.
    pub(super) fn socket(path: &Path) -> Result<Self, LineFault> {
        Socket::listen(path).map(Self::Socket)
    }

    /// The terminal to put into raw mode, if the input is one.
    pub(super) fn terminal(&self) -> Option<OwnedFd> {
        match self {
            Self::Streams {
                input: Some(input), ..
            } => input.as_fd().try_clone_to_owned().ok(),
            _ => None,
        }
    }

    pub(super) fn pty_path(&self) -> Option<&Path> {
        match self {
            Self::Pty(pty) => Some(pty.path()),
            _ => None,
        }
    }

    /// What has the size of a terminal: the output, if it is one, or the pseudo-terminal.
    pub(super) fn size(&self) -> Option<WindowSize> {
        match self {
            Self::Streams { output, .. } => window_size(output.as_ref()?.file.as_fd()),
            Self::Pty(pty) => window_size(pty.master().as_fd()),
            Self::Socket(_) => None,
        }
    }

    /// A descriptor of the user's own terminal, whose size changes with a signal.
    pub(super) fn window(&self) -> Option<OwnedFd> {
        match self {
            Self::Streams {
                output: Some(sink), ..
            } => {
                let fd = sink.file.as_fd();
                window_size(fd)?;
                fd.try_clone_to_owned().ok()
            }
            _ => None,
        }
    }

    /// Whether who comes sees what the one before has seen. Whoever opens a pseudo-terminal again is not known to be
    /// another one.
    pub(super) fn replays(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// Whether the size can be another one without anybody telling.
    pub(super) fn resizes_silently(&self) -> bool {
        matches!(self, Self::Pty(_))
    }

    /// Whether somebody takes the output. An output that broke takes it, to throw it away.
    pub(super) fn is_connected(&self) -> bool {
        match self {
            Self::Streams { .. } => true,
            Self::Pty(pty) => pty.is_connected(),
            Self::Socket(socket) => socket.client().is_some(),
        }
    }

    /// What becomes readable when somebody may have connected.
    pub(super) fn arrivals(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Streams { .. } => None,
            Self::Pty(pty) => (!pty.is_connected()).then(|| pty.opens()),
            Self::Socket(socket) => socket.client().is_none().then(|| socket.listener().as_fd()),
        }
    }

    /// [`Endpoint::arrivals`] became readable.
    pub(super) fn arrive(&mut self) {
        match self {
            Self::Streams { .. } => {}
            Self::Pty(pty) => pty.arrive(),
            Self::Socket(socket) => socket.accept(),
        }
    }

    /// Where input comes from, unless it has ended, and whether a hang-up there ends the connection.
    pub(super) fn input(&self) -> (Option<BorrowedFd<'_>>, bool) {
        match self {
            Self::Streams { input, .. } => (input.as_ref().map(File::as_fd), false),
            Self::Pty(pty) => (pty.is_connected().then(|| pty.master().as_fd()), true),
            Self::Socket(socket) => (socket.client().map(|client| client.as_fd()), true),
        }
    }

    /// Whether the input may have more.
    pub(super) fn has_input(&self) -> bool {
        match self {
            Self::Streams { input, .. } => input.is_some(),
            Self::Pty(pty) => pty.is_connected(),
            Self::Socket(socket) => socket.has_input(),
        }
    }

    /// Where output goes to.
    pub(super) fn output(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Streams { output, .. } => output.as_ref().map(|sink| sink.file.as_fd()),
            Self::Pty(pty) => pty.is_connected().then(|| pty.master().as_fd()),
            Self::Socket(socket) => socket.client().map(|client| client.as_fd()),
        }
    }

    /// Reads input; 0 at its end, which is remembered.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self {
            Self::Streams {
                input: Some(input), ..
            } => input.read(buffer),
            Self::Streams { input: None, .. } => Ok(0),
            Self::Pty(pty) => pty.master().read(buffer),
            Self::Socket(socket) => socket
                .client()
                .map_or(Ok(0), |mut client| client.read(buffer)),
        };
        match result {
            Err(error) if is_temporary(&error) => Err(error),
            Err(_) | Ok(0) => {
                match self {
                    Self::Streams { input, .. } => *input = None,
                    Self::Pty(_) => {}
                    Self::Socket(socket) => socket.input_ended(),
                }
                Ok(0)
            }
            Ok(count) => Ok(count),
        }
    }

    /// Writes what fits now. What cannot be written at all is thrown away if the output does not come back, and an error
    /// if the client went.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Streams { output, .. } => {
                let Some(sink) = output else {
                    return Ok(bytes.len());
                };
                match sink.write(bytes) {
                    Err(error) if is_temporary(&error) => Err(error),
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        // There may be room again later; until then each chunk is tried once.
                        sink.lost(&error);
                        Ok(bytes.len())
                    }
                    Err(error) => {
                        sink.lost(&error);
                        *output = None;
                        Ok(bytes.len())
                    }
                    Ok(count) => Ok(count),
                }
            }
            Self::Pty(pty) => pty.master().write(bytes),
            Self::Socket(socket) => match socket.client() {
                Some(mut client) => client.write(bytes),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
        }
    }

    /// The client went.
    pub(super) fn disconnect(&mut self) {
        match self {
            Self::Streams { .. } => {}
            Self::Pty(pty) => pty.disconnect(),
            Self::Socket(socket) => socket.disconnect(),
        }
    }
}

/// Whether to try again: at once if interrupted, else when poll says so.
pub(super) fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.blocking {
            return self.file.write(bytes);
        }
        if poll::now(self.file.as_fd(), libc::POLLOUT) == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.file.write(&bytes[..bytes.len().min(PIPE_BUF)])
    }

    fn lost(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            warn!(%error, "cannot write the guest's output, it is lost");
        }
    }
}
