//! The memory behind the blocks.

use std::fmt;
use std::io;
use std::sync::Arc;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

use crate::memory;

/// The host's memory for a region. Offsets and lengths are in bytes and in whole blocks; whatever is not within
/// [`MemRegion::size`] is refused.
pub trait MemRegion: fmt::Debug + Send + Sync {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// The least that can be discarded, in bytes: the size of a page, explicit huge pages included.
    fn page_size(&self) -> u64;

    /// Makes sure of `len` bytes from `offset` on, before the guest is given them: a host that has no memory left is found
    /// out here. Does nothing if memory is to be taken when it is first touched.
    ///
    /// # Errors
    ///
    /// The host has no memory. Some of the range may have been taken.
    fn populate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives `len` bytes from `offset` on back to the host. Their contents are lost; they can be touched as before.
    ///
    /// # Errors
    ///
    /// The host refused. Some of the range may have been given back.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// A region of guest memory that is mapped in this process.
#[derive(Debug)]
pub struct MappedRegion {
    region: Arc<GuestRegionMmap<()>>,
    page_size: u64,
    populate: bool,
}

impl MappedRegion {
    /// `region` of pages of `page_size` bytes: those of the processor, or the explicit huge pages it was mapped with.
    ///
    /// With `populate`, memory is taken from the host when it is plugged, not when it is first touched. That is for who
    /// wants memory prefaulted, and for explicit huge pages that are not reserved: touching one that the host does not
    /// have ends the process.
    pub fn new(region: Arc<GuestRegionMmap<()>>, page_size: u64, populate: bool) -> Self {
        Self {
            region,
            page_size,
            populate,
        }
    }

    /// The offset of a range that is in the region and in whole pages.
    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let within = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.size());
        let whole = offset.is_multiple_of(self.page_size) && len.is_multiple_of(self.page_size);
        if within && whole {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

impl MemRegion for MappedRegion {
    fn size(&self) -> u64 {
        self.region.len()
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn populate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if !self.populate {
            return Ok(());
        }
        memory::populate(&self.region, offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        memory::discard(&self.region, offset, len)
    }
}
