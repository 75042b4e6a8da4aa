//! The network device (virtio 1.2, section 5.1) over a tap.
//!
//! Packets move between the tap and the guest's buffers with one `readv` or `writev` each, the virtio header included:
//! the kernel fills the header of a received packet, and checks the one of a sent packet. This module parses neither.
//!
//! A queue pair is worked on by one thread over a queue of its own of the tap. It waits for the driver's notifications and,
//! edge-triggered, for the tap; where the guest has no buffers, the host no room or the rate limit no turn, it sleeps until
//! that changes. The thread of the first pair works on the control queue as well.

mod backend;
mod command;
mod control;
mod device;
mod filter;
mod handle;
mod handler;
mod link;
mod metrics;
mod options;
mod pairs;
mod posted;
mod rtnetlink;
mod rx;
mod spec;
mod tap;
#[cfg(test)]
mod tests;
mod tx;
mod used;

pub use backend::{Backend, Offloads};
pub use device::Net;
pub use handle::NetHandle;
pub use link::{LinkObserver, PortState};
pub use metrics::NetMetrics;
pub use options::{MAX_PAIRS, NetError, NetOptions};
pub use tap::{Tap, TapError};
