//! What the specification fixes: features, queues, wire structures.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a page as the balloon counts them, whatever pages guest and host have (5.5.6).
pub const PAGE_SIZE: u64 = 1 << 12;

/// Feature bits (5.5.3).
pub(super) const VIRTIO_BALLOON_F_STATS_VQ: u32 = 1;
pub(super) const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
pub(super) const VIRTIO_BALLOON_F_PAGE_POISON: u32 = 4;
pub(super) const VIRTIO_BALLOON_F_PAGE_REPORTING: u32 = 5;

/// Feature bits that are always offered.
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | bit(VIRTIO_BALLOON_F_STATS_VQ);

/// Queues (5.5.2).
pub(super) const INFLATE: u16 = 0;
pub(super) const DEFLATE: u16 = 1;
pub(super) const STATS: u16 = 2;
const REPORTING: u16 = 4;

pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Index of the queue for statistics, if the driver has one.
pub(super) fn statistics_queue(features: u64) -> Option<u16> {
    (features & bit(VIRTIO_BALLOON_F_STATS_VQ) != 0).then_some(STATS)
}

/// Indexes that the queue for reports can have, if the driver has one. The first is the specification's; the second is that
/// of Linux, which counts only the queues that it uses.
pub(super) fn reporting_queues(features: u64) -> Option<[u16; 2]> {
    let third = STATS + u16::from(statistics_queue(features).is_some());
    (features & bit(VIRTIO_BALLOON_F_PAGE_REPORTING) != 0).then_some([REPORTING, third])
}

/// `struct virtio_balloon_config` (5.5.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Config {
    pub(super) num_pages: U32,
    pub(super) actual: U32,
    /// Of VIRTIO_BALLOON_F_FREE_PAGE_HINT, which is not offered.
    pub(super) free_page_hint_cmd_id: U32,
    pub(super) poison_val: U32,
}

/// Number of statistics that are known (5.5.6.3; those from 10 on as Linux 6.12 gives them).
pub const STATISTICS: usize = 16;

/// Bytes of a `struct virtio_balloon_stat`: a tag of 16 bits, and a value of 64.
const STATISTIC_LEN: usize = 10;

/// Most entries that are looked at in one answer.
const MAX_ENTRIES: usize = 64;

/// Most bytes that are looked at in one answer.
pub(super) const MAX_STATISTICS_LEN: usize = MAX_ENTRIES * STATISTIC_LEN;

/// What the driver can tell of its guest. The value is the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Statistic {
    /// Bytes that were swapped in.
    SwapIn,
    /// Bytes that were swapped out.
    SwapOut,
    /// Page faults that needed a disk.
    MajorFaults,
    /// Page faults that did not.
    MinorFaults,
    /// Bytes that nothing uses.
    Free,
    /// Bytes that the guest has.
    Total,
    /// Bytes that programs could get without swapping.
    Available,
    /// Bytes in caches of files.
    Caches,
    /// Huge pages that were allocated.
    HugePageAllocations,
    /// Huge pages that could not be allocated.
    HugePageFailures,
    /// Programs killed for lack of memory.
    OomKills,
    /// Allocations that had to wait for memory.
    AllocationStalls,
    /// Pages looked at in the background to be given up.
    AsyncScans,
    /// Pages looked at by who waited for memory.
    DirectScans,
    /// Pages given up in the background.
    AsyncReclaims,
    /// Pages given up by who waited for memory.
    DirectReclaims,
}

/// What the driver told last, by [`Statistic`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics([Option<u64>; STATISTICS]);

impl Statistics {
    /// One of them, if the driver told it.
    pub fn get(&self, statistic: Statistic) -> Option<u64> {
        self.0[statistic as usize]
    }

    /// Reads an answer. Entries of unknown tags are passed over, and so is what is left of a broken last one.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut all = Self::default();
        for entry in bytes.chunks_exact(STATISTIC_LEN) {
            let [a, b, value @ ..] = entry else { continue };
            let tag = usize::from(u16::from_le_bytes([*a, *b]));
            let value = value.first_chunk().copied().map(u64::from_le_bytes);
            if let Some(place) = all.0.get_mut(tag) {
                *place = value;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queue_for_reports_is_where_the_specification_or_linux_has_it() {
        let reporting = bit(VIRTIO_BALLOON_F_PAGE_REPORTING);
        let stats = bit(VIRTIO_BALLOON_F_STATS_VQ);
        assert_eq!(reporting_queues(reporting), Some([4, 2]));
        assert_eq!(reporting_queues(reporting | stats), Some([4, 3]));
        assert_eq!(reporting_queues(stats), None);
        assert_eq!(statistics_queue(reporting), None);
    }

    #[test]
    fn statistics_are_known_by_their_tags() {
        let mut bytes = Vec::new();
        for (tag, value) in [(5_u16, 7_u64), (4, 3), (99, 1), (15, u64::MAX), (5, 8)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([0; 9]);
        let statistics = Statistics::parse(&bytes);
        assert_eq!(statistics.get(Statistic::Total), Some(8));
        assert_eq!(statistics.get(Statistic::Free), Some(3));
        assert_eq!(statistics.get(Statistic::DirectReclaims), Some(u64::MAX));
        assert_eq!(statistics.get(Statistic::SwapIn), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_as_statistics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Statistics::parse(&bytes);
        }
    }
}
