//! The owner's side of a memory device, and what it shares with the driver's.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::Blocks;
use super::spec::{BlockState, Geometry, MAX_BLOCKS, MIN_BLOCK_SIZE};
use crate::virtio::Interrupt;

/// What a memory device cannot be made with, or be asked for.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// The block size cannot be.
    #[error(
        "block size is {block_size:#x}, expected a power of two of at least {MIN_BLOCK_SIZE:#x} and \
         of at least a page of the memory, which is {page_size:#x}"
    )]
    BlockSize {
        /// As asked for, in bytes.
        block_size: u64,
        /// What the memory consists of, in bytes.
        page_size: u64,
    },
    /// A value is not in whole blocks.
    #[error("{field} is {value:#x}, expected a multiple of the block size, {block_size:#x}")]
    Alignment {
        /// What is wrong: address, region size or requested size.
        field: &'static str,
        /// As asked for, in bytes.
        value: u64,
        /// Bytes in a block.
        block_size: u64,
    },
    /// The region cannot be.
    #[error(
        "region has {region_size:#x} bytes from {address:#x} on, expected 1 to {MAX_BLOCKS} blocks of \
         {block_size:#x} bytes below 2^64"
    )]
    Region {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        region_size: u64,
        /// Bytes in a block.
        block_size: u64,
    },
    /// More is requested than there is.
    #[error(
        "requested size is {requested:#x}, expected at most the region's {region_size:#x} bytes"
    )]
    Requested {
        /// As asked for, in bytes.
        requested: u64,
        /// Length of the region in bytes.
        region_size: u64,
    },
    /// The region cannot be emptied.
    #[error("cannot discard the memory of the region")]
    Discard(#[source] io::Error),
}

/// The owner's side of a memory device: how much memory its driver is to plug, and how much it has. Clones are the same
/// device. Works from any thread, whether the device runs, is paused or has no driver, and never waits for the guest.
#[derive(Clone, Debug)]
pub struct MemHandle(pub(super) Arc<Shared>);

impl MemHandle {
    /// Requests that `size` bytes be plugged. The driver is told and does it in its own time, as far as it can; until then
    /// [`MemHandle::plugged`] differs from [`MemHandle::requested`]. A paused machine is told when it resumes.
    ///
    /// # Errors
    ///
    /// [`MemError::Alignment`] or [`MemError::Requested`]; the request before stands.
    pub fn resize(&self, size: u64) -> Result<(), MemError> {
        self.0.geometry.check_requested(size)?;
        let mut driver = self.0.driver();
        if self.0.requested.swap(size, Ordering::AcqRel) == size {
            return Ok(());
        }
        match &driver.interrupt {
            Some(interrupt) => interrupt.config_changed(),
            None => driver.untold = true,
        }
        Ok(())
    }

    /// Bytes that are plugged.
    pub fn plugged(&self) -> u64 {
        self.0.plugged.load(Ordering::Acquire)
    }

    /// Bytes that are to be plugged.
    pub fn requested(&self) -> u64 {
        self.0.requested.load(Ordering::Acquire)
    }

    /// Guest physical address of the region.
    pub fn address(&self) -> u64 {
        self.0.geometry.address
    }

    /// Length of the region in bytes: the most that can be requested.
    pub fn region_size(&self) -> u64 {
        self.0.geometry.region_size
    }

    /// Bytes in a block, the unit of all sizes.
    pub fn block_size(&self) -> u64 {
        self.0.geometry.block_size
    }

    /// Whether the guest physical `addresses`, which are not empty, are all in the region, and all plugged.
    pub(crate) fn is_plugged(&self, addresses: &Range<u64>) -> bool {
        let geometry = &self.0.geometry;
        let Some(start) = addresses.start.checked_sub(geometry.address) else {
            return false;
        };
        let end = addresses.end - geometry.address;
        if end > geometry.region_size {
            return false;
        }
        let block_size = geometry.block_size;
        let blocks = (start / block_size) as usize..end.div_ceil(block_size) as usize;
        self.0.blocks().state(&blocks) == BlockState::Plugged
    }

