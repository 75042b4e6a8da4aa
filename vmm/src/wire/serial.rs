//! The host's side of the serial port.
//!
//! ```text
//! vCPU writes a byte -> Line (a bounded buffer) -> thread `serial` -> terminal, file, pty or socket
//! guest reads a byte <- receive FIFO of the port <- thread `serial` <- terminal, pty or socket
//! ```
//!
//! Output: a burst is collected for up to a millisecond and written at once. A reader that is slow slows the guest, as
//! a slow line would, while anybody is there; while nobody is connected to a pty or socket, the last 256 KiB are kept
//! for the next to come. [`SerialHost::finish`] writes out what is there.
//!
//! Input: no more is read than the guest takes, so that what is pasted is not lost.
//!
//! | mode | output | input |
//! | --- | --- | --- |
//! | `off` | there is no serial port | |
//! | `null` | thrown away | none |
//! | `tty` | standard output | standard input; raw with an [escape key](crate::terminal) if it is a terminal |
//! | `file=PATH` | the file, which is created, or emptied if it is there | none |
//! | `pty` | a new pseudo-terminal, whose path is told on stderr | the same |
//! | `socket=PATH` | one client at a time of a Unix stream socket that only its owner may use | the same |

mod endpoint;
mod line;
mod poll;
mod pty;
mod pump;
mod socket;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use api::config::{ConsoleOutputMode, SerialConfig};
use devices::interrupt::InterruptLine;
use devices::legacy::{SerialInput, SerialPort};
use tracing::warn;

use crate::terminal::{EscapeAction, EscapeFilter, RawTerminal};
use endpoint::Endpoint;
use line::{Line, PortLine};
use pump::{Escape, Pump};

#[cfg(test)]
mod tests;

