//! Counters of a connection to a backend.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened to the connection of a device to its backend. What the backend does on its rings is not seen here.
#[derive(Debug, Default)]
pub struct VhostUserMetrics {
    /// 1 while there is a backend, else 0.
    pub connected: AtomicU64,
    /// Connections that were made.
    pub connections: AtomicU64,
    /// Backends that were lost: they went away, broke the protocol, or took too long to answer.
    pub losses: AtomicU64,
    /// Rings that the backend cannot go on with.
    pub broken_rings: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
