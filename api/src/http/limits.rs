//! What one client can take of the server.

use std::time::Duration;

/// Largest body. The largest one that makes sense, a machine with a disk or network in each of its PCI slots and a long
/// command line, has some 20 KiB.
pub const MAX_BODY: usize = 1 << 20;
/// Largest head: request line and headers.
pub const MAX_HEAD: usize = 16 << 10;
/// Most headers.
pub const MAX_HEADERS: usize = 64;
/// Most connections at a time. For one more the one that is idle for longest is closed; when none is idle, it is told so
/// (503).
pub const MAX_CONNECTIONS: usize = 64;
/// Most descriptors that come with one request: more than a machine has PCI slots.
pub const MAX_DESCRIPTORS: usize = 64;
/// How long a connection may be idle between two requests, or before the first.
pub const IDLE_TIME: Duration = Duration::from_secs(300);
/// From the first byte of a head to its last.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// From the end of a head to the last byte of the body.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// How long a client may take none of its response.
pub const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long the server goes on reading, and throwing away, what a client sends after it got its last response: a socket
/// closed with something unread would take the response away from it.
pub(super) const LINGER_TIME: Duration = Duration::from_secs(2);
/// How long [`Server::stop`](super::Server::stop) waits for requests in flight and for the clients to take their
/// responses.
pub(super) const STOP_TIME: Duration = Duration::from_secs(5);
/// How often a stream of events says that it is still there.
pub(super) const KEEP_ALIVE_TIME: Duration = Duration::from_secs(5);
/// How long the server waits when the process has no descriptor left for a new connection.
pub(super) const ACCEPT_RETRY_TIME: Duration = Duration::from_millis(100);
