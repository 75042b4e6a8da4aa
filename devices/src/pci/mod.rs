//! PCI: functions, their configuration space and BARs, MSI-X, and the root bus that finds them by ECAM.
//!
//! [`Root`] is bus 0. The guest reaches the functions' configuration space through [`Root::ecam`] and
//! [`Root::config_ports`], and their BARs through the MMIO bus, on which the root puts them where the guest decodes them.

mod allocator;
mod bridge;
mod config_space;
mod ecam;
mod function;
mod gate;
mod msix;
mod probe;
mod root;
#[cfg(test)]
mod tests;

pub use allocator::Windows;
pub use bridge::HostBridge;
pub use config_space::{BarKind, Capability, ConfigSpace, ConfigSpaceState, Identity};
pub use ecam::ECAM_LEN;
pub use function::{BarChange, Msi, MsiMessage, PciFunction};
pub use gate::SlotGate;
pub use msix::{Msix, MsixState, PBA_ENTRY_BITS, TABLE_ENTRY_LEN};
pub use root::{Root, RootError, SharedFunction};
