//! A port between the device's worker and its other end on the host.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::chain::{Buffers, ChainError};

/// Bytes for the guest that a port holds beyond what is in the guest's own buffers.
pub const INPUT_CAPACITY: usize = 4096;

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Who is at the other end of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Counts those that came: two that follow each other quickly are told apart by it.
    pub session: u64,
    /// Somebody is there, or has left bytes that are still to be delivered.
    pub present: bool,
}

/// What a port is connected to on the host. No call may take time: the same thread works on all ports of a device.
pub trait PortLine: Send + Sync {
    /// How many of the guest's bytes can be taken now. After it was 0, [`PortInput::wake`] tells when to ask again.
    fn room(&self) -> usize;

    /// Takes bytes that the guest sent, of which there are at most [`PortLine::room`].
    fn transmit(&self, bytes: &[u8]);

    /// The port takes bytes again after [`PortInput::receive`] took less than it was given, or the guest has opened or
    /// closed it. It can also come without a reason.
    fn receiver_ready(&self);

    /// Who is there now; [`PortInput::wake`] tells of a change.
    fn client(&self) -> Client;

    /// The size of the terminal, if it is one; [`PortInput::wake`] tells of a change.
    fn size(&self) -> Option<WindowSize>;
}

/// What the worker and the other end share of a port.
#[derive(Debug)]
pub(super) struct Inlet {
    state: Mutex<State>,
    /// Wakes the device's worker.
    wake: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// The guest has the port open.
    open: bool,
}

impl Inlet {
    pub(super) fn new(wake: Arc<EventFd>) -> Self {
        let state = State {
            bytes: VecDeque::with_capacity(INPUT_CAPACITY),
            open: false,
        };
        Self {
            state: Mutex::new(state),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full counter is a wake-up call too.
        let _ = self.wake.write(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// The guest opens or closes the port. What waits for a program that has closed it is not for the next one.
    pub(super) fn set_open(&self, open: bool) {
        let mut state = self.lock();
        state.open = open;
        if !open {
            state.bytes.clear();
        }
    }

    /// Moves as many bytes as fit to the beginning of `buffers`, and tells how many.
    ///
    /// # Errors
    ///
    /// There is no room at all.
    pub(super) fn fill(&self, buffers: &mut Buffers) -> Result<usize, ChainError> {
        let room = buffers.writable_len();
        if room == 0 {
            return Err(ChainError::ShortWritable { have: 0, need: 1 });
        }
        let mut state = self.lock();
        let count = usize::try_from(room)
            .unwrap_or(usize::MAX)
            .min(state.bytes.len());
        let (first, second) = state.bytes.as_slices();
        let first = &first[..first.len().min(count)];
        buffers.write_front(first)?;
        buffers.write_front(&second[..count - first.len()])?;
        state.bytes.drain(..count);
        Ok(count)
    }

    /// What is in the buffer, and whether the guest has the port open.
    pub(super) fn save(&self) -> (Vec<u8>, bool) {
        let state = self.lock();
        (state.bytes.iter().copied().collect(), state.open)
    }

    /// The mirror of [`Inlet::save`]; there are at most [`INPUT_CAPACITY`] bytes.
    pub(super) fn restore(&self, bytes: &[u8], open: bool) {
        let mut state = self.lock();
        state.bytes.clear();
        state.bytes.extend(bytes);
        state.open = open;
    }
}

/// The receiving end of a port, for whoever has bytes for the guest. It does not keep the device alive.
#[derive(Clone, Debug)]
pub struct PortInput {
    inlet: Weak<Inlet>,
}

impl PortInput {
    pub(super) fn new(inlet: &Arc<Inlet>) -> Self {
        Self {
            inlet: Arc::downgrade(inlet),
        }
    }

    /// Takes the first of `bytes`, and tells how many. It takes none while the port is full, while the guest has not
    /// opened it, or when the device is gone; [`PortLine::receiver_ready`] tells when to try again.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let Some(inlet) = self.inlet.upgrade() else {
            return 0;
        };
        let mut state = inlet.lock();
        if !state.open {
            return 0;
        }
        let count = bytes.len().min(INPUT_CAPACITY - state.bytes.len());
        let was_empty = state.bytes.is_empty();
        state.bytes.extend(&bytes[..count]);
        drop(state);
        if was_empty && count > 0 {
            inlet.wake();
        }
        count
    }

    /// Whether the guest has the port open.
    pub fn is_open(&self) -> bool {
        self.inlet.upgrade().is_some_and(|inlet| inlet.is_open())
    }

    /// Tells the device that there is room again, or that the client or the terminal's size has changed.
    pub fn wake(&self) {
        if let Some(inlet) = self.inlet.upgrade() {
            inlet.wake();
        }
    }
}
