//! Device models: what the guest sees on its buses.
//!
//! A device takes opened resources (a disk, a tap, an interrupt) and never a path or a configuration type. It makes no
//! KVM ioctl: where one is needed (an irqfd, an ioeventfd, an MSI route), the device is handed a trait object.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`bus`] | address ranges and who answers them |
//! | [`legacy`] | 16550 serial port, i8042 reset, debug port and boot mark, pvpanic |
//! | [`acpi`] | hardware-reduced power registers, generic event device, hotplug registers |
//! | [`pci`] | host bridge with ECAM, BARs, MSI-X |
//! | [`host_cpus`] | CPUs of the host that workers are kept on |
//! | [`rate_limit`] | how much a guest gets done in a time |
//! | [`throttle`] | a bound on the log lines that a guest can cause |
//! | [`virtio`] | transport core, its register faces, and one folder per device |
//! | [`watchdog`] | i6300esb, on PCI |

pub mod acpi;
pub mod bus;
pub mod host_cpus;
pub mod interrupt;
pub mod legacy;
#[cfg(test)]
mod log_lines;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod rate_limit;
pub mod state;
pub mod throttle;
pub mod virtio;
pub mod watchdog;
