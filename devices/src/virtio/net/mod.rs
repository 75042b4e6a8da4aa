//! The network device (virtio 1.2, section 5.1) over a tap.
//!
//! Packets move between the tap and the guest's buffers with one `readv` or `writev` each, the virtio header included:
//! the kernel fills the header of a received packet, and checks the one of a sent packet. This module parses neither.
//!
//! A queue pair is worked on by one thread. It waits for the driver's notifications and, edge-triggered, for the tap; where
//! the guest has no buffers or the host no room, it sleeps until that changes.

mod backend;
mod device;
mod handler;
mod link;
mod metrics;
mod posted;
mod rx;
mod spec;
mod tap;
#[cfg(test)]
mod tests;
mod tx;
mod used;

pub use backend::{Backend, Offloads};
pub use device::{Net, NetError, NetOptions};
pub use metrics::NetMetrics;
pub use tap::{Tap, TapError};
