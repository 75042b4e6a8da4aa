//! `--boot-disk`: finds what the guest's own disk boots, as the boot loader on it would, without running that.
//!
//! A disk is what its guest made of it. It is read by a process of its own, `podvisor read-boot-disk`, which can do nothing but
//! ask for bytes of that disk and tell what it found:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`process`] | the VMM's side: starts the process, hands it bytes of the disk, takes kernel, initial RAM disk and command line |
//! | [`child`] | the process's side, and how it gives up all that it could do |
//! | `messages` | what both say to each other |
//! | `find` | from a disk to the entry that boots |
//! | `image`, `partitions`, `filesystem` | the disk, layer by layer |
//! | `grub`, `bls`, `uki`, `version` | what boot loaders read: `grub.cfg`, boot entries, unified kernel images |
//!
//! The process reads the disk through the VMM, by the same [`Disk`](devices::virtio::block::Disk) that the guest's block device
//! has: there is one way for all image formats, and after a reboot it finds what the guest has just written.
//!
//! This is no part of crate `arch`, whose functions take guest memory and numbers: it needs a process and a disk.

mod bls;
pub mod child;
mod confine;
mod filesystem;
mod find;
mod grub;
mod image;
mod messages;
mod partitions;
pub mod process;
mod uki;
mod version;

pub use process::{BootDiskError, Booted, Limits, Reader, SUBCOMMAND};
