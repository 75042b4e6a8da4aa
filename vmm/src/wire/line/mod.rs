//! A line from the guest to the host: of the serial port, of the console, or of a port that has a name.
//!
//! ```text
//! the guest sends bytes -> Output (a bounded buffer) -> the line's thread -> terminal, file, pty or socket
//! the guest reads bytes <- a buffer of its device <- the line's thread <- terminal, pty or socket
//! ```
//!
//! | | console and serial port | stream |
//! | --- | --- | --- |
//! | nobody is connected | the last 256 KiB are kept for the next to come | the guest waits |
//! | a reader is slow | the guest waits; that of a console for a second | the guest waits |
//! | the next client of a socket | sees the last 64 KiB again | sees nothing of it |
//! | a client has gone | its input is delivered | as long as the guest has the port open |
//!
//! Output of a console is collected for up to a millisecond and written at once. [`HostLine::finish`] writes out what is
//! there. Of input, no more is read than the guest takes, so that what is pasted is not lost.
//!
//! | mode | output | input |
//! | --- | --- | --- |
//! | `off` | there is no line | |
//! | `null` | thrown away | none |
//! | `tty` | standard output | standard input; raw with an [escape key](crate::terminal) if it is a terminal |
//! | `file=PATH` | the file, which is created, or emptied if it is there | none |
//! | `pty` | a new pseudo-terminal, whose path is told on stderr | the same |
//! | `socket=PATH` | one client at a time of a Unix stream socket that only its owner may use | the same |

mod endpoint;
mod error;
mod input;
mod output;
mod poll;
mod pty;
mod pump;
mod socket;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use api::config::ConsoleOutputMode;
use devices::interrupt::InterruptLine;
use devices::legacy::SerialPort;
use devices::virtio::console::{PortInput, PortLine};
use tracing::warn;

use self::endpoint::Endpoint;
pub use self::error::{LineError, LineFault};
use self::input::{Input, Receiver, lock};
use self::output::{Output, PortEnd};
use self::pump::{Escape, Pump};
use crate::terminal::{EscapeAction, EscapeFilter, RawTerminal};

#[cfg(test)]
mod tests;

/// Called with what the user asked for by the escape key, on the thread of the line that has the terminal.
pub type OnEscape = Box<dyn Fn(EscapeAction) + Send>;

/// What a line carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text for a person: the last of it matters most.
    Console,
    /// Bytes between two programs, none of which may be missing.
    Stream,
}

/// What a line is to be opened as.
#[derive(Clone, Copy, Debug)]
pub struct LineRequest<'a> {
    /// The option that asks for it with what comes before the mode, such as `--serial `, for errors.
    pub option: &'a str,
    /// What it is to a user, such as `the serial port`.
    pub what: &'a str,
    /// Name of its thread, of which the kernel shows the first 15 bytes.
    pub thread: &'a str,
    /// What it carries.
    pub kind: Kind,
    /// Where to.
    pub mode: ConsoleOutputMode,
    /// The path of mode `File`.
    pub file: Option<&'a Path>,
    /// The path of mode `Socket`.
    pub socket: Option<&'a Path>,
}

/// The opened host side of a line. It outlives the machines that are built one after the other: each gets an end of its
/// own by [`HostLine::serial_port`] or [`HostLine::port`].
pub struct HostLine {
    option: String,
    mode: &'static str,
    thread: String,
    kind: Kind,
    output: Arc<Output>,
    receiver: Arc<Mutex<Receiver>>,
    pty: Option<PathBuf>,
    /// The user's terminal, to be asked for its size.
    window: Option<OwnedFd>,
    stage: Mutex<Stage>,
}

/// What is there depends on whether the thread runs.
struct Stage {
    /// Until it goes to the thread. None in mode `null`.
    endpoint: Option<Endpoint>,
    thread: Option<JoinHandle<()>>,
    raw: Option<RawTerminal>,
}

impl HostLine {
    /// Opens what `request` names. None in mode `off`: the machine then has no such device.
    ///
    /// # Errors
    ///
    /// [`LineError`] names the option, the path and the reason.
    pub fn open(request: &LineRequest<'_>) -> Result<Option<Self>, LineError> {
        let path = |mode, path: Option<&Path>| {
            path.map(Path::to_owned)
                .ok_or(LineFault::PathMissing { mode })
        };
        let open = || {
            Ok(Some(match request.mode {
                ConsoleOutputMode::Off => return Ok(None),
                ConsoleOutputMode::Null => ("null", None),
                ConsoleOutputMode::Tty => ("tty", Some(Endpoint::standard()?)),
                ConsoleOutputMode::File => {
                    let path = path("file", request.file)?;
                    ("file", Some(Endpoint::file(&path)?))
                }
                ConsoleOutputMode::Pty => {
                    let endpoint = Endpoint::pty()?;
                    if let Some(path) = endpoint.pty_path() {
                        // Not a log line: without it, nobody finds the port. With stderr closed, nobody looks for it.
                        let (what, path) = (request.what, path.display());
                        let _ = writeln!(io::stderr(), "podvisor: {what} is on {path}");
                    }
                    ("pty", Some(endpoint))
                }
                ConsoleOutputMode::Socket => {
                    let path = path("socket", request.socket)?;
                    ("socket", Some(Endpoint::socket(&path)?))
                }
            }))
        };
        open()
            .and_then(|opened| {
                opened
                    .map(|(mode, endpoint)| Self::new(request, mode, endpoint))
                    .transpose()
            })
            .map_err(|fault| LineError::new(request.option, fault))
    }

