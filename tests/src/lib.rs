//! Guests booted through the real `podvisor` binary.
//!
//! A test describes a machine with [`Guest`], gives it a shell script, and gets back what the script printed and how
//! the process ended. [`Disk`] and [`Network`] are the scratch resources that a machine is given; dropping one of
//! them, or a running machine, leaves nothing behind.
//!
//! The kernel, the userland and the tools come from `./tests/run`, which also enters the lab where this machine's
//! KVM cannot run them. A test that misses something fails with the command that brings it.

pub mod api;
pub mod archive;
pub mod assets;
mod disk;
mod guest;
mod network;
pub mod report;
mod running;
mod shell;
pub mod tiny;
mod virtiofsd;

pub use disk::Disk;
pub use guest::Guest;
pub use network::Network;
pub use running::{Finished, Running, confined_vmm, eventually, vmm_without_machine};
pub use shell::Shell;
pub use virtiofsd::Virtiofsd;
