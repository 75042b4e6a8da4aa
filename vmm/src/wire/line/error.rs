//! Why a line has no end on the host.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no line, with the option that asked for it.
#[derive(Debug)]
pub struct LineError {
    option: String,
    /// Apart, as results that carry it are common and faults are not.
    fault: Box<LineFault>,
}

impl LineError {
    /// `option` is what the mode follows, such as `--serial `.
    pub(super) fn new(option: &str, fault: LineFault) -> Self {
        Self {
            option: option.to_owned(),
            fault: Box::new(fault),
        }
    }

    /// Whether another value of the option would mend it. Otherwise the host is at fault.
    pub fn is_configuration(&self) -> bool {
        match *self.fault {
            LineFault::PathMissing { .. }
            | LineFault::Path { .. }
            | LineFault::NotASocket { .. }
            | LineFault::SocketInUse { .. }
            | LineFault::SocketPathTooLong { .. } => true,
            LineFault::Host { .. } => false,
        }
    }

    /// What is wrong.
    pub fn fault(&self) -> &LineFault {
        &self.fault
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.option, self.fault)
    }
}

impl Error for LineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

/// What is wrong with a line. It is shown after its option.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    /// A mode that needs a path came without one.
    #[error("{mode}: no path given, expected {mode}=PATH")]
    PathMissing {
        /// `file` or `socket`.
        mode: &'static str,
    },
    /// The file or socket cannot be used.
    #[error("{mode}={}: cannot {action}", path.display())]
    Path {
        /// `file` or `socket`.
        mode: &'static str,
        /// The path as given.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The path of the socket names something else.
    #[error(
        "socket={}: the path exists and is not a socket; remove it or name another",
        path.display()
    )]
    NotASocket {
        /// The path as given.
        path: PathBuf,
    },
    /// Somebody answers at the path of the socket.
    #[error("socket={}: another process is listening there; name another path", path.display())]
    SocketInUse {
        /// The path as given.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error(
        "socket={}: the path has {} bytes, expected at most {max}",
        path.display(),
        path.as_os_str().len()
    )]
    SocketPathTooLong {
        /// The path as given.
        path: PathBuf,
        /// Largest length in bytes.
        max: usize,
    },
    /// The host did not give what the mode needs.
    #[error("{mode}: cannot {action}")]
    Host {
        /// The mode.
        mode: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}
