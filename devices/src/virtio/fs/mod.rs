//! The file system device (virtio 1.2, section 5.11), whose requests a vhost-user backend such as virtiofsd serves.
//!
//! What the driver sends are FUSE requests; nothing of them is looked at here.

mod device;
mod spec;
#[cfg(test)]
mod tests;

pub use device::{Fs, FsError, FsSetup, MAX_REQUEST_QUEUES, needs};
