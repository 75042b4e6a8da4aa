//! Counters of a block device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a block device has done since it was made, all queues together. Read from any thread.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Transfers and flushes that were begun and are not answered yet, now.
    pub in_flight: AtomicU64,
    /// Reads that succeeded.
    pub reads: AtomicU64,
    /// Bytes that those reads moved.
    pub read_bytes: AtomicU64,
    /// Time that those reads took, in nanoseconds, each from being taken from the ring to the end of its transfer. Requests
    /// on their way at the same time count each for itself.
    pub read_nanoseconds: AtomicU64,
    /// Writes that succeeded.
    pub writes: AtomicU64,
    /// Bytes that those writes moved.
    pub write_bytes: AtomicU64,
    /// Time that those writes took, as for reads; with the flush that follows for a driver that does not flush.
    pub write_nanoseconds: AtomicU64,
    /// Flushes that succeeded.
    pub flushes: AtomicU64,
    /// Time that those flushes took, as for reads.
    pub flush_nanoseconds: AtomicU64,
    /// Discards that succeeded.
    pub discards: AtomicU64,
    /// Bytes that those discards named.
    pub discard_bytes: AtomicU64,
    /// Time that those discards took, as for reads.
    pub discard_nanoseconds: AtomicU64,
    /// Requests to write zeros that succeeded.
    pub zero_writes: AtomicU64,
    /// Bytes that those requests named.
    pub zero_write_bytes: AtomicU64,
    /// Time that those requests took, as for writes.
    pub zero_write_nanoseconds: AtomicU64,
    /// Identifications told.
    pub identifications: AtomicU64,
    /// Requests answered with VIRTIO_BLK_S_UNSUPP.
    pub unsupported: AtomicU64,
    /// Requests answered with VIRTIO_BLK_S_IOERR because they broke a rule or led beyond the disk.
    pub refused: AtomicU64,
    /// Requests answered with VIRTIO_BLK_S_IOERR because the host reported an error, and those that such an error stopped.
    pub host_errors: AtomicU64,
    /// Requests that were not answered when the host reported an error, and wait for the machine to go on. They count among
    /// the errors of the host as well.
    pub stops: AtomicU64,
    /// Chains that were no request: no way through them, no whole header, or no place for the status.
    pub malformed: AtomicU64,
    /// Rings that broke, each of which needs a reset of the device.
    pub broken_rings: AtomicU64,
}

/// Adds to a counter that nothing is ordered by.
pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
