//! What the owner of a network device does to it while it is in use.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::link::{Link, PortState};
use super::pairs::Pairs;
use crate::rate_limit::{RateLimiter, RateLimits};

/// A way to a network device, whatever it does at that time: see [`Net::handle`](super::Net::handle). It outlives the
/// device.
#[derive(Clone)]
pub struct NetHandle {
    pub(super) link: Arc<Link>,
    pub(super) pairs: Arc<Pairs>,
    pub(super) rx_limiter: Arc<RateLimiter>,
    pub(super) tx_limiter: Arc<RateLimiter>,
}

impl fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetHandle")
            .field("up", &self.is_link_up())
            .field("port", &self.port())
            .field("pairs", &self.pairs)
            .finish_non_exhaustive()
    }
}

impl NetHandle {
    /// Whether the guest's link is up: wanted up, and the host's interface up as far as is known.
    pub fn is_link_up(&self) -> bool {
        self.link.is_up()
    }

    /// The state of the host's interface as it was last met.
    pub fn port(&self) -> PortState {
        self.link.port()
    }

    /// Plugs the cable in or pulls it. From the return on, nothing goes through a link that is down: packets of both
    /// directions are lost and counted.
    pub fn set_link(&self, up: bool) {
        self.link.plug(up);
        self.pairs.wait_for_turns(0);
    }

    /// Limits the rate of packets by `limits` from now on, those that the guest receives and those that it sends each by
    /// themselves.
    pub fn set_limits(&self, limits: RateLimits) {
        let now = Instant::now();
        self.rx_limiter.set(limits, now);
        self.tx_limiter.set(limits, now);
        self.link.wake();
    }

    /// Asks the driver to tell its neighbours where it is now (virtio 1.2, 5.1.6.5.4), as after a move to another host: at
    /// once if the device runs, else when it does. Tells whether the driver can; one that is not there yet may.
    pub fn announce(&self) -> bool {
        self.link.announce()
    }
}
