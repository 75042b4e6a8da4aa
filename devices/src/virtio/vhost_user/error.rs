//! What can be wrong with a backend.

use std::io;
use std::time::Duration;

/// What is wrong with a backend, which is named by its socket.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nobody listens at the socket.
    #[error("cannot connect to the vhost-user backend at {peer}")]
    Connect {
        /// The socket.
        peer: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A thread, a timer or an eventfd cannot be had.
    #[error("cannot watch the vhost-user backend at {peer}")]
    Watch {
        /// The socket.
        peer: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It took too long to answer.
    #[error("the vhost-user backend at {peer} did not {what} within {} s", .timeout.as_secs_f32())]
    Timeout {
        /// The socket.
        peer: String,
        /// What it was asked to do.
        what: &'static str,
        /// How long it had.
        timeout: Duration,
    },
    /// It refused, broke the protocol, or went away.
    #[error("the vhost-user backend at {peer} did not {what}")]
    Protocol {
        /// The socket.
        peer: String,
        /// What it was asked to do.
        what: &'static str,
        /// How it failed.
        #[source]
        source: vhost::Error,
    },
    /// It cannot do what the device needs.
    #[error("the vhost-user backend at {peer} {problem}")]
    Unfit {
        /// The socket.
        peer: String,
        /// What it lacks.
        problem: String,
    },
    /// It was lost, and the driver has not reset the device since.
    #[error("the vhost-user backend at {peer} was lost, and with it what it knew of the driver")]
    Lost {
        /// The socket.
        peer: String,
    },
    /// Other processes cannot map the guest's memory.
    #[error("the guest memory at {address:#x} is not shared, as a vhost-user backend needs it")]
    NotShared {
        /// First guest physical address of the region.
        address: u64,
    },
    /// A ring that lies across two regions of memory, which are not next to each other in the backend.
    #[error("a ring of queue {queue} is not in one region of guest memory")]
    Ring {
        /// The queue.
        queue: u16,
    },
}
