//! The frontend's part of vhost-user: devices whose rings are served by another process, the backend (the vhost-user
//! protocol of QEMU's documentation).
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Peer`] | the way to the process, and who is told when it is lost |
//! | [`Backend`] | the connection, shared by the devices of one machine after the other, and by whoever changes memory |
//! | [`Rings`] | what a device does with its queues: a device of this kind is its configuration space and these |
//!
//! The data path is not here. The guest's notification wakes the backend by an ioeventfd, the backend moves the data
//! through memory that both have mapped, and its eventfd is the MSI-X vector's own, which the interrupt controller
//! listens to while the vector is not masked.
//!
//! The backend is trusted with the guest's memory and with nothing else. Whatever is asked of it has a time to be
//! answered in; one that does not answer in time, or not by the rules, is lost. A device whose backend is lost needs a
//! reset, after which the connection is made again.

mod backend;
mod error;
mod link;
mod metrics;
mod rings;
mod table;
#[cfg(test)]
pub(super) mod tests;
mod watch;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;

pub use backend::{Backend, Needs, Timeouts};
pub use error::BackendError;
pub use metrics::VhostUserMetrics;
pub use rings::Rings;

/// The way to a backend. It is shown as errors name it, as by the path of its socket.
pub trait Peer: fmt::Display + Send + Sync {
    /// Connects to it. Neither waits for it nor takes long: called on a vCPU's exit, too.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    fn connect(&self) -> io::Result<UnixStream>;

    /// The backend is lost, for `reason`. Called once for each connection, on any thread; does not block.
    fn lost(&self, reason: &str);

    /// The backend is there again after it was lost. Does not block.
    fn found(&self);
}
