//! The thread that takes one debugger after the other.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use gdbstub::common::Signal;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

use super::breakpoints::{Access, Breakpoint};
use super::request::{DebugRequest, Stop, Stopped};
use super::target::{Gone, Guest, tid};
use crate::vm::Mailbox;

/// Starts the thread, which serves those who connect to `listener`, one at a time, until the process ends. Requests go to
/// `mailbox`.
///
/// # Errors
///
/// The host gives no thread.
pub fn start(listener: UnixListener, mailbox: Mailbox) -> io::Result<()> {
    thread::Builder::new()
        .name("gdb".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                // One that was taken back before it was accepted is no reason to end.
                let Ok(stream) = stream else { continue };
                if let Err(Gone) = serve(stream, &mailbox) {
                    return;
                }
            }
        })?;
    Ok(())
}

/// Serves one debugger until it goes.
fn serve(stream: UnixStream, mailbox: &Mailbox) -> Result<(), Gone> {
    let (stops, stopped) = match Stopped::new() {
        Ok(way) => way,
        Err(error) => {
            tracing::error!(%error, "cannot serve a debugger");
            return Ok(());
        }
    };
    let mut guest = Guest::new(mailbox.clone(), stopped);
    if let Err(error) = guest.ask(|answer| DebugRequest::Attach(stops, answer))? {
        // Closing the connection is all that can be said before it has asked something.
        tracing::warn!(%error, "a debugger is turned away");
        return Ok(());
    }
    tracing::info!("a debugger has stopped the guest");
    let result = GdbStub::new(stream).run_blocking::<Loop>(&mut guest);
    match result {
        Ok(DisconnectReason::Kill) => mailbox.debug(DebugRequest::Kill),
        Ok(reason) => {
            tracing::info!(?reason, "the debugger has gone");
            mailbox.debug(DebugRequest::Detach);
        }
        Err(error) => {
            tracing::info!(%error, "the debugger is lost");
            mailbox.debug(DebugRequest::Detach);
        }
    }
    Ok(())
}

enum Loop {}

fn reason(stop: Stop) -> MultiThreadStopReason<u64> {
    match stop {
        Stop::Software(vcpu) => MultiThreadStopReason::SwBreak(tid(vcpu)),
        Stop::Hardware(vcpu) => MultiThreadStopReason::HwBreak(tid(vcpu)),
        Stop::Watch { vcpu, breakpoint } => match breakpoint {
            Breakpoint::Watch {
                address, access, ..
            } => MultiThreadStopReason::Watch {
                tid: tid(vcpu),
                kind: match access {
                    Access::Write => WatchKind::Write,
                    Access::Any => WatchKind::ReadWrite,
                },
                addr: address,
            },
            Breakpoint::Software(_) | Breakpoint::Hardware(_) => {
                MultiThreadStopReason::HwBreak(tid(vcpu))
            }
        },
        // Which thread has stepped has to be said where there are several.
        Stop::Step(vcpu) => MultiThreadStopReason::SignalWithThread {
            tid: tid(vcpu),
            signal: Signal::SIGTRAP,
        },
        Stop::Ended => MultiThreadStopReason::Exited(0),
    }
}

impl BlockingEventLoop for Loop {
    type Target = Guest;
    type Connection = UnixStream;
    type StopReason = MultiThreadStopReason<u64>;

    fn wait_for_stop_reason(
        guest: &mut Guest,
        stream: &mut UnixStream,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<Gone, io::Error>> {
        loop {
            if let Some(stop) = guest.stopped.next() {
                return Ok(Event::TargetStopped(reason(stop)));
            }
            let readable =
                wait(stream, &guest.stopped).map_err(WaitForStopReasonError::Connection)?;
            if readable {
                let mut byte = [0];
                stream
                    .read_exact(&mut byte)
                    .map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte[0]));
            }
        }
    }

    fn on_interrupt(guest: &mut Guest) -> Result<Option<Self::StopReason>, Gone> {
        let stopped = guest.ask(DebugRequest::Interrupt)?;
        Ok(Some(match stopped {
            Ok(vcpu) => MultiThreadStopReason::SignalWithThread {
                tid: tid(vcpu),
                signal: Signal::SIGINT,
            },
            // The machine ended meanwhile.
            Err(_) => MultiThreadStopReason::Exited(0),
        }))
    }
}

/// Waits for the debugger or for the guest, and tells whether it is the debugger that has something to say.
fn wait(stream: &UnixStream, stopped: &Stopped) -> io::Result<bool> {
    let entry = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut ready = [
        entry(stream.as_raw_fd()),
        entry(stopped.eventfd().as_raw_fd()),
    ];
    // SAFETY: the entries are valid for the length of the call, and so are their descriptors.
    #[expect(unsafe_code)]
    let count = unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok(false),
            _ => Err(error),
        };
    }
    Ok(ready[0].revents != 0)
}
