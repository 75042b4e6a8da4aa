//! Memory device (virtio 1.2, 5.15): a region of guest memory, of which the driver plugs and unplugs blocks until so much
//! is plugged as the machine's owner requests.
//!
//! The region is part of the guest's memory map from the start, but the guest is told of it by this device alone. A block
//! that is plugged is RAM; of one that is not, the host keeps nothing: its pages are discarded when it is unplugged.
//!
//! [`MemHandle`] is the owner's side: it is taken before the device goes to its transport, and works while the device runs.

mod blocks;
mod device;
mod handle;
mod handler;
mod metrics;
mod region;
mod spec;

#[cfg(test)]
mod tests;

pub use device::{Mem, MemSetup};
pub use handle::{MemError, MemHandle};
pub use metrics::MemMetrics;
pub use region::{MappedRegion, MemRegion};
pub use spec::{DEFAULT_BLOCK_SIZE, MAX_BLOCKS, MIN_BLOCK_SIZE};
