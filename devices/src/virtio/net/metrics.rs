//! What a network device counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one device since it was made. Received and sent are as the guest sees it. Each packet that did not get
/// through is in exactly one counter. What an interface of the host had no room for, while the guest offered no buffers, is
/// in the `tx_dropped` of that interface.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Packets given to the guest.
    pub rx_packets: AtomicU64,
    /// Their bytes, without headers.
    pub rx_bytes: AtomicU64,
    /// Packets lost because the buffers there were could not hold them.
    pub rx_too_long: AtomicU64,
    /// Packets that the guest had said it does not want.
    pub rx_filtered: AtomicU64,
    /// Packets lost because the link was set down.
    pub rx_link_down: AtomicU64,
    /// Packets lost because the host could not hand them over.
    pub rx_errors: AtomicU64,
    /// Receive buffers that were no valid chain or too small for a header, returned unused.
    pub rx_malformed: AtomicU64,
    /// Times that receiving had to wait for the guest to offer buffers.
    pub rx_starved: AtomicU64,
    /// Times that receiving stopped for its rate limit.
    pub rx_held_back: AtomicU64,
    /// Packets taken from the guest and given to the host.
    pub tx_packets: AtomicU64,
    /// Their bytes, without headers.
    pub tx_bytes: AtomicU64,
    /// Chains that were not valid, or too short for a header.
    pub tx_malformed: AtomicU64,
    /// Packets longer than any packet may be.
    pub tx_too_long: AtomicU64,
    /// Packets that the host refused, such as for a header that makes no sense.
    pub tx_refused: AtomicU64,
    /// Packets lost because the link was set down, or the interface was down or gone.
    pub tx_link_down: AtomicU64,
    /// Times that sending had to wait for the host.
    pub tx_blocked: AtomicU64,
    /// Times that sending had to wait for its rate limit.
    pub tx_held_back: AtomicU64,
    /// Commands of the control queue that were carried out.
    pub control_commands: AtomicU64,
    /// Commands answered with VIRTIO_NET_ERR.
    pub control_refused: AtomicU64,
    /// Chains of the control queue that were not valid, or had no room for an answer.
    pub control_malformed: AtomicU64,
    /// Times that the link went down.
    pub link_downs: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
