//! What virtio 1.2, section 5.11, fixes.

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

/// Length of a tag in bytes (5.11.4).
pub(super) const TAG_LEN: usize = 36;

/// The queue of requests that go before all others, FUSE_INTERRUPT and FUSE_FORGET (5.11.2).
pub(super) const HIPRIO: u16 = 0;

/// The first queue of other requests.
pub(super) const FIRST_REQUEST: u16 = 1;

/// The device's configuration (5.11.4), without the field that belongs to a feature which is not offered.
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
#[repr(C)]
pub(super) struct Config {
    /// Name of the file system in UTF-8, padded with NUL.
    pub(super) tag: [u8; TAG_LEN],
    /// Number of queues without the first.
    pub(super) num_request_queues: U32,
}
