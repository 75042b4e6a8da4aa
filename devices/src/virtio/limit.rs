//! The rate limit of a queue.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::timerfd::TimerFd;

use crate::rate_limit::RateLimiter;

/// A limiter, which other queues may share, and the timer that wakes the worker of one queue for its next turn.
pub(in crate::virtio) struct Limit {
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
    pub(in crate::virtio) fn new(limiter: Arc<RateLimiter>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { limiter, timer })
    }

    /// Readable when there may be a turn, after [`Limit::holds_back`].
    pub(in crate::virtio) fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Makes the timer wait to be set again. It is never read, so that nobody waits for it there.
    pub(in crate::virtio) fn clear(&mut self) {
        // A timer that exists can be set to any time.
        let _ = self.timer.clear();
    }

    /// Whether anything is limited.
    pub(in crate::virtio) fn is_limited(&self) -> bool {
        self.limiter.is_limited()
    }

    /// Whether there is a turn at `now`.
    pub(in crate::virtio) fn has_turn(&self, now: Instant) -> bool {
        self.limiter.wait(now).is_none()
    }

    /// Whether there is no turn at `now`; the timer is set for when there is one.
    pub(in crate::virtio) fn holds_back(&mut self, now: Instant) -> bool {
        let Some(wait) = self.limiter.wait(now) else {
            return false;
        };
        // As for clearing.
        let _ = self.timer.reset(wait, None);
        true
    }

    /// Tells that an operation was begun at `now`, which moves so many bytes.
    pub(in crate::virtio) fn spend(&self, bytes: u64, now: Instant) {
        self.limiter.spend(1, bytes, now);
    }
}
