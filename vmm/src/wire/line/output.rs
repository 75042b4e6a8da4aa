//! The bytes between the guest and the thread of a line.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::legacy::SerialLine;
use devices::virtio::console::{Client, PortLine, WindowSize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Kind;

/// Output that is kept. The guest waits for room beyond it; with nobody connected, the oldest of a console is dropped.
pub(super) const CAPACITY: usize = 256 << 10;
/// Room for what a guest sends although it should wait: it is being paused, or it has waited long enough.
const SLACK: usize = 16 << 10;
/// Output of a console that its next client sees although the one before has seen it.
pub(super) const REPLAY: usize = 64 << 10;
/// Output that is written without waiting for more.
pub(super) const BURST: usize = 4096;
/// The longest that one write to a serial port waits for room. A vCPU can be asked to pause at any time.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// The longest that the end waits for output to be written out, and the longest without any progress.
const FLUSH_TOTAL: Duration = Duration::from_secs(10);
const FLUSH_STALL: Duration = Duration::from_secs(2);

/// The bounded buffer of output, and the wake-up call of the line's thread.
pub(super) struct Output {
    kind: Kind,
    state: Mutex<State>,
    room: Condvar,
    flushed: Condvar,
    wake: EventFd,
    input_waits: AtomicBool,
    output_waits: AtomicBool,
}

struct State {
    /// What was sent already, to be replayed, and then what was not.
    bytes: VecDeque<u8>,
    /// How much of it was sent.
    sent: usize,
    /// The port that may send; a port of a machine that is gone has a lower number.
    port: u64,
    /// Somebody takes the output.
    connected: bool,
    /// Counts those who came.
    session: u64,
    /// Somebody who has gone has left input.
    leftover: bool,
    /// Whoever is connected has taken nothing for long.
    stalled: bool,
    /// The size of the terminal, if it is one.
    size: Option<WindowSize>,
    /// vCPUs are being stopped, or are.
    paused: bool,
    /// No further output is taken, since then.
    closed: Option<Instant>,
    /// The thread has ended, everything written or given up; true if it was everything.
    flushed: Option<bool>,
}

impl State {
    fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn guest_waits(&self, port: u64) -> bool {
        self.unsent() >= CAPACITY
            && self.connected
            && !self.paused
            && self.closed.is_none()
            && self.port == port
    }

    /// Adds output, for which what was sent already makes room first, and then the oldest.
    fn push(&mut self, bytes: &[u8]) {
        let limit = if self.connected {
            CAPACITY + SLACK
        } else {
            CAPACITY
        };
        let bytes = &bytes[bytes.len().saturating_sub(limit)..];
        let surplus = (self.bytes.len() + bytes.len()).saturating_sub(limit);
        self.forget(surplus);
        self.bytes.extend(bytes);
    }

    fn forget(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.sent = self.sent.saturating_sub(count);
    }
}

impl Output {
    pub(super) fn new(kind: Kind) -> io::Result<Self> {
        Ok(Self {
            kind,
            state: Mutex::new(State {
                bytes: VecDeque::new(),
                sent: 0,
                port: 0,
                connected: false,
                session: 0,
                leftover: false,
                stalled: false,
                size: None,
                paused: false,
                closed: None,
                flushed: None,
            }),
            room: Condvar::new(),
            flushed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            input_waits: AtomicBool::new(false),
            output_waits: AtomicBool::new(false),
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

    /// Somebody has come, or gone. What of a stream was not sent was for the one who has gone.
    pub(super) fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        if connected && !state.connected {
            state.session += 1;
        }
        state.connected = connected;
        state.stalled = false;
        if !connected && self.kind == Kind::Stream {
            state.bytes.clear();
            state.sent = 0;
        }
        drop(state);
        self.room.notify_all();
    }

    /// Lets the next client see what the one before has seen.
    pub(super) fn replay(&self) {
        self.lock().sent = 0;
    }

    /// Somebody who has gone has left input that is still to be delivered, or no longer. Tells whether that is news.
    pub(super) fn set_leftover(&self, leftover: bool) -> bool {
        std::mem::replace(&mut self.lock().leftover, leftover) != leftover
    }

    /// Whoever is connected takes nothing, or something again. Tells whether that is news.
    pub(super) fn set_stalled(&self, stalled: bool) -> bool {
        std::mem::replace(&mut self.lock().stalled, stalled) != stalled
    }

    /// The terminal has this size. Tells whether that is news.
    pub(super) fn set_size(&self, size: Option<WindowSize>) -> bool {
        std::mem::replace(&mut self.lock().size, size) != size
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

    /// After [`Output::close`]: waits until the thread has ended. False if output was given up.
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
        self.lock().unsent()
    }

    /// Copies up to `max` bytes to the end of `chunk`. They count as sent.
    pub(super) fn take(&self, chunk: &mut Vec<u8>, max: usize) {
        let mut state = self.lock();
        let count = state.unsent().min(max);
        let from = state.sent;
        chunk.extend(state.bytes.range(from..from + count));
        state.sent += count;
        let keep = match self.kind {
            Kind::Console => REPLAY,
            Kind::Stream => 0,
        };
        let surplus = state.sent.saturating_sub(keep);
        state.forget(surplus);
        drop(state);
        self.room.notify_all();
    }

    /// Whether somebody waits for room, who is to be told; asked once.
    pub(super) fn take_output_waits(&self) -> bool {
        self.output_waits.swap(false, Ordering::SeqCst)
    }

    /// Adds a message of the VMM to the output, if there is room.
    pub(super) fn say(&self, message: &str) {
        let mut state = self.lock();
        if state.unsent() < CAPACITY {
            state.push(message.as_bytes());
        }
    }

    /// The receiver has refused input: the thread wants to be woken when it takes some again.
    pub(super) fn set_input_waits(&self, waits: bool) {
        self.input_waits.store(waits, Ordering::SeqCst);
    }

    /// Takes output of a port, unless that is cut off.
    fn transmit(&self, port: u64, bytes: &[u8]) {
        let mut state = self.lock();
        if state.closed.is_some() || state.port != port {
            return;
        }
        let before = state.unsent();
        state.push(bytes);
        let after = state.unsent();
        drop(state);
        // In between, the thread knows already that there is output and waits for more.
        if before == 0 || (before < BURST && after >= BURST) {
            self.wake();
        }
    }

    fn receiver_ready(&self) {
        if self.input_waits.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }
}

/// The line as one port sees it.
pub(super) struct PortEnd {
    output: Arc<Output>,
    port: u64,
}

impl PortEnd {
    /// Connects a new port; the one before it is cut off.
    pub(super) fn new(output: &Arc<Output>) -> Self {
        let mut state = output.lock();
        state.port += 1;
        let port = state.port;
        drop(state);
        output.room.notify_all();
        Self {
            output: Arc::clone(output),
            port,
        }
    }
}

impl SerialLine for PortEnd {
    fn wait_for_room(&self) {
        let state = self.output.lock();
        if state.guest_waits(self.port) {
            let waits = |state: &mut State| state.guest_waits(self.port);
            drop(
                self.output
                    .room
                    .wait_timeout_while(state, LONGEST_WAIT, waits),
            );
        }
    }

    fn transmit(&self, byte: u8) {
        self.output.transmit(self.port, &[byte]);
    }

    fn receiver_ready(&self) {
        self.output.receiver_ready();
    }
}

impl PortLine for PortEnd {
    fn room(&self) -> usize {
        // First, so that room which comes right after there was none is not missed.
        self.output.output_waits.store(true, Ordering::SeqCst);
        let state = self.output.lock();
        let thrown_away = state.closed.is_some() || state.port != self.port;
        let room = match self.output.kind {
            _ if thrown_away => usize::MAX,
            // Linux waits with interrupts off until its console has taken what it wrote: somebody who does not read
            // must not stop it for long.
            Kind::Console if !state.connected || state.stalled => usize::MAX,
            Kind::Stream if !state.connected => 0,
            _ => CAPACITY.saturating_sub(state.unsent()),
        };
        drop(state);
        if room > 0 {
            self.output.output_waits.store(false, Ordering::SeqCst);
        }
        room
    }

    fn transmit(&self, bytes: &[u8]) {
        self.output.transmit(self.port, bytes);
    }

    fn receiver_ready(&self) {
        self.output.receiver_ready();
    }

    fn client(&self) -> Client {
        let state = self.output.lock();
        let attached = state.port == self.port;
        Client {
            session: state.session,
            present: attached && (state.connected || state.leftover),
        }
    }

    fn size(&self) -> Option<WindowSize> {
        self.output.lock().size
    }
}
