//! Block device (virtio 1.2, 5.2): a [`Disk`] behind request queues, one worker thread per queue.
//!
//! A request goes straight between the disk and guest memory: its buffers are handed to io_uring as they are, or, where the
//! host forbids io_uring or the disk has a format, to a few threads that make calls which block. Only what direct access does
//! not take as it is goes through a buffer.

mod device;
mod direct;
mod disk;
mod engine;
mod file;
mod gate;
mod handler;
mod limit;
mod lock;
mod metrics;
mod qcow2;
mod resize;
mod slot;
mod spec;
mod stop;

#[cfg(test)]
mod tests;

pub use device::{Block, BlockSetup};
pub use disk::{BlockSizes, Disk, Pieces, Unmapping, read_exact};
pub use engine::EngineKind;
pub use file::{DiskError, FileDisk};
pub use limit::BlockLimits;
pub use lock::{LockError, LockExtent};
pub use metrics::BlockMetrics;
pub use qcow2::{
    Backing, BackingImage, Header as Qcow2Header, HeaderError, ImageLock, Qcow2Disk, Qcow2Error,
    Qcow2Image, write_layer,
};
pub use resize::{BlockResizer, ResizeError};
pub use spec::{ID_LEN, SECTOR_SIZE};
pub use stop::{BlockWatch, StopCause, StopOn, StopOnWrite};