    fn new(
        request: &LineRequest<'_>,
        mode: &'static str,
        endpoint: Option<Endpoint>,
    ) -> Result<Self, LineFault> {
        let output = Output::new(request.kind).map_err(|source| LineFault::Host {
            mode,
            action: "create an eventfd",
            source,
        })?;
        match &endpoint {
            Some(endpoint) => {
                output.set_size(endpoint.size());
                output.set_connected(endpoint.is_connected());
            }
            None => {
                // Nobody reads it, and yet nobody is missing.
                output.set_connected(true);
                output.close();
            }
        }
        let pty = endpoint
            .as_ref()
            .and_then(Endpoint::pty_path)
            .map(Path::to_owned);
        Ok(Self {
            option: request.option.to_owned(),
            mode,
            thread: request.thread.to_owned(),
            kind: request.kind,
            output: Arc::new(output),
            receiver: Arc::default(),
            pty,
            window: endpoint.as_ref().and_then(Endpoint::window),
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
    pub fn serial_port(&self, interrupt: InterruptLine) -> SerialPort {
        // Held throughout: no input goes to the old port once the new one may send.
        let mut receiver = lock(&self.receiver);
        let port = SerialPort::new(interrupt, Arc::new(PortEnd::new(&self.output)));
        receiver.input = Some(Input::Serial(port.input()));
        drop(receiver);
        self.output.wake();
        port
    }

    /// The other end of a virtio port for a machine that is being built. One made before is cut off. Input goes to it
    /// once it is told by [`HostLine::connect`] where to.
    pub fn port(&self) -> Arc<dyn PortLine> {
        let mut receiver = lock(&self.receiver);
        receiver.input = None;
        Arc::new(PortEnd::new(&self.output))
    }

    /// Input goes to `input` from now on.
    pub fn connect(&self, input: PortInput) {
        lock(&self.receiver).input = Some(Input::Port(input));
        self.output.wake();
    }

    /// Starts the thread that moves bytes. If the mode is `tty` and standard input is a terminal, that goes into raw
    /// mode, and `escape` is called, on that thread, for [`EscapeAction::Quit`] and [`EscapeAction::PowerButton`].
    ///
    /// # Errors
    ///
    /// The terminal or the thread refused; nothing runs then.
    pub fn start(&self, escape: OnEscape) -> Result<(), LineError> {
        let fail = |action| {
            move |source| {
                let mode = self.mode;
                let fault = LineFault::Host {
                    mode,
                    action,
                    source,
                };
                LineError::new(&self.option, fault)
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
            self.kind,
            Arc::clone(&self.output),
            Arc::clone(&self.receiver),
            endpoint,
            filter,
        );
        let thread = thread::Builder::new()
            .name(self.thread.clone())
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

    /// The user's terminal may have another size.
    pub fn look_at_size(&self) {
        let size = self
            .window
            .as_ref()
            .and_then(|window| poll::window_size(window.as_fd()));
        if size.is_some()
            && self.output.set_size(size)
            && let Some(input) = &lock(&self.receiver).input
        {
            input.changed();
        }
    }

    /// The machine is about to pause: no vCPU waits for a slow reader from now on, and the guest gets no input.
    pub fn pause(&self) {
        lock(&self.receiver).paused = true;
        self.output.set_paused(true);
    }

    /// The mirror of [`HostLine::pause`].
    pub fn resume(&self) {
        lock(&self.receiver).paused = false;
        self.output.set_paused(false);
        self.output.wake();
    }

    /// Writes out what the guest sent, as long as somebody takes it and for at most ten seconds, then lets everything
    /// go: the terminal gets its settings back, a socket's file is removed. The guest's further bytes are thrown away.
    /// A second call does nothing.
    pub fn finish(&self) {
        self.output.close();
        let mut stage = self.stage();
        if let Some(thread) = stage.thread.take() {
            if self.output.wait_until_flushed() {
                // The thread does nothing more but end.
                let _ = thread.join();
            } else {
                let line = &self.thread;
                warn!(line, mode = self.mode, "some output could not be written");
            }
        }
        stage.endpoint = None;
        stage.raw = None;
    }

    /// A way to write out the guest's last bytes from a panic hook, whichever thread panics. To be asked for after
    /// [`HostLine::start`].
    pub fn flush_on_panic(&self) -> impl Fn() + Send + Sync + 'static {
        let output = Arc::clone(&self.output);
        let stage = self.stage();
        let running = stage.thread.as_ref().map(|thread| thread.thread().id());
        drop(stage);
        move || {
            if running.is_some_and(|thread| thread != thread::current().id()) {
                output.close();
                output.wait_until_flushed();
            }
        }
    }
}

impl Drop for HostLine {
    fn drop(&mut self) {
        self.finish();
    }
}
