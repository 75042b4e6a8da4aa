//! The rate limits of a device and its queues.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::timerfd::TimerFd;

use super::gate::Gate;
use crate::rate_limit::{RateLimiter, RateLimits};

/// A limiter, which other queues may share, and the timer that wakes the worker of one queue for its next turn.
pub(super) struct Limit {
    limiter: Arc<RateLimiter>,
    timer: TimerFd,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}

impl Limit {
    /// # Errors
    ///
    /// There is no timer to be had.
    pub(super) fn new(limiter: Arc<RateLimiter>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { limiter, timer })
    }

    /// Readable when there may be a turn, after [`Limit::holds_back`].
    pub(super) fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Makes the timer wait to be set again. It is never read, so that nobody waits for it there.
    pub(super) fn clear(&mut self) {
        // A timer that exists can be set to any time.
        let _ = self.timer.clear();
    }

    /// Whether anything is limited.
    pub(super) fn is_limited(&self) -> bool {
        self.limiter.is_limited()
    }

    /// Whether there is no turn at `now`; the timer is set for when there is one.
    pub(super) fn holds_back(&mut self, now: Instant) -> bool {
        let Some(wait) = self.limiter.wait(now) else {
            return false;
        };
        // As for clearing.
        let _ = self.timer.reset(wait, None);
        true
    }

    /// Tells that an operation was begun at `now`, which moves so many bytes.
    pub(super) fn spend(&self, bytes: u64, now: Instant) {
        self.limiter.spend(1, bytes, now);
    }
}

/// The limits of a block device, wherever it goes: see [`Block::limits`](super::Block::limits).
#[derive(Clone, Debug)]
pub struct BlockLimits {
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) gate: Arc<Gate>,
}

impl BlockLimits {
    /// Limits the rate of requests by `limits` from now on, also that of other devices with the same limiter.
    pub fn set(&self, limits: RateLimits) {
        self.limiter.set(limits, Instant::now());
        self.look_again();
    }

    /// Has queues that wait for their turn look whether there is one: the limiter that they share with other devices has
    /// changed.
    pub fn look_again(&self) {
        self.gate.wake();
    }
}
