//! Counters of a balloon.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a balloon has done since it was made. Read from any thread.
#[derive(Debug, Default)]
pub struct BalloonMetrics {
    /// Bytes of inflated pages that were given back to the host.
    pub inflated_bytes: AtomicU64,
    /// Bytes of pages that the driver took back.
    pub deflated_bytes: AtomicU64,
    /// Bytes of reported pages that were given back to the host.
    pub reported_bytes: AtomicU64,
    /// Bytes of reported pages that were left alone, as the guest expects other contents than zeros.
    pub poisoned_bytes: AtomicU64,
    /// Calls to the host that gave memory back.
    pub discards: AtomicU64,
    /// Answers of the driver with statistics.
    pub statistics: AtomicU64,
    /// Bytes that are no memory of the guest, or are not whole pages of the host.
    pub refused_bytes: AtomicU64,
    /// Calls to the host that failed.
    pub host_errors: AtomicU64,
    /// Chains that were no request: no way through them, of a wrong direction, or too long.
    pub malformed: AtomicU64,
    /// Rings that broke, each of which needs a reset of the device.
    pub broken_rings: AtomicU64,
}

/// Adds to a counter that nothing is ordered by.
pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
