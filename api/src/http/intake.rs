//! What has come on a connection, and what may come next.
//!
//! Descriptors travel beside the bytes, and hyper knows only bytes. To tell which request descriptors came with, a
//! connection hands hyper the bytes of one request at a time: the head up to its empty line, then as many bytes of body
//! as that head announces, then nothing until the request is answered. Descriptors belong to the request that takes the
//! last byte of the read that brought them.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::time::Instant;

use super::limits::{HEAD_TIME, IDLE_TIME, MAX_DESCRIPTORS};

/// Where in a request its sender is.
#[derive(Debug)]
enum Phase {
    /// Before the first byte of a request.
    Idle { since: Instant },
    /// In its head.
    Head {
        since: Instant,
        /// Whether nothing but a carriage return has come in this line.
        line_is_empty: bool,
    },
    /// In its body, of which so many bytes are to come. `u64::MAX` when the head does not tell.
    Body { left: u64 },
    /// Behind its end, until it is answered.
    Waiting,
}

/// Descriptors of one request.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) descriptors: Vec<OwnedFd>,
    /// How many were closed at once, as they were more than a request may have.
    pub(super) surplus: usize,
    /// Whether the kernel could not hand over some, as the process has too many open already.
    pub(super) truncated: bool,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    arrived: Arrived,
    /// Whether the connection ends as soon as it is idle.
    closing: bool,
    reader: Option<Waker>,
}

/// Shared by the connection's two sides, the one that reads and the one that answers, and by the listener.
#[derive(Clone, Debug)]
pub(super) struct Intake(Arc<Mutex<State>>);

/// What to do about bytes that hyper asks for.
pub(super) enum Demand {
    /// Read them, before this moment if there is one.
    Read(Option<Instant>),
    /// Wait until the request before is answered.
    Wait,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            phase: Phase::Idle {
                since: Instant::now(),
            },
            arrived: Arrived::default(),
            closing: false,
            reader: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do about further bytes. `waker` is woken when that changes.
    pub(super) fn demand(&self, waker: &Waker) -> Demand {
        let mut state = self.state();
        state.reader = Some(waker.clone());
        match state.phase {
            Phase::Idle { since } => Demand::Read(Some(since + IDLE_TIME)),
            Phase::Head { since, .. } => Demand::Read(Some(since + HEAD_TIME)),
            Phase::Body { .. } => Demand::Read(None),
            Phase::Waiting => Demand::Wait,
        }
    }

    /// How many of `bytes`, which are the next, belong to the current request. None while it is being answered.
    pub(super) fn admit(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let mut admitted = 0;
        for &byte in bytes {
            match &mut state.phase {
                // Empty lines before a request are not part of it (RFC 9112, 2.2).
                Phase::Idle { .. } if matches!(byte, b'\r' | b'\n') => {}
                Phase::Idle { .. } => {
                    state.phase = Phase::Head {
                        since: Instant::now(),
                        line_is_empty: false,
                    };
                }
                Phase::Head { line_is_empty, .. } => match (byte, *line_is_empty) {
                    (b'\n', true) => state.phase = Phase::Waiting,
                    (b'\n', false) => *line_is_empty = true,
                    (b'\r', _) => {}
                    _ => *line_is_empty = false,
                },
                Phase::Body { left } => {
                    let rest = (bytes.len() - admitted) as u64;
                    let taken = rest.min(*left);
                    *left -= taken;
                    if *left == 0 {
                        state.phase = Phase::Waiting;
                    }
                    return admitted + usize::try_from(taken).unwrap_or(usize::MAX);
                }
                Phase::Waiting => return admitted,
            }
            admitted += 1;
        }
        admitted
    }

    /// Takes descriptors that belong to the current request.
    pub(super) fn arrive(&self, descriptors: Vec<OwnedFd>, truncated: bool) {
        let mut state = self.state();
        let arrived = &mut state.arrived;
        arrived.truncated |= truncated;
        for descriptor in descriptors {
            if arrived.descriptors.len() < MAX_DESCRIPTORS {
                arrived.descriptors.push(descriptor);
            } else {
                arrived.surplus += 1;
            }
        }
    }

    /// The head has come; a body of that length follows, or one that tells its end by itself.
    pub(super) fn begin_body(&self, length: Option<u64>) {
        let mut state = self.state();
        state.phase = match length {
            Some(0) => Phase::Waiting,
            Some(left) => Phase::Body { left },
            None => Phase::Body { left: u64::MAX },
        };
        state.wake();
    }

    /// The body has come, and with it all the descriptors of the request.
    pub(super) fn end_body(&self) -> Arrived {
        let mut state = self.state();
        state.phase = Phase::Waiting;
        std::mem::take(&mut state.arrived)
    }

    /// The request is answered: the next one may come.
    pub(super) fn next_request(&self) {
        let mut state = self.state();
        state.phase = Phase::Idle {
            since: Instant::now(),
        };
        state.wake();
    }

    /// Ends the connection as soon as nothing is under way on it.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closing = true;
        state.wake();
    }

    /// Whether there is nothing under way.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state().phase, Phase::Idle { .. })
    }

    /// Whether the connection ends for want of a further request.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.state();
        state.closing && matches!(state.phase, Phase::Idle { .. })
    }

    /// Whether the connection ends after what is under way on it.
    pub(super) fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// Since when there is nothing under way.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        match state.phase {
            Phase::Idle { since } if !state.closing => Some(since),
            _ => None,
        }
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_admitted_one_request_at_a_time() {
        let intake = Intake::new();
        let head = b"\r\nPUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
        let next = b"GET /b HTTP/1.1\r\n\r\n";
        let all = [head, b"abc".as_slice(), next].concat();
        let (body, rest) = (&all[head.len()..], &all[head.len() + 3..]);
        assert_eq!(intake.admit(&all), head.len());
        assert_eq!(intake.admit(body), 0);
        intake.begin_body(Some(3));
        assert_eq!(intake.admit(&body[..2]), 2);
        assert_eq!(intake.admit(&body[2..]), 1);
        assert_eq!(intake.admit(rest), 0);
        intake.end_body();
        intake.next_request();
        assert_eq!(intake.admit(rest), next.len());
    }

    #[test]
    fn head_may_end_with_bare_line_feeds() {
        let intake = Intake::new();
        assert_eq!(intake.admit(b"GET /a HTTP/1.1\n\nGET"), 17);
    }

    #[test]
    fn body_of_unknown_length_is_admitted_until_it_has_ended() {
        let intake = Intake::new();
        intake.admit(b"PUT / HTTP/1.1\r\n\r\n");
        intake.begin_body(None);
        assert_eq!(intake.admit(b"3\r\nabc\r\n0\r\n\r\n"), 13);
        intake.end_body();
        assert_eq!(intake.admit(b"G"), 0);
    }
}
