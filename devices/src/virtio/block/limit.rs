//! The rate limits of a block device.

use std::sync::Arc;
use std::time::Instant;

use super::gate::Gate;
use crate::rate_limit::{RateLimiter, RateLimits};

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
