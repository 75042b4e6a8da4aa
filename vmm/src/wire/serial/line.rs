//! The bytes between the vCPUs and the serial thread.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::legacy::SerialLine;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Output that is kept. The guest waits for room beyond it; with nobody connected, the oldest is dropped.
pub(super) const CAPACITY: usize = 256 << 10;
/// Room for what a guest sends although it should wait: it is being paused, or it has waited long enough.
const SLACK: usize = 16 << 10;
/// Output that is written without waiting for more.
pub(super) const BURST: usize = 4096;
/// The longest that one write of the guest waits for room. A vCPU can be asked to pause at any time.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// The longest that the end waits for output to be written out, and the longest without any progress.
const FLUSH_TOTAL: Duration = Duration::from_secs(10);
const FLUSH_STALL: Duration = Duration::from_secs(2);

/// The bounded buffer of output, and the wake-up call of the serial thread.
pub(super) struct Line {
    state: Mutex<State>,
    room: Condvar,
    flushed: Condvar,
    wake: EventFd,
    input_waits: AtomicBool,
}

struct State {
    bytes: VecDeque<u8>,
    /// The port that may send; a port of a machine that is gone has a lower number.
    port: u64,
    /// Somebody takes the output.
    connected: bool,
    /// vCPUs are being stopped, or are.
    paused: bool,
    /// No further output is taken, since then.
    closed: Option<Instant>,
    /// The thread has ended, everything written or given up; true if it was everything.
    flushed: Option<bool>,
}

impl State {
    fn guest_waits(&self, port: u64) -> bool {
        self.bytes.len() >= CAPACITY
            && self.connected
            && !self.paused
            && self.closed.is_none()
            && self.port == port
    }
}

impl Line {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                bytes: VecDeque::new(),
                port: 0,
                connected: false,
                paused: false,
                closed: None,
                flushed: None,
            }),
            room: Condvar::new(),
            flushed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            input_waits: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when the thread has something to look at.
    pub(super) fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Lets the thread look at everything again.
    pub(super) fn wake(&self) {
        // A full counter is a wake-up call too.
        let _ = self.wake.write(1);
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.lock().connected = connected;
        self.room.notify_all();
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
        self.room.notify_all();
    }

    /// Takes no further output; what is there is to be written out.
    pub(super) fn close(&self) {
        self.lock().closed.get_or_insert_with(Instant::now);
        self.room.notify_all();
        self.wake();
    }

    pub(super) fn closed_since(&self) -> Option<Instant> {
        self.lock().closed
    }

    /// Whether the thread shall go on writing: the line is not closed, or there is time left since `progress`, when a
    /// byte was last taken.
    pub(super) fn may_write(closed: Option<Instant>, progress: Instant) -> bool {
        closed.is_none_or(|closed| {
            closed.elapsed() < FLUSH_TOTAL && progress.max(closed).elapsed() < FLUSH_STALL
        })
    }

    /// The thread ends.
    pub(super) fn set_flushed(&self, complete: bool) {
        let mut state = self.lock();
        let nobody = !state.connected;
        state.flushed = Some(complete || nobody);
        drop(state);
        self.flushed.notify_all();
    }

    /// After [`Line::close`]: waits until the thread has ended. False if output was given up.
    pub(super) fn wait_until_flushed(&self) -> bool {
        // The thread keeps its own time; the margin is for a host that is slow to run it.
        let (state, _) = self
            .flushed
            .wait_timeout_while(self.lock(), FLUSH_TOTAL + FLUSH_STALL, |state| {
                state.flushed.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.flushed.unwrap_or(false)
    }

    /// Bytes of output that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Moves up to `max` bytes to the end of `chunk`.
    pub(super) fn take(&self, chunk: &mut Vec<u8>, max: usize) {
        let mut state = self.lock();
        let count = state.bytes.len().min(max);
        chunk.extend(state.bytes.drain(..count));
        drop(state);
        self.room.notify_all();
    }

    /// Adds a message of the VMM to the output, if there is room.
    pub(super) fn say(&self, message: &str) {
        let mut state = self.lock();
        if state.bytes.len() < CAPACITY {
            state.bytes.extend(message.as_bytes());
        }
    }

    /// The receiver has refused input: the thread wants to be woken when it takes some again.
    pub(super) fn set_input_waits(&self, waits: bool) {
        self.input_waits.store(waits, Ordering::SeqCst);
    }
}

/// The line as one port sees it.
pub(super) struct PortLine {
    line: Arc<Line>,
    port: u64,
}

impl PortLine {
    /// Connects a new port; the one before it is cut off.
    pub(super) fn new(line: &Arc<Line>) -> Self {
        let mut state = line.lock();
        state.port += 1;
        let port = state.port;
        drop(state);
        line.room.notify_all();
        Self {
            line: Arc::clone(line),
            port,
        }
    }
}

impl SerialLine for PortLine {
    fn wait_for_room(&self) {
        let state = self.line.lock();
        if state.guest_waits(self.port) {
            let waits = |state: &mut State| state.guest_waits(self.port);
            drop(
                self.line
                    .room
                    .wait_timeout_while(state, LONGEST_WAIT, waits),
            );
        }
    }

    fn transmit(&self, byte: u8) {
        let mut state = self.line.lock();
        if state.closed.is_some() || state.port != self.port {
            return;
        }
        let limit = if state.connected {
            CAPACITY + SLACK
        } else {
            CAPACITY
        };
        if state.bytes.len() >= limit {
            state.bytes.pop_front();
        }
        state.bytes.push_back(byte);
        let len = state.bytes.len();
        drop(state);
        // In between, the thread knows already that there is output and waits for more.
        if len == 1 || len == BURST {
            self.line.wake();
        }
    }

    fn receiver_ready(&self) {
        if self.line.input_waits.swap(false, Ordering::SeqCst) {
            self.line.wake();
        }
    }
}