    /// The plugged memory as ranges of offsets in the region, in bytes, ascending and without neighbours. All other memory
    /// of the region has no contents that matter. Stays true only while the device is stopped.
    pub fn plugged_ranges(&self) -> Vec<Range<u64>> {
        let block_size = self.0.geometry.block_size;
        let runs = self.0.blocks().runs();
        runs.into_iter()
            .map(|run| run.start as u64 * block_size..run.end as u64 * block_size)
            .collect()
    }
}

impl Geometry {
    /// The region of `region_size` bytes at guest physical `address`, if it can be divided into blocks of `block_size`.
    pub(super) fn new(
        address: u64,
        region_size: u64,
        block_size: u64,
        page_size: u64,
    ) -> Result<Self, MemError> {
        if !block_size.is_power_of_two() || block_size < page_size.max(MIN_BLOCK_SIZE) {
            return Err(MemError::BlockSize {
                block_size,
                page_size,
            });
        }
        let geometry = Self {
            address,
            region_size,
            block_size,
        };
        geometry.check_alignment("address", address)?;
        geometry.check_alignment("region size", region_size)?;
        // The last address, as the one after it may be 2^64.
        let last = region_size
            .checked_sub(1)
            .and_then(|len| address.checked_add(len));
        if last.is_none() || region_size / block_size > MAX_BLOCKS {
            return Err(MemError::Region {
                address,
                region_size,
                block_size,
            });
        }
        Ok(geometry)
    }

    pub(super) fn check_requested(&self, requested: u64) -> Result<(), MemError> {
        self.check_alignment("requested size", requested)?;
        if requested > self.region_size {
            return Err(MemError::Requested {
                requested,
                region_size: self.region_size,
            });
        }
        Ok(())
    }

    fn check_alignment(&self, field: &'static str, value: u64) -> Result<(), MemError> {
        if !value.is_multiple_of(self.block_size) {
            return Err(MemError::Alignment {
                field,
                value,
                block_size: self.block_size,
            });
        }
        Ok(())
    }
}

/// What the worker, the registers and the owner see. Blocks are changed by the worker alone, and by a restore before there
/// is one; each lock is held for a few instructions.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) geometry: Geometry,
    /// Bytes that the owner requests.
    pub(super) requested: AtomicU64,
    /// Bytes in the plugged blocks, for whoever only wants their sum.
    pub(super) plugged: AtomicU64,
    pub(super) blocks: Mutex<Blocks>,
    pub(super) driver: Mutex<Driver>,
}

/// The way to the driver.
#[derive(Default)]
pub(super) struct Driver {
    /// There while the device runs.
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
    /// The request changed while the device did not run.
    pub(super) untold: bool,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("running", &self.interrupt.is_some())
            .field("untold", &self.untold)
            .finish()
    }
}

impl Shared {
    pub(super) fn new(geometry: Geometry, requested: u64) -> Self {
        Self {
            geometry,
            requested: AtomicU64::new(requested),
            plugged: AtomicU64::new(0),
            blocks: Mutex::new(Blocks::new(geometry.blocks())),
            driver: Mutex::default(),
        }
    }

    /// The blocks, to be looked at.
    pub(super) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the blocks, and the sum with them.
    pub(super) fn change(&self, change: impl FnOnce(&mut Blocks)) {
        let mut blocks = self.blocks();
        change(&mut blocks);
        let plugged = blocks.plugged() as u64 * self.geometry.block_size;
        self.plugged.store(plugged, Ordering::Release);
    }

    /// The device runs, and this is the way to its driver, which is told what it may have missed.
    pub(super) fn connect(&self, interrupt: Arc<dyn Interrupt>) {
        let mut driver = self.driver();
        if std::mem::take(&mut driver.untold) {
            interrupt.config_changed();
        }
        driver.interrupt = Some(interrupt);
    }

    /// The device does not run any more.
    pub(super) fn disconnect(&self) {
        self.driver().interrupt = None;
    }
}
