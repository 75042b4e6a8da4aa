//! Addresses for BARs.

use std::ops::Range;

use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::probe::ProbedBar;

/// The address ranges in which BARs can be decoded, as the firmware tables tell the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Guest physical addresses below 4 GiB.
    pub low: Range<u64>,
    /// Guest physical addresses above 4 GiB.
    pub high: Range<u64>,
}

impl Windows {
    /// Whether `len` bytes at `address` lie wholly in one of the windows.
    pub fn contain(&self, address: u64, len: u64) -> bool {
        let Some(end) = address.checked_add(len) else {
            return false;
        };
        [&self.low, &self.high]
            .iter()
            .any(|window| window.start <= address && end <= window.end)
    }
}

/// Hands out addresses from the two windows.
pub(super) struct BarAllocator {
    low: Option<AddressAllocator>,
    high: Option<AddressAllocator>,
}

/// An allocated range, and the window it is from.
#[derive(Debug)]
pub(super) struct Allocation {
    range: RangeInclusive,
    high: bool,
}

impl Allocation {
    pub(super) fn address(&self) -> u64 {
        self.range.start()
    }
}

impl BarAllocator {
    pub(super) fn new(windows: &Windows) -> Self {
        // An empty window has no addresses to give.
        let allocator = |range: &Range<u64>| {
            AddressAllocator::new(range.start, range.end.checked_sub(range.start)?).ok()
        };
        Self {
            low: allocator(&windows.low),
            high: allocator(&windows.high),
        }
    }

    /// A naturally aligned place for `bar`: prefetchable ones above 4 GiB, others below; a 64-bit BAR goes to the other
    /// window if its own is full.
    pub(super) fn allocate(&mut self, bar: &ProbedBar) -> Option<Allocation> {
        let order: &[bool] = match (bar.is_64, bar.prefetchable) {
            (false, _) => &[false],
            (true, false) => &[false, true],
            (true, true) => &[true, false],
        };
        // The allocator counts in pages at least, so that two BARs never share one.
        let len = bar.len.max(0x1000);
        order.iter().find_map(|&high| {
            let range = self
                .window(high)?
                .allocate(len, len, AllocPolicy::FirstMatch)
                .ok()?;
            Some(Allocation { range, high })
        })
    }

    pub(super) fn free(&mut self, allocation: &Allocation) {
        if let Some(window) = self.window(allocation.high) {
            // Fails only for a range that was not allocated.
            let _ = window.free(&allocation.range);
        }
    }

    fn window(&mut self, high: bool) -> Option<&mut AddressAllocator> {
        if high {
            self.high.as_mut()
        } else {
            self.low.as_mut()
        }
    }
}
