//! The queue pairs as others than their workers see them.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which pairs receive, and a lock for each that its worker holds for a turn: whoever changes something waits for the turns
/// that began before.
#[derive(Debug)]
pub(super) struct Pairs {
    in_use: AtomicU16,
    turns: Box<[Mutex<()>]>,
}

impl Pairs {
    /// `count` pairs, of which the first is in use.
    pub(super) fn new(count: u16) -> Self {
        Self {
            in_use: AtomicU16::new(1),
            turns: (0..count).map(|_| Mutex::default()).collect(),
        }
    }

    /// Number of pairs.
    pub(super) fn count(&self) -> u16 {
        self.turns.len() as u16
    }

    /// Number of pairs that receive: the first ones.
    pub(super) fn in_use(&self) -> u16 {
        self.in_use.load(Ordering::Acquire)
    }

    /// Changes the number of pairs that receive, from their next turn on.
    pub(super) fn set_in_use(&self, count: u16) {
        self.in_use.store(count, Ordering::Release);
    }

    /// Begins a turn of pair `index`, as its worker; there is such a pair.
    pub(super) fn turn(&self, index: u16) -> MutexGuard<'_, ()> {
        let turn = &self.turns[usize::from(index)];
        turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until each pair from `first` on has ended the turn that it is in, if it is in one. Workers call this between
    /// their own turns only.
    pub(super) fn wait_for_turns(&self, first: u16) {
        for index in first..self.count() {
            drop(self.turn(index));
        }
    }
}
