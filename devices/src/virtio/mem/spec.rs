//! What the specification fixes: wire structures, and a request as the device understands it.

use std::ops::Range;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of a block in bytes where nothing asks for larger ones: a transparent huge page of x86. With smaller blocks, an
/// unplug would split the host's huge pages, and a huge page could hold on to memory of an unplugged block; larger ones
/// only make it harder for the driver to find a block that it can give up.
pub const DEFAULT_BLOCK_SIZE: u64 = 2 << 20;

/// Smallest block in bytes.
pub const MIN_BLOCK_SIZE: u64 = 1 << 20;

/// The most blocks of a region: 32 TiB of the default size, with 2 MiB to keep track of them.
pub const MAX_BLOCKS: u64 = 1 << 24;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (5.15.3).
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// Feature bits offered.
///
/// A driver that accepts VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE leaves unplugged memory alone. It is offered because even a
/// read of it can cost host memory: where guest memory is a memfd or explicit huge pages, a read takes a page. It is not
/// insisted on: the whole region stays mapped, so a driver without it (Linux before 5.17) reads zeros or old data, as
/// 5.15.6 demands.
///
/// VIRTIO_MEM_F_ACPI_PXM is not offered: there are no NUMA nodes that a region could belong to.
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;

/// `struct virtio_mem_config` (5.15.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Config {
    pub(super) block_size: U64,
    pub(super) node_id: U16,
    pub(super) padding: [u8; 6],
    pub(super) addr: U64,
    pub(super) region_size: U64,
    pub(super) usable_region_size: U64,
    pub(super) plugged_size: U64,
    pub(super) requested_size: U64,
}

/// `struct virtio_mem_req` (5.15.6). All requests that have data have the same.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawRequest {
    pub(super) kind: U16,
    pub(super) padding: [u8; 6],
    pub(super) addr: U64,
    pub(super) nb_blocks: U16,
    pub(super) data_padding: [u8; 6],
}

/// `struct virtio_mem_resp` (5.15.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RawResponse {
    kind: U16,
    padding: [u8; 6],
    state: U16,
}

/// Bytes of a response.
pub(super) const RESPONSE_LEN: u32 = size_of::<RawResponse>() as u32;

/// The state of some blocks, VIRTIO_MEM_STATE_* (5.15.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// What a request is answered with, VIRTIO_MEM_RESP_* (5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// Done.
    Ack,
    /// The answer to a STATE request.
    State(BlockState),
    /// More would be plugged than is requested.
    Nack,
    /// Not now: the host did not do its part.
    Busy,
    /// The request breaks a rule.
    Error,
}

impl Response {
    pub(super) fn to_wire(self) -> RawResponse {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::State(state) => (0, state as u16),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        RawResponse {
            kind: kind.into(),
            padding: [0; 6],
            state: state.into(),
        }
    }
}

/// The region in guest physical memory. Address and length are multiples of the block size, and the end is no more than
/// 2^64. All of it is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Guest physical address.
    pub(super) address: u64,
    /// Length in bytes.
    pub(super) region_size: u64,
    /// Bytes in a block, a power of two.
    pub(super) block_size: u64,
}

impl Geometry {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        // At most MAX_BLOCKS.
        (self.region_size / self.block_size) as usize
    }

    /// Offset in the region and length of `blocks`, in bytes.
    pub(super) fn bytes(&self, blocks: &Range<usize>) -> (u64, u64) {
        let offset = blocks.start as u64 * self.block_size;
        (offset, blocks.len() as u64 * self.block_size)
    }

    /// The `count` blocks from guest physical address `addr` on, if they are in the region and at least one.
    fn range(&self, addr: u64, count: u16) -> Option<Range<usize>> {
        let offset = addr.checked_sub(self.address)?;
        let first = offset / self.block_size;
        let end = first.checked_add(count.into())?;
        let fits = offset.is_multiple_of(self.block_size)
            && count > 0
            && end <= self.region_size / self.block_size;
        fits.then_some(first as usize..end as usize)
    }
}

