//! Changing the size of a disk while its device is in use.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::Disk;
use super::gate::Gate;
use super::spec::SECTOR_SIZE;
use crate::virtio::Interrupt;

/// How long requests on their way may take to end before a disk is made smaller.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a disk keeps its size. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Nothing would be left.
    #[error("desired_size is 0, expected at least one sector of 512 bytes")]
    Empty,
    /// The last sector would not be whole.
    #[error(
        "desired_size {desired_size} is not a multiple of 512, expected for example {}",
        nearest(*desired_size)
    )]
    Sectors {
        /// The size asked for.
        desired_size: u64,
    },
    /// The disk must not be changed.
    #[error("desired_size {desired_size}: the disk is read-only, expected one that can be written")]
    ReadOnly {
        /// The size asked for.
        desired_size: u64,
    },
    /// The disk is a block device of the host, which the host alone makes larger or smaller.
    #[error(
        "desired_size {desired_size} is not the size of the host's block device, expected the {found} that it has \
         (resize it on the host first)"
    )]
    BlockDevice {
        /// The size asked for.
        desired_size: u64,
        /// The size of the block device.
        found: u64,
    },
    /// The disk's format has no way to make it smaller.
    #[error(
        "desired_size {desired_size} is below the {size} bytes that the disk has, expected at least those: a qcow2 image is \
         only made larger"
    )]
    Shrink {
        /// The size asked for.
        desired_size: u64,
        /// The size that it has.
        size: u64,
    },
    /// The last unit of direct access would not be whole.
    #[error(
        "desired_size {desired_size} is not a multiple of the {unit} that direct access to the disk needs"
    )]
    Direct {
        /// The size asked for.
        desired_size: u64,
        /// The unit.
        unit: u64,
    },
    /// Somebody else has locked what the disk would grow by.
    #[error("desired_size {desired_size} leads to bytes of the file that somebody else has locked")]
    Locked {
        /// The size asked for.
        desired_size: u64,
    },
    /// Requests that may lead beyond the new end did not end in time.
    #[error(
        "desired_size {desired_size} makes the disk smaller, expected its requests on the host to end within {} seconds",
        PATIENCE.as_secs()
    )]
    Busy {
        /// The size asked for.
        desired_size: u64,
    },
    /// The host does not give the disk that size.
    #[error("desired_size {desired_size} is refused by the host")]
    Host {
        /// The size asked for.
        desired_size: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// The multiple of a sector's size that is next, or the last one that there is.
fn nearest(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR_SIZE)
        .unwrap_or(size - size % SECTOR_SIZE)
}

/// Changes the size of a block device's disk, whatever the device does at that time: see
/// [`Block::resizer`](super::Block::resizer).
#[derive(Clone)]
pub struct BlockResizer {
    pub(super) name: String,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) capacity: Arc<Capacity>,
}

impl fmt::Debug for BlockResizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockResizer")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl BlockResizer {
    /// Bytes that the guest sees.
    pub fn size(&self) -> u64 {
        self.capacity.get()
    }

    /// Gives the disk `desired_size` bytes, and tells the driver (virtio 1.2, 5.2.4): at once if the device runs, else when
    /// it starts, if it was not reset by then.
    ///
    /// A disk may become smaller. What is beyond its new end is lost; requests that the device has begun end before that,
    /// and later ones that lead there fail. The calling thread waits for them, for 10 seconds at most; a disk that becomes
    /// larger is not waited for.
    ///
    /// # Errors
    ///
    /// [`ResizeError`]; neither the disk nor what the guest sees has changed then.
    pub fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        self.resize_within(desired_size, PATIENCE)
    }

    pub(super) fn resize_within(
        &self,
        desired_size: u64,
        patience: Duration,
    ) -> Result<(), ResizeError> {
        if desired_size == 0 {
            return Err(ResizeError::Empty);
        }
        if !desired_size.is_multiple_of(SECTOR_SIZE) {
            return Err(ResizeError::Sectors { desired_size });
        }
        if self.disk.read_only() {
            return Err(ResizeError::ReadOnly { desired_size });
        }
        let capacity = &self.capacity;
        let turn = capacity.take_turn();
        let before = capacity.get();
        // A write to the lost part that ends after the file was cut would make it longer again.
        let closed = if desired_size < before {
            let closed = capacity.gate.close(patience);
            Some(closed.ok_or(ResizeError::Busy { desired_size })?)
        } else {
            None
        };
        self.disk.resize(desired_size)?;
        capacity.bytes.store(desired_size, Ordering::Release);
        drop(closed);
        if desired_size != before {
            capacity.tell();
            tracing::info!(
                device = self.name,
                before,
                size = desired_size,
                "disk resized"
            );
        }
        drop(turn);
        Ok(())
    }
}

/// The size that the guest sees, shared by the device, its queues and its resizers.
#[derive(Debug)]
pub(super) struct Capacity {
    bytes: AtomicU64,
    /// Closed while the disk becomes smaller.
    pub(super) gate: Arc<Gate>,
    listener: Mutex<Listener>,
    /// Held by the resizer whose turn it is; neither queues nor the device take it.
    turn: Mutex<()>,
}

/// Who is to be told of a change.
#[derive(Default)]
struct Listener {
    /// The way to the driver while the device runs.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// There was a change while the device did not run.
    untold: bool,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("runs", &self.interrupt.is_some())
            .field("untold", &self.untold)
            .finish()
    }
}

impl Capacity {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            bytes: AtomicU64::new(bytes),
            gate: Arc::default(),
            listener: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// Bytes that the guest sees; the disk has at least as many.
    pub(super) fn get(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The device runs: tells the driver, over `interrupt`, of a change that was before.
    pub(super) fn begin(&self, interrupt: Arc<dyn Interrupt>) {
        let mut listener = self.listener();
        if std::mem::take(&mut listener.untold) {
            interrupt.config_changed();
        }
        listener.interrupt = Some(interrupt);
    }

    /// The device does not run any more.
    pub(super) fn end(&self) {
        self.listener().interrupt = None;
    }

    /// The driver begins afresh, and reads what there is.
    pub(super) fn reset(&self) {
        self.listener().untold = false;
    }

    /// Whether the driver has still to be told of a change.
    pub(super) fn is_untold(&self) -> bool {
        self.listener().untold
    }

    /// Takes saved state.
    pub(super) fn restore(&self, bytes: u64, untold: bool) {
        self.bytes.store(bytes, Ordering::Release);
        self.listener().untold = untold;
    }

    fn tell(&self) {
        let mut listener = self.listener();
        match &listener.interrupt {
            Some(interrupt) => interrupt.config_changed(),
            None => listener.untold = true,
        }
    }

    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listener(&self) -> MutexGuard<'_, Listener> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
