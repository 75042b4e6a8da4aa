//! Counters of an entropy device.

use std::sync::atomic::AtomicU64;

/// What an entropy device has done since it was made. Read from any thread.
#[derive(Debug, Default)]
pub struct RngMetrics {
    /// Requests that were given random bytes.
    pub requests: AtomicU64,
    /// Random bytes given.
    pub bytes: AtomicU64,
    /// How often a request had to wait because the source had nothing.
    pub waits: AtomicU64,
    /// Failures of the source, each of which needs a reset of the device.
    pub source_errors: AtomicU64,
    /// Chains that were no request: no way through them, or nothing to write.
    pub malformed: AtomicU64,
    /// Rings that broke, each of which needs a reset of the device.
    pub broken_rings: AtomicU64,
}
