//! Counters of a console device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a console device has done since it was made. Read from any thread.
#[derive(Debug, Default)]
pub struct ConsoleMetrics {
    /// Bytes given to the guest.
    pub rx_bytes: AtomicU64,
    /// Bytes taken from the guest.
    pub tx_bytes: AtomicU64,
    /// How often the guest's bytes had to wait for the other end.
    pub tx_waits: AtomicU64,
    /// Messages of the driver about ports.
    pub control_messages: AtomicU64,
    /// Messages that mean nothing: an event or a port that there is not.
    pub refused_messages: AtomicU64,
    /// Chains that cannot be used: no way through them, no room, or too short for a message.
    pub malformed: AtomicU64,
    /// Rings that broke, each of which needs a reset of the device.
    pub broken_rings: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
