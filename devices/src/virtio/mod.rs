//! Virtio 1.2: the contract of a device, its queues and worker threads, the transports, and the devices.
//!
//! A device never sees registers. Its transport builds the queues that the driver configured, hands them over with
//! [`VirtioDevice::start`], and gets them back with [`VirtioDevice::stop`]. In between they belong to the device's worker
//! threads; nothing that the guest writes to a register can change them.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
mod device;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
pub mod fs;
mod limit;
pub mod mem;
pub mod net;
pub mod rng;
pub mod transport;
pub mod vhost_user;
pub mod vsock;
mod worker;

pub(crate) use device::read_fields;
pub use device::{Activation, ActiveQueue, Doorbell, Interrupt, Notify, StartError, VirtioDevice};
pub use worker::{Handler, Worker};