/// Why there is no serial port.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// A mode that needs a path came without one.
    #[error("--serial {mode}: no path given, expected {mode}=PATH")]
    PathMissing {
        /// `file` or `socket`.
        mode: &'static str,
    },
    /// The file or socket cannot be used.
    #[error("--serial {mode}={}: cannot {action}", path.display())]
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
        "--serial socket={}: the path exists and is not a socket; remove it or name another",
        path.display()
    )]
    NotASocket {
        /// The path as given.
        path: PathBuf,
    },
    /// Somebody answers at the path of the socket.
    #[error(
        "--serial socket={}: another process is listening there; name another path",
        path.display()
    )]
    SocketInUse {
        /// The path as given.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error(
        "--serial socket={}: the path has {} bytes, expected at most {max}",
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
    #[error("--serial {mode}: cannot {action}")]
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

impl SerialError {
    /// Whether another `--serial` value would mend it. Otherwise the host is at fault.
    pub fn is_bad_configuration(&self) -> bool {
        match self {
            Self::PathMissing { .. }
            | Self::Path { .. }
            | Self::NotASocket { .. }
            | Self::SocketInUse { .. }
            | Self::SocketPathTooLong { .. } => true,
            Self::Host { .. } => false,
        }
    }
}

/// Who gets the input, and whether now. Locked for as long as input is handed over, so that after a pause none is.
#[derive(Default)]
struct Receiver {
    input: Option<SerialInput>,
    paused: bool,
}

fn lock(receiver: &Mutex<Receiver>) -> MutexGuard<'_, Receiver> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The opened host side of the serial port. It outlives the machines that are built one after the other: each gets a
/// port of its own by [`SerialHost::port`].
pub struct SerialHost {
    mode: &'static str,
    line: Arc<Line>,
    receiver: Arc<Mutex<Receiver>>,
    pty: Option<PathBuf>,
    stage: Mutex<Stage>,
}

/// What is there depends on whether the thread runs.
struct Stage {
    /// Until it goes to the thread. None in mode `null`.
    endpoint: Option<Endpoint>,
    thread: Option<JoinHandle<()>>,
    raw: Option<RawTerminal>,
}

impl SerialHost {
    /// Opens what `config` names. None in mode `off`: the machine then has no serial port.
    ///
    /// # Errors
    ///
    /// [`SerialError`] names the option, the path and the reason.
    pub fn open(config: &SerialConfig) -> Result<Option<Self>, SerialError> {
        let (mode, endpoint) = match config.mode {
            ConsoleOutputMode::Off => return Ok(None),
            ConsoleOutputMode::Null => ("null", None),
            ConsoleOutputMode::Tty => ("tty", Some(Endpoint::standard()?)),
            ConsoleOutputMode::File => {
                let path = path("file", config.file.as_deref())?;
                ("file", Some(Endpoint::file(path)?))
            }
            ConsoleOutputMode::Pty => {
                let endpoint = Endpoint::pty()?;
                if let Some(path) = endpoint.pty_path() {
                    // Not a log line: without it, nobody finds the port. With stderr closed, nobody looks for it.
                    let path = path.display();
                    let _ = writeln!(io::stderr(), "podvisor: the serial port is on {path}");
                }
                ("pty", Some(endpoint))
            }
            ConsoleOutputMode::Socket => {
                let path = path("socket", config.socket.as_deref())?;
                ("socket", Some(Endpoint::socket(path)?))
            }
        };
        Self::new(mode, endpoint).map(Some)
    }

    fn new(mode: &'static str, endpoint: Option<Endpoint>) -> Result<Self, SerialError> {
        let line = Line::new().map_err(|source| SerialError::Host {
            mode,
            action: "create an eventfd",
            source,
        })?;
        match &endpoint {
            Some(endpoint) => line.set_connected(endpoint.is_connected()),
            None => line.close(),
        }
        let pty = endpoint
            .as_ref()
            .and_then(Endpoint::pty_path)
            .map(Path::to_owned);
        Ok(Self {
            mode,
            line: Arc::new(line),
            receiver: Arc::default(),
            pty,
            stage: Mutex::new(Stage {
                endpoint,
                thread: None,
                raw: None,
            }),
        })
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pseudo-terminal's path in mode `pty`.
    pub fn pty_path(&self) -> Option<&Path> {
        self.pty.as_deref()
    }

    /// A serial port on `interrupt` for a machine that is being built. A port made before is cut off.
    pub fn port(&self, interrupt: InterruptLine) -> SerialPort {
        // Held throughout: no input goes to the old port once the new one may send.
        let mut receiver = lock(&self.receiver);
        let line = PortLine::new(&self.line);
        let port = SerialPort::new(interrupt, Arc::new(line));
        receiver.input = Some(port.input());
        drop(receiver);
        self.line.wake();
        port
    }

    /// Starts the thread that moves bytes. If the mode is `tty` and standard input is a terminal, that goes into raw
    /// mode, and `escape` is called, on that thread, for [`EscapeAction::Quit`] and [`EscapeAction::PowerButton`].
    ///
    /// # Errors
    ///
    /// The terminal or the thread refused; nothing runs then.
    pub fn start(&self, escape: Box<dyn Fn(EscapeAction) + Send>) -> Result<(), SerialError> {
        let mode = self.mode;
        let fail = |action| {
            move |source| SerialError::Host {
                mode,
                action,
                source,
            }
        };
        let mut stage = self.stage();
        let Some(endpoint) = stage.endpoint.take() else {
            return Ok(());
        };
        let mut filter = None;
        if let Some(terminal) = endpoint.terminal() {
            stage.raw = RawTerminal::enter(terminal.as_fd())
                .map_err(fail("set the terminal to raw mode"))?;
            filter = stage.raw.as_ref().map(|_| Escape {
                filter: EscapeFilter::default(),
                act: escape,
            });
        }
        let pump = Pump::new(
            Arc::clone(&self.line),
            Arc::clone(&self.receiver),
            endpoint,
            filter,
        );
        let thread = thread::Builder::new()
            .name("serial".to_owned())
            .spawn(move || pump.run())
            .map_err(fail("start a thread"));
        match thread {
            Ok(thread) => stage.thread = Some(thread),
            Err(error) => {
                stage.raw = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The machine is about to pause: no vCPU waits for a slow reader from now on, and the guest gets no input.
    pub fn pause(&self) {
        lock(&self.receiver).paused = true;
        self.line.set_paused(true);
    }

    /// The mirror of [`SerialHost::pause`].
    pub fn resume(&self) {
        lock(&self.receiver).paused = false;
        self.line.set_paused(false);
        self.line.wake();
    }

    /// Writes out what the guest sent, as long as somebody takes it and for at most ten seconds, then lets everything
    /// go: the terminal gets its settings back, a socket's file is removed. The guest's further bytes are thrown away.
    /// A second call does nothing.
    pub fn finish(&self) {
        self.line.close();
        let mut stage = self.stage();
        if let Some(thread) = stage.thread.take() {
            if self.line.wait_until_flushed() {
                // The thread does nothing more but end.
                let _ = thread.join();
            } else {
                warn!(mode = self.mode, "some serial output could not be written");
            }
        }
        stage.endpoint = None;
        stage.raw = None;
    }

    /// A way to write out the guest's last bytes from a panic hook, whichever thread panics. To be asked for after
    /// [`SerialHost::start`].
    pub fn flush_on_panic(&self) -> impl Fn() + Send + Sync + 'static {
        let line = Arc::clone(&self.line);
        let running = self.stage().thread.is_some();
        move || {
            if running && thread::current().name() != Some("serial") {
                line.close();
                line.wait_until_flushed();
            }
        }
    }
}

impl Drop for SerialHost {
    fn drop(&mut self) {
        self.finish();
    }
}

fn path<'a>(mode: &'static str, path: Option<&'a Path>) -> Result<&'a Path, SerialError> {
    path.ok_or(SerialError::PathMissing { mode })
}
