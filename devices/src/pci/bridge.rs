//! The host bridge, function 00:00.0. It has no registers beyond its header; firmware and guests look for its class.

use super::config_space::ConfigSpaceState;
use super::{BarChange, ConfigSpace, Identity, PciFunction};
use crate::state::{Persist, Section, StateError};

const KIND: &str = "pci-host-bridge";

/// The host bridge, without BARs. Its numbers are those of Cloud Hypervisor's, by which its firmware knows what machine it
/// is on.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// The bridge after power-on.
    pub fn new() -> Self {
        Self {
            config: ConfigSpace::new(Identity {
                vendor: 0x8086,
                device: 0x0d57,
                revision: 0,
                class: 0x06_00_00,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
            }),
        }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        self.config.write(offset, data)
    }

    fn bar_mapped(&mut self, _bar: u8, _address: Option<u64>) {}

    fn read_bar(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn pause(&mut self) {}

    fn resume(&mut self) {}
}

impl Persist for HostBridge {
    fn save(&self) -> Section {
        let Self { config } = self;
        Section::new(KIND, 1, &config.save())
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: ConfigSpaceState = section.decode(KIND, 1)?;
        self.config.restore(KIND, &state)
    }
}