/// What a request asks for. The blocks are in the region, and at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Range<usize>),
    Unplug(Range<usize>),
    UnplugAll,
    State(Range<usize>),
}

impl Request {
    /// Understands `raw`. Nothing comes of a type that does not exist or blocks that are not in the region.
    pub(super) fn parse(raw: &RawRequest, geometry: &Geometry) -> Option<Self> {
        let range = || geometry.range(raw.addr.get(), raw.nb_blocks.get());
        match raw.kind.get() {
            0 => range().map(Self::Plug),
            1 => range().map(Self::Unplug),
            2 => Some(Self::UnplugAll),
            3 => range().map(Self::State),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        address: 4 << 30,
        region_size: 16 << 20,
        block_size: 2 << 20,
    };

    fn raw(kind: u16, addr: u64, nb_blocks: u16) -> RawRequest {
        RawRequest {
            kind: kind.into(),
            padding: [0xff; 6],
            addr: addr.into(),
            nb_blocks: nb_blocks.into(),
            data_padding: [0xff; 6],
        }
    }

    #[test]
    fn wire_structures_have_the_specified_sizes() {
        assert_eq!(size_of::<Config>(), 56);
        assert_eq!(size_of::<RawRequest>(), 24);
        assert_eq!(size_of::<RawResponse>(), 10);
    }

    #[test]
    fn last_block_is_in_the_region_and_the_next_is_not() {
        let parse = |addr, count| Request::parse(&raw(0, addr, count), &GEOMETRY);
        let last = (4 << 30) + (14 << 20);
        assert_eq!(parse(last, 1), Some(Request::Plug(7..8)));
        assert_eq!(parse(4 << 30, 8), Some(Request::Plug(0..8)));
        assert_eq!(parse(last, 2), None);
        assert_eq!(parse(last + (2 << 20), 1), None);
        assert_eq!(parse((4 << 30) - (2 << 20), 1), None);
        assert_eq!(parse((4 << 30) - (2 << 20), 2), None);
    }

    #[test]
    fn odd_ranges_are_refused() {
        let parse = |addr, count| Request::parse(&raw(3, addr, count), &GEOMETRY);
        for (addr, count) in [
            (4 << 30, 0),
            ((4 << 30) + 1, 1),
            ((4 << 30) + (1 << 20), 1),
            (4 << 30, u16::MAX),
            (0, 1),
            (u64::MAX, 1),
            (u64::MAX - (2 << 20) + 1, u16::MAX),
        ] {
            assert_eq!(parse(addr, count), None, "{addr:#x} {count}");
        }
    }

    #[test]
    fn region_may_end_where_addresses_do() {
        let geometry = Geometry {
            address: u64::MAX - (4 << 20) + 1,
            region_size: 4 << 20,
            block_size: 2 << 20,
        };
        let last = u64::MAX - (2 << 20) + 1;
        let parse = |count| Request::parse(&raw(1, last, count), &geometry);
        assert_eq!(parse(1), Some(Request::Unplug(1..2)));
        assert_eq!(parse(2), None);
    }

    proptest! {
        #[test]
        fn accepted_blocks_are_in_the_region(kind in 0..5_u16, addr: u64, near in 0..40_u64, count: u16) {
            for addr in [addr, (4 << 30) - (2 << 20) + near * (1 << 20)] {
                for count in [count, count % 16] {
                    match Request::parse(&raw(kind, addr, count), &GEOMETRY) {
                        Some(Request::Plug(blocks) | Request::Unplug(blocks) | Request::State(blocks)) => {
                            prop_assert_eq!(blocks.len(), usize::from(count));
                            prop_assert!(!blocks.is_empty() && blocks.end <= GEOMETRY.blocks());
                            let (offset, len) = GEOMETRY.bytes(&blocks);
                            prop_assert_eq!(GEOMETRY.address + offset, addr);
                            prop_assert!(offset + len <= GEOMETRY.region_size);
                        }
                        Some(Request::UnplugAll) => prop_assert_eq!(kind, 2),
                        None => {}
                    }
                }
            }
        }
    }
}
