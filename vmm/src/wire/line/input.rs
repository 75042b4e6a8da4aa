//! Where a line's input goes to.

use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::legacy::SerialInput;
use devices::virtio::console::PortInput;

/// The guest's end of a line.
pub(super) enum Input {
    Serial(SerialInput),
    Port(PortInput),
}

impl Input {
    /// Takes the first of `bytes`, and tells how many.
    pub(super) fn receive(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Serial(input) => input.receive(bytes),
            Self::Port(input) => input.receive(bytes),
        }
    }

    /// There is room for output, another client, or another size. A serial port knows of none.
    pub(super) fn changed(&self) {
        match self {
            Self::Serial(_) => {}
            Self::Port(input) => input.wake(),
        }
    }
}

/// Who gets the input, and whether now. Locked for as long as input is handed over, so that after a pause none is.
#[derive(Default)]
pub(super) struct Receiver {
    pub(super) input: Option<Input>,
    pub(super) paused: bool,
}

impl Receiver {
    /// Whether somebody in the guest takes the input, sooner or later.
    pub(super) fn is_open(&self) -> bool {
        match &self.input {
            Some(Input::Serial(_)) => true,
            Some(Input::Port(input)) => input.is_open(),
            None => false,
        }
    }
}

pub(super) fn lock(receiver: &Mutex<Receiver>) -> MutexGuard<'_, Receiver> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner)
}
