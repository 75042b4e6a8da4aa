//! What a network device is made with.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::backend::Offloads;
use super::filter::{Mac, is_group};
use super::link::LinkObserver;
use crate::rate_limit::RateLimiter;

/// Most queue pairs: as many as Linux lets an interface have queues.
pub const MAX_PAIRS: usize = 256;

/// What a network device cannot be made with.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no queue pair, or there are too many.
    #[error("{0} ports, expected one for each of 1 to {MAX_PAIRS} queue pairs")]
    Pairs(usize),
    /// The queue size is not one that a split ring can have.
    #[error("queue size is {0}, expected a power of two from 2 to 32768")]
    QueueSize(u16),
    /// The MTU is below what a device may report.
    #[error("mtu is {0}, expected at least 68")]
    Mtu(u16),
    /// The address is a group's or nobody's.
    #[error("mac address is {}, expected that of one station: lowest bit of the first byte 0, not all zero", format_mac(.0))]
    Mac([u8; 6]),
    /// The host does not let the queues rest that the driver does not use yet.
    #[error("cannot set aside the queues of the network interface that are not in use yet")]
    Queues(#[source] io::Error),
}

/// What a network device is made with, besides its ports.
#[derive(Clone)]
pub struct NetOptions {
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// The MTU that the driver is told, in bytes, if any.
    pub mtu: Option<u16>,
    /// The largest size of each queue, in elements.
    pub queue_size: u16,
    /// What to leave to the guest and take from it, as far as the port can.
    pub offloads: Offloads,
    /// What limits the packets that the guest receives, all queues together. Those that are held back wait in the host's
    /// interface.
    pub rx_limiter: Arc<RateLimiter>,
    /// What limits the packets that the guest sends, all queues together. Those that are held back wait in the ring.
    pub tx_limiter: Arc<RateLimiter>,
    /// Whether the link is up from the start, as far as the host's interface is.
    pub link: bool,
    /// Told of changes of the host's interface.
    pub observer: Option<Arc<dyn LinkObserver>>,
}

impl fmt::Debug for NetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetOptions")
            .field("mac", &format_mac(&self.mac))
            .field("mtu", &self.mtu)
            .field("queue_size", &self.queue_size)
            .field("offloads", &self.offloads)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

/// Whether the address is that of one station.
pub(super) fn is_station(mac: Mac) -> bool {
    !is_group(mac) && mac != [0; 6]
}

/// The address as people write it.
pub(super) fn format_mac(mac: &Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
