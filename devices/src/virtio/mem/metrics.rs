//! Counters of a memory device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a memory device has done since it was made. Read from any thread.
#[derive(Debug, Default)]
pub struct MemMetrics {
    /// Requests that plugged blocks.
    pub plugs: AtomicU64,
    /// Requests that unplugged blocks.
    pub unplugs: AtomicU64,
    /// Requests that unplugged all blocks.
    pub unplug_alls: AtomicU64,
    /// Requests that were told the state of blocks.
    pub states: AtomicU64,
    /// Requests answered with VIRTIO_MEM_RESP_NACK, as they would have plugged more than is requested.
    pub beyond_requested: AtomicU64,
    /// Requests answered with VIRTIO_MEM_RESP_ERROR because they broke a rule.
    pub refused: AtomicU64,
    /// Requests answered with VIRTIO_MEM_RESP_BUSY because the host did not give memory or take it back.
    pub host_errors: AtomicU64,
    /// Chains that were no request: no way through them, no whole request, or no room for the response.
    pub malformed: AtomicU64,
    /// Rings that broke, each of which needs a reset of the device.
    pub broken_rings: AtomicU64,
}

/// Adds one to a counter that nothing is ordered by.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
