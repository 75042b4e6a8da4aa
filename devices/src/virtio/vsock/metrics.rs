//! What a vsock device counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one device since it was made. Received and sent are as the guest sees it.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// Connections that a host's program opened, and the guest accepted.
    pub host_connections: AtomicU64,
    /// Connections that the guest opened, and a host's program took.
    pub guest_connections: AtomicU64,
    /// Connections that were refused or given up before they were there, either way.
    pub refused_connections: AtomicU64,
    /// Connections that the guest cut off.
    pub guest_resets: AtomicU64,
    /// Connections that were reset since the host's side failed, or the guest took too long to open or to close them.
    pub host_resets: AtomicU64,
    /// Connections that exist now, those being opened or closed included.
    pub connections: AtomicU64,
    /// Packets given to the guest.
    pub rx_packets: AtomicU64,
    /// Bytes of payload in them.
    pub rx_bytes: AtomicU64,
    /// Receive buffers that were no valid chain or too small for a packet, returned unused.
    pub rx_malformed: AtomicU64,
    /// Times that a packet had to wait for the guest to offer buffers.
    pub rx_starved: AtomicU64,
    /// Packets taken from the guest.
    pub tx_packets: AtomicU64,
    /// Bytes of payload in them.
    pub tx_bytes: AtomicU64,
    /// Chains that were not valid, too short for what their header says, or not from the guest's address.
    pub tx_malformed: AtomicU64,
    /// Packets for no connection there is, answered by a reset.
    pub tx_unknown: AtomicU64,
    /// Packets that a connection must not get in its state, or beyond its credit; the connection was reset.
    pub tx_violations: AtomicU64,
    /// Times that packets of the guest had to wait because it took no answers.
    pub tx_blocked: AtomicU64,
    /// Rings that were broken.
    pub broken_rings: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
