//! Which pages are the guest's memory, and how they go back to the host.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::metrics::{BalloonMetrics, add};
use super::spec::PAGE_SIZE;
use crate::memory::{Ram, discard};
use crate::virtio::mem::MemHandle;

/// Most pages that one request of the driver can name. Linux names 256 at most, other systems 1024.
pub(super) const MAX_PAGES: usize = 4096;

/// Gives guest memory back, as far as it is that.
#[derive(Debug)]
pub(super) struct Pages {
    /// Bytes of the host's pages behind the memory.
    page_size: u64,
    /// The device to which a region of the memory belongs, of which only plugged blocks are memory.
    mem: Option<MemHandle>,
    metrics: Arc<BalloonMetrics>,
}

impl Pages {
    pub(super) fn new(
        page_size: u64,
        mem: Option<MemHandle>,
        metrics: Arc<BalloonMetrics>,
    ) -> Self {
        Self {
            page_size,
            mem,
            metrics,
        }
    }

    /// Gives the pages of these numbers back, neighbours by one call, and tells how many bytes that were. Numbers that are
    /// not of guest memory are passed over.
    ///
    /// # Errors
    ///
    /// What the host refused first; the rest was tried all the same.
    pub(super) fn give_back_numbers(
        &self,
        memory: &Ram,
        numbers: &mut [u32],
    ) -> (u64, io::Result<()>) {
        numbers.sort_unstable();
        let mut result = Ok(());
        let mut given = 0;
        let mut numbers = numbers.iter().map(|number| u64::from(*number)).peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next <= last + 1) {
                last = next;
            }
            let (bytes, outcome) =
                self.give_back(memory, first * PAGE_SIZE..(last + 1) * PAGE_SIZE);
            given += bytes;
            result = result.and(outcome);
        }
        (given, result)
    }

    /// Gives the whole pages in `addresses` back, and tells how many bytes that were. What is not guest memory is passed
    /// over.
    ///
    /// # Errors
    ///
    /// What the host refused first; the rest was tried all the same.
    pub(super) fn give_back(&self, memory: &Ram, addresses: Range<u64>) -> (u64, io::Result<()>) {
        let mut result = Ok(());
        let mut given = 0;
        let mut at = addresses.start;
        while at < addresses.end {
            let Some(region) = memory.find_region(GuestAddress(at)) else {
                let starts = memory.iter().map(|region| region.start_addr().0);
                let next = starts.filter(|start| *start > at).min();
                let next = next.unwrap_or(addresses.end).min(addresses.end);
                add(&self.metrics.refused_bytes, next - at);
                at = next;
                continue;
            };
            let base = region.start_addr().0;
            // Regions end below 2^64.
            let end = (base + region.len()).min(addresses.end);
            let whole = base + (at - base).next_multiple_of(self.page_size)
                ..end - (end - base) % self.page_size;
            let len = whole.end.saturating_sub(whole.start);
            if len == 0 || !self.is_plugged(base, &whole) {
                add(&self.metrics.refused_bytes, end - at);
            } else {
                add(&self.metrics.refused_bytes, end - at - len);
                match discard(region, whole.start - base, len) {
                    Ok(()) => {
                        add(&self.metrics.discards, 1);
                        given += len;
                    }
                    Err(error) => {
                        add(&self.metrics.host_errors, 1);
                        result = result.and(Err(error));
                    }
                }
            }
            at = end;
        }
        (given, result)
    }

    /// Whether `addresses` of the region at `base` are memory that the guest was given.
    fn is_plugged(&self, base: u64, addresses: &Range<u64>) -> bool {
        let mem = self.mem.as_ref().filter(|mem| mem.address() == base);
        mem.is_none_or(|mem| mem.is_plugged(addresses))
    }
}
