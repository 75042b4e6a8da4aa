//! Saved state of a virtio device on MMIO.

use serde::{Deserialize, Serialize};

use super::VirtioMmio;
use super::registers::Selectors;
use crate::state::{Persist, Section, StateError};
use crate::virtio::transport::core::CoreState;

pub(super) const KIND: &str = "virtio-mmio";

#[derive(Serialize, Deserialize)]
pub(super) struct VirtioMmioState {
    pub(super) core: CoreState,
    selectors: Selectors,
}

impl Persist for VirtioMmio {
    fn save(&self) -> Section {
        let Self {
            core,
            // Part of the core's state.
            signals: _,
            line: _,
            notify: _,
            selectors,
            // Follows from the device and its address.
            bound: _,
        } = self;
        Section::new(
            KIND,
            1,
            &VirtioMmioState {
                core: core.save(),
                selectors: *selectors,
            },
        )
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let VirtioMmioState { core, selectors } = section.decode(KIND, 1)?;
        self.core.restore(KIND, &core)?;
        self.selectors = selectors;
        Ok(())
    }
}
