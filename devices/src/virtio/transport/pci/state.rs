//! Saved state of a virtio device on PCI.

use serde::{Deserialize, Serialize};

use super::VirtioPci;
use super::common::Selectors;
use crate::pci::{ConfigSpaceState, MsixState};
use crate::state::{Persist, Section, StateError};
use crate::virtio::transport::core::CoreState;

const KIND: &str = "virtio-pci";

#[derive(Serialize, Deserialize)]
pub(super) struct VirtioPciState {
    pub(super) core: CoreState,
    pub(super) config: ConfigSpaceState,
    pub(super) msix: MsixState,
    selectors: Selectors,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl Persist for VirtioPci {
    fn save(&self) -> Section {
        let Self {
            core,
            // Part of the core's state.
            signals: _,
            vectors,
            config,
            // Follow from the device.
            capabilities: _,
            layout: _,
            msix,
            notify: _,
            selectors,
            // Follows from the BAR, which the bus maps again.
            bound: _,
        } = self;
        Section::new(
            KIND,
            1,
            &VirtioPciState {
                core: core.save(),
                config: config.save(),
                msix: msix.save(),
                selectors: *selectors,
                config_vector: vectors.config(),
                queue_vectors: (0..core.queue_count())
                    .map(|index| vectors.queue(index))
                    .collect(),
            },
        )
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let VirtioPciState {
            core,
            config,
            msix,
            selectors,
            config_vector,
            queue_vectors,
        } = section.decode(KIND, 1)?;
        self.msix.check(KIND, &msix)?;
        let before = self.config.clone();
        self.config.restore(KIND, &config)?;
        if let Err(error) = self.core.restore(KIND, &core) {
            self.config = before;
            return Err(error);
        }
        self.selectors = selectors;
        self.vectors.set_config(config_vector);
        for (index, vector) in (0..).zip(queue_vectors) {
            self.vectors.set_queue(index, vector);
        }
        // Last, since it may deliver what was pending.
        self.msix.restore(&msix);
        Ok(())
    }
}
