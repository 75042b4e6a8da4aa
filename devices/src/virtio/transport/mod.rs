//! Transports: one core, and the register faces that show it to the guest.

pub mod core;
pub mod mmio;
pub mod pci;
#[cfg(test)]
mod tests;
