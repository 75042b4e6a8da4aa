//! The thread of a line: output to the endpoint, input to the port.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::output::{BURST, CAPACITY, Output};
use super::{Kind, Receiver, lock, poll};
use crate::terminal::{EscapeAction, EscapeFilter, HELP};

/// How long output waits for more to be written with it.
const COALESCE: Duration = Duration::from_millis(1);
/// The most that is taken from the line at once.
const CHUNK: usize = 16 << 10;
/// Chunks that are written before input is looked at.
const CHUNKS_AT_ONCE: usize = 16;
/// The most that is read at once.
const READ: usize = 4096;
/// Input that is read ahead where the escape key has to be found, even if the guest reads nothing.
const READ_AHEAD: usize = 1 << 20;
/// Input of a client that has gone; no pty or socket holds more.
const LAST_INPUT: usize = 512 << 10;
/// A client that takes nothing for so long stops a console no more.
const STALL: Duration = Duration::from_secs(1);
/// How often the clock is looked at while the last output is written.
const CLOSING_TICK: Duration = Duration::from_millis(50);

/// The escape key of a raw terminal.
pub(super) struct Escape {
    pub(super) filter: EscapeFilter,
    pub(super) act: Box<dyn Fn(EscapeAction) + Send>,
}

/// What the thread owns.
pub(super) struct Pump {
    kind: Kind,
    line: Arc<Output>,
    receiver: Arc<Mutex<Receiver>>,
    endpoint: Endpoint,
    escape: Option<Escape>,
    /// Output taken from the line, and how much of it is written.
    chunk: Vec<u8>,
    written: usize,
    /// Output is there since less than [`COALESCE`] and is written then.
    due: Option<Instant>,
    /// The endpoint takes no more for now.
    blocked: bool,
    /// When the endpoint last took a byte.
    progress: Instant,
    /// Input that the guest has not taken.
    input: VecDeque<u8>,
}

impl Pump {
    pub(super) fn new(
        kind: Kind,
        line: Arc<Output>,
        receiver: Arc<Mutex<Receiver>>,
        endpoint: Endpoint,
        escape: Option<Escape>,
    ) -> Self {
        Self {
            kind,
            line,
            receiver,
            endpoint,
            escape,
            chunk: Vec::with_capacity(CHUNK),
            written: 0,
            due: None,
            blocked: false,
            progress: Instant::now(),
            input: VecDeque::new(),
        }
    }

    /// Moves bytes until the line is closed and everything is written, or nobody takes it.
    pub(super) fn run(mut self) {
        let complete = loop {
            let closed = self.line.closed_since();
            if closed.is_none() {
                self.deliver();
            }
            let timeout = self.transmit(closed.is_some());
            if closed.is_some() {
                let complete = self.chunk.is_empty() && self.line.len() == 0;
                if complete
                    || !self.endpoint.is_connected()
                    || !Output::may_write(closed, self.progress)
                {
                    break complete;
                }
            }
            let tick = closed.map(|_| CLOSING_TICK);
            self.wait([timeout, tick].into_iter().flatten().min());
        };
        // Before anybody goes on: a socket's file is gone when the process says that it is done.
        drop(self.endpoint);
        self.line.set_flushed(complete);
    }

