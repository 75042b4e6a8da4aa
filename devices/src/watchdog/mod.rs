//! Watchdog of the Intel 6300ESB I/O controller hub, as PCI function: what QEMU and KubeVirt call `i6300esb`, and Linux and
//! other guests have a driver for.
//!
//! It counts down in two stages. The driver sets their lengths and starts it; at the end of the second stage, unless it was
//! reloaded before, the machine's owner is told by [`PlatformEvent::WatchdogExpired`](crate::platform::PlatformEvent). The
//! interrupt at the end of the first stage is not made: drivers leave it off.
//!
//! The registers are those of Intel's datasheet of the 6300ESB, document 300641-004.

mod countdown;
mod device;

#[cfg(test)]
mod tests;

pub use device::I6300Esb;
