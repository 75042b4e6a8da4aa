//! The driver's side of interrupts.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::virtio::Interrupt;

#[derive(Clone, Debug, Default)]
struct Counts {
    queues: Vec<u64>,
    config: u64,
    needs_reset: u64,
}

/// Counts the interrupts of a device under test.
#[derive(Debug, Default)]
pub struct CountingInterrupt {
    counts: Mutex<Counts>,
    changed: Condvar,
}

impl CountingInterrupt {
    /// Interrupts so far for queue `index`.
    pub fn queue_count(&self, index: u16) -> u64 {
        self.counts()
            .queues
            .get(usize::from(index))
            .copied()
            .unwrap_or(0)
    }

    /// Configuration changes so far.
    pub fn config_count(&self) -> u64 {
        self.counts().config
    }

    /// How often the device gave up.
    pub fn needs_reset_count(&self) -> u64 {
        self.counts().needs_reset
    }

    /// Waits until queue `index` had at least `count` interrupts, and tells whether it had them within `timeout`.
    pub fn wait_queue(&self, index: u16, count: u64, timeout: Duration) -> bool {
        self.wait(timeout, |counts| {
            counts
                .queues
                .get(usize::from(index))
                .is_some_and(|have| *have >= count)
        })
    }

    /// Waits until the device gave up, and tells whether it did within `timeout`.
    pub fn wait_needs_reset(&self, timeout: Duration) -> bool {
        self.wait(timeout, |counts| counts.needs_reset > 0)
    }

    fn counts(&self) -> Counts {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&Counts) -> bool) -> bool {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (counts, _) = self
            .changed
            .wait_timeout_while(counts, timeout, |counts| !done(counts))
            .unwrap_or_else(PoisonError::into_inner);
        done(&counts)
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Interrupt for CountingInterrupt {
    fn queue(&self, index: u16) {
        self.change(|counts| {
            let index = usize::from(index);
            if counts.queues.len() <= index {
                counts.queues.resize(index + 1, 0);
            }
            counts.queues[index] += 1;
        });
    }

    fn config_changed(&self) {
        self.change(|counts| counts.config += 1);
    }

    fn needs_reset(&self) {
        self.change(|counts| counts.needs_reset += 1);
    }
}
