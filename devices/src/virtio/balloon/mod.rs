//! Memory balloon (virtio 1.2, 5.5): the driver takes pages from its guest and gives them to the host, until the balloon has
//! the size that the machine's owner asks for.
//!
//! The host's memory behind such a page is given back, and so is that behind a page which the driver reports as free. Either
//! may be touched by the guest at any time, and is zeros then; nothing of it is unmapped.
//!
//! [`BalloonHandle`] is the owner's side: it is taken before the device goes to its transport, and works while the device
//! runs.

mod device;
mod handle;
mod handler;
mod metrics;
mod pages;
mod spec;

#[cfg(test)]
mod tests;

pub use device::{Balloon, BalloonSetup};
pub use handle::{BalloonError, BalloonHandle};
pub use metrics::BalloonMetrics;
pub use spec::{PAGE_SIZE, STATISTICS, Statistic, Statistics};
