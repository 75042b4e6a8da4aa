//! Architecture facts of the guest: where things lie in its physical address space, what its kernel finds at boot.
//!
//! Everything here is a function from numbers, opened files and guest memory to values or to bytes in guest memory.
//! Nothing here opens a path or talks to KVM.

pub mod kernel;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
