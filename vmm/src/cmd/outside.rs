//! What the process offers to the outside: the REST API and the event monitor.

use std::fs::{self, File};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use api::config::EndpointConfig;
use api::event::{EventMonitor, Events};
use api::http::Server;

use crate::gdb;
use crate::unix_socket::{self, SocketError, SocketFile};
use crate::vm::Inbox;

/// Why the process cannot be reached as was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// Nobody can listen at the path.
    #[error("{flag} path={}", path.display())]
    Socket {
        /// The flag.
        flag: &'static str,
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SocketError,
    },
    /// The descriptor cannot be used.
    #[error("{flag} fd={fd}: {problem}")]
    Descriptor {
        /// The flag.
        flag: &'static str,
        /// The number as given.
        fd: RawFd,
        /// What is wrong, and what was expected.
        problem: &'static str,
    },
    /// The file for events cannot be opened.
    #[error("--event-monitor: cannot open path {} for writing", path.display())]
    Monitor {
        /// The path as given.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the thread of {flag}")]
    Thread {
        /// The flag.
        flag: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl OutsideError {
    /// Whether another value of the flag would mend it. Otherwise the host is at fault.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Thread { .. })
    }
}

/// What the API and the event monitor are reached by, opened.
#[derive(Default)]
pub(super) struct Doors {
    listener: Option<UnixListener>,
    socket: Option<SocketFile>,
    monitor: Option<File>,
    debugger: Option<UnixListener>,
    debugger_socket: Option<SocketFile>,
}

impl Doors {
    /// Opens what is named. To be called before anything else is opened: a descriptor that the starting process did not
    /// pass on could otherwise be one of ours.
    ///
    /// # Errors
    ///
    /// [`OutsideError`] names the flag and the value; nothing is left.
    pub(super) fn open(
        api_socket: Option<EndpointConfig>,
        event_monitor: Option<EndpointConfig>,
        gdb: Option<EndpointConfig>,
    ) -> Result<Self, OutsideError> {
        let mut doors = Self::default();
        // Descriptors first, for the reason above.
        let by_descriptor =
            |endpoint: &Option<EndpointConfig>| endpoint.as_ref().and_then(|endpoint| endpoint.fd);
        if let Some(fd) = by_descriptor(&event_monitor) {
            if by_descriptor(&api_socket) == Some(fd) {
                return Err(OutsideError::Descriptor {
                    flag: "--event-monitor",
                    fd,
                    problem: "--api-socket has it, expected another one",
                });
            }
            doors.monitor = Some(take("--event-monitor", fd)?.into());
        }
        if let Some(fd) = by_descriptor(&gdb) {
            let flag = "--gdb";
            let others = [
                ("--api-socket", &api_socket),
                ("--event-monitor", &event_monitor),
            ];
            if others
                .iter()
                .any(|(_, other)| by_descriptor(other) == Some(fd))
            {
                return Err(OutsideError::Descriptor {
                    flag,
                    fd,
                    problem: "another flag has it, expected another one",
                });
            }
            doors.debugger = Some(inherited_listener(flag, fd)?);
        }
        if let Some(fd) = by_descriptor(&api_socket) {
            doors.listener = Some(inherited_listener("--api-socket", fd)?);
        }
        if let Some(path) = event_monitor.and_then(|endpoint| endpoint.path) {
            let file = open_monitor(&path);
            doors.monitor = Some(file.map_err(|source| OutsideError::Monitor { path, source })?);
        }
        if let Some(path) = api_socket.and_then(|endpoint| endpoint.path) {
            let (listener, file) = listen("--api-socket", path)?;
            doors.listener = Some(listener);
            doors.socket = Some(file);
        }
        if let Some(path) = gdb.and_then(|endpoint| endpoint.path) {
            let (listener, file) = listen("--gdb", path)?;
            doors.debugger = Some(listener);
            doors.debugger_socket = Some(file);
        }
        Ok(doors)
    }
}

/// The API's server and the event monitor, as far as they were asked for.
pub(super) struct Outside {
    events: Events,
    server: Option<Server>,
    monitor: Option<EventMonitor>,
    socket: Option<SocketFile>,
    debugger_socket: Option<SocketFile>,
}

impl Outside {
    /// Starts what there are `doors` for. Requests go to `inbox`.
    ///
    /// # Errors
    ///
    /// A thread could not be started; nothing is left.
    pub(super) fn start(
        doors: Doors,
        inbox: &Inbox,
        started: Instant,
    ) -> Result<Self, OutsideError> {
        let Doors {
            listener,
            socket,
            monitor,
            debugger,
            debugger_socket,
        } = doors;
        let thread = |flag| move |source| OutsideError::Thread { flag, source };
        let events = Events::new(started);
        let monitor = monitor
            .map(|file| events.write_to(file))
            .transpose()
            .map_err(thread("--event-monitor"))?;
        let server = listener
            .map(|listener| Server::start(listener, Arc::new(inbox.mailbox()), events.clone()))
            .transpose()
            .map_err(thread("--api-socket"))?;
        debugger
            .map(|listener| gdb::server::start(listener, inbox.mailbox()))
            .transpose()
            .map_err(thread("--gdb"))?;
        Ok(Self {
            events,
            server,
            monitor,
            socket,
            debugger_socket,
        })
    }

    /// Where events are published.
    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    /// Answers the requests that are under way, and writes out all events.
    pub(super) fn finish(self) {
        let Self {
            events,
            server,
            monitor,
            socket,
            debugger_socket,
        } = self;
        // Nobody new comes to a server that ends.
        drop(debugger_socket);
        drop(socket);
        drop(server);
        drop(events);
        drop(monitor);
    }
}

fn listen(flag: &'static str, path: PathBuf) -> Result<(UnixListener, SocketFile), OutsideError> {
    unix_socket::listen(&path).map_err(|source| OutsideError::Socket { flag, path, source })
}

fn inherited_listener(flag: &'static str, fd: RawFd) -> Result<UnixListener, OutsideError> {
    let listener = UnixListener::from(take(flag, fd)?);
    if unix_socket::is_listening(&listener) {
        Ok(listener)
    } else {
        Err(OutsideError::Descriptor {
            flag,
            fd,
            problem: "it is not a listening Unix stream socket, which was expected",
        })
    }
}

/// Opens the file for events, which is made or added to.
fn open_monitor(path: &Path) -> io::Result<File> {
    let is_pipe = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    // Opened for both, a pipe does not wait for a reader.
    File::options()
        .create(true)
        .append(true)
        .read(is_pipe)
        .open(path)
}

/// Takes over the descriptor number `fd`, which the starting process opened for us.
fn take(flag: &'static str, fd: RawFd) -> Result<OwnedFd, OutsideError> {
    // SAFETY: F_SETFD takes an integer, and any number may be asked for.
    #[expect(unsafe_code)]
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 {
        return Err(OutsideError::Descriptor {
            flag,
            fd,
            problem: "it is not open, expected one passed on by the starting process",
        });
    }
    // SAFETY: it is open, and the flag that names it hands it over to us: nothing else in this process uses it, since the
    // process has opened nothing that stays open by the time the flags are looked at.
    #[expect(unsafe_code)]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn descriptor_is_for_one_flag() {
        let listener = OwnedFd::from(tempfile::tempfile().unwrap());
        let endpoint = || EndpointConfig {
            path: None,
            fd: Some(listener.as_raw_fd()),
        };
        for (event_monitor, gdb, part) in [
            (Some(endpoint()), None, "--api-socket has it"),
            (None, Some(endpoint()), "--gdb fd="),
        ] {
            let refused = Doors::open(Some(endpoint()), event_monitor, gdb);
            let refused = refused.err().unwrap();
            assert!(refused.is_configuration());
            assert!(refused.to_string().contains(part), "{refused}");
        }
        // It was not taken.
        assert!(listener.try_clone().is_ok());
    }
}
