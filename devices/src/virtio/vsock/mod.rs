//! The socket device (virtio 1.2, section 5.10) over Unix sockets of the host.
//!
//! | direction | what happens on the host |
//! | --- | --- |
//! | to the guest | a program connects to the device's socket, and sends `CONNECT PORT` and a newline; once the guest accepted, it gets `OK HOSTPORT` and a newline, and then the stream |
//! | from the guest | a connection to port N of the host, CID 2, goes to whom the [`Connector`] finds for N |
//!
//! Data moves between a socket and the guest's buffers with one `recvmsg` or `sendmsg` for each packet, without a copy
//! between. The host's bytes stay in the socket until the guest has both credit and a buffer for them. What a program on
//! the host does not take in time is kept, up to what the guest was given credit for.
//!
//! One thread works on all connections, which are few enough for a table and take turns for the guest's buffers. It waits
//! for their sockets edge-triggered, in an epoll instance of their own, which outlives a pause.

mod backlog;
mod connection;
mod device;
mod greeting;
mod handler;
mod host;
mod metrics;
mod rx;
mod socket;
mod spec;
mod table;
#[cfg(test)]
mod tests;
mod tx;

pub use device::{Vsock, VsockError};
pub use host::Connector;
pub use metrics::VsockMetrics;