    /// Writes output. Returns how long to wait for more of it, if there is a reason to be back soon.
    fn transmit(&mut self, closing: bool) -> Option<Duration> {
        self.blocked = false;
        for _ in 0..CHUNKS_AT_ONCE {
            if !self.endpoint.is_connected() {
                return None;
            }
            if self.chunk.is_empty() {
                let len = self.line.len();
                if len == 0 {
                    self.due = None;
                    return None;
                }
                let due = *self.due.get_or_insert_with(|| Instant::now() + COALESCE);
                let left = due.saturating_duration_since(Instant::now());
                let waits = self.kind == Kind::Console && len < BURST && !closing;
                if waits && !left.is_zero() {
                    return Some(left);
                }
                self.due = None;
                self.line.take(&mut self.chunk, CHUNK);
                if self.line.take_output_waits() {
                    self.tell();
                }
            }
            match self.endpoint.write(&self.chunk[self.written..]) {
                Ok(count) => {
                    self.progress = Instant::now();
                    self.line.set_stalled(false);
                    self.written += count;
                    if self.written >= self.chunk.len() {
                        self.chunk.clear();
                        self.written = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return self.watch_stall();
                }
                Err(_) => self.disconnect(),
            }
        }
        Some(Duration::ZERO)
    }

    /// The endpoint takes nothing now. Returns when that has lasted too long, unless it has.
    fn watch_stall(&self) -> Option<Duration> {
        if self.kind != Kind::Console {
            return None;
        }
        let left = STALL.saturating_sub(self.progress.elapsed());
        if left.is_zero() {
            if self.line.set_stalled(true) {
                self.tell();
            }
            return None;
        }
        Some(left)
    }

    /// Lets the device look at the line.
    fn tell(&self) {
        if let Some(input) = &lock(&self.receiver).input {
            input.changed();
        }
    }

    /// Hands input to the guest, as much as it takes. Of one who has gone, nobody in the guest may be there to take it.
    fn deliver(&mut self) {
        self.hand_over();
        if self.kind == Kind::Stream {
            let gone = !self.endpoint.is_connected();
            if gone && !lock(&self.receiver).is_open() {
                self.input.clear();
            }
            if self.line.set_leftover(gone && !self.input.is_empty()) {
                self.tell();
            }
        }
    }

    fn hand_over(&mut self) {
        while !self.input.is_empty() {
            // First, so that a receiver that gets room right after it has refused is not missed.
            self.line.set_input_waits(true);
            let receiver = lock(&self.receiver);
            let Some(port) = receiver.input.as_ref().filter(|_| !receiver.paused) else {
                return;
            };
            let count = port.receive(self.input.as_slices().0);
            drop(receiver);
            if count == 0 {
                return;
            }
            self.input.drain(..count);
        }
        self.line.set_input_waits(false);
    }

    fn wants_input(&self) -> bool {
        let room = match self.escape {
            Some(_) => self.input.len() < READ_AHEAD,
            None => self.input.is_empty(),
        };
        room && self.endpoint.has_input()
    }

    /// Waits for something to do, and sees to all but output.
    fn wait(&mut self, timeout: Option<Duration>) {
        let wants_input = self.wants_input();
        let (input, hangs_up) = self.endpoint.input();
        let input = input.filter(|_| wants_input || hangs_up);
        let output = self.endpoint.output().filter(|_| self.blocked);
        let read = if wants_input { libc::POLLIN } else { 0 };
        // The next client of a stream waits until all of the one before it is delivered.
        let welcome = self.kind == Kind::Console || self.input.is_empty();
        let arrivals = self.endpoint.arrivals().filter(|_| welcome);
        let mut entries = [
            poll::entry(Some(self.line.wake_event().as_raw_fd()), libc::POLLIN),
            poll::entry(raw(arrivals), libc::POLLIN),
            poll::entry(raw(input), read),
            poll::entry(raw(output), libc::POLLOUT),
        ];
        poll::wait(&mut entries, timeout);
        let [wake, arrivals, input, _] = entries.map(|entry| entry.revents);
        if wake != 0 {
            // Its only failure is that nobody has woken the thread, which then was woken already.
            let _ = self.line.wake_event().read();
        }
        if arrivals != 0 {
            self.arrive();
        }
        let gone = hangs_up && input & (libc::POLLHUP | libc::POLLERR) != 0;
        if gone {
            self.read_last();
            self.disconnect();
        } else if input != 0 && wants_input {
            self.read();
        }
    }

    /// Reads once. Returns whether there was anything.
    fn read(&mut self) -> bool {
        let mut buffer = [0; READ];
        let Ok(count @ 1..) = self.endpoint.read(&mut buffer) else {
            return false;
        };
        if self.endpoint.resizes_silently() {
            self.look_at_size();
        }
        let typed = &buffer[..count];
        let Some(Escape { filter, act }) = &mut self.escape else {
            self.input.extend(typed);
            return true;
        };
        let (input, line) = (&mut self.input, &self.line);
        filter.feed(
            typed,
            |key| input.push_back(key),
            |action| match action {
                EscapeAction::Help => line.say(HELP),
                action => act(action),
            },
        );
        true
    }

    /// Reads what a client left behind when it went.
    fn read_last(&mut self) {
        while self.input.len() < LAST_INPUT && self.read() {}
    }

    fn look_at_size(&self) {
        if self.line.set_size(self.endpoint.size()) {
            self.tell();
        }
    }

    fn arrive(&mut self) {
        self.endpoint.arrive();
        if !self.endpoint.is_connected() {
            return;
        }
        if self.kind == Kind::Console && self.endpoint.replays() {
            self.line.replay();
        }
        self.progress = Instant::now();
        self.line.set_size(self.endpoint.size());
        self.line.set_connected(true);
        self.tell();
    }

    fn disconnect(&mut self) {
        self.endpoint.disconnect();
        // Before the line tells that nobody is there: what came with the end is still to be delivered.
        if self.kind == Kind::Stream && !self.input.is_empty() {
            self.line.set_leftover(true);
        }
        self.line.set_connected(false);
        // The next client sees it again, or was not meant. Otherwise what is left is for the next one.
        if self.kind == Kind::Stream || self.endpoint.replays() {
            self.chunk.clear();
            self.written = 0;
        }
        self.tell();
    }
}

fn raw(fd: Option<BorrowedFd<'_>>) -> Option<RawFd> {
    fd.map(|fd| fd.as_raw_fd())
}

const _: () = assert!(BURST <= CHUNK && CHUNK <= CAPACITY);
