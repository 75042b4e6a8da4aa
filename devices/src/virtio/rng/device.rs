//! The entropy device as its transport sees it.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::handler::QueueHandler;
use super::metrics::RngMetrics;
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;
use crate::virtio::chain::Buffers;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-rng";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// Log lines per minute that the driver can cause.
const LOG_LINES: u32 = 10;

/// Size of the only queue.
const QUEUE_SIZES: [u16; 1] = [256];

/// An entropy device (virtio 1.2, 5.4).
pub struct Rng {
    name: String,
    source: Arc<File>,
    metrics: Arc<RngMetrics>,
    throttle: Arc<Throttle>,
    worker: Option<Worker<QueueHandler>>,
}

/// What is saved. The driver sets nothing, and a request that waits for its source is in the available ring.
#[derive(Debug, Serialize, Deserialize)]
struct State {}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rng")
            .field("name", &self.name)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Rng {
    /// A device that reads from `source`. A source that may have nothing to give is opened non-blocking (O_NONBLOCK);
    /// requests wait until it is readable.
    pub fn new(name: impl Into<String>, source: impl Into<Arc<File>>) -> Self {
        Self {
            name: name.into(),
            source: source.into(),
            metrics: Arc::default(),
            throttle: Arc::new(Throttle::per_minute(LOG_LINES)),
            worker: None,
        }
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_RNG as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {
        // An entropy device has no configuration space (5.4.4).
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues,
            features: _,
            interrupt,
        } = activation;
        let Some(queue) = queues.into_iter().find(|queue| queue.index == 0) else {
            return Err(StartError::QueueMissing(0));
        };
        let handler = QueueHandler {
            memory,
            interrupt,
            queue,
            source: Arc::clone(&self.source),
            metrics: Arc::clone(&self.metrics),
            buffers: Buffers::new(),
            waiting: false,
            broken: false,
            throttle: Arc::clone(&self.throttle),
        };
        let worker = Worker::spawn(&self.name, handler).map_err(|source| StartError::Resource {
            what: "a worker thread",
            source,
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.worker
            .take()
            .map(|worker| worker.stop().queue)
            .into_iter()
            .collect()
    }

    fn reset(&mut self) {
        // Nothing but the queue and features is set by a driver, and those belong to the transport.
    }
}

impl Persist for Rng {
    fn save(&self) -> Section {
        let Self {
            name: _,
            source: _,
            metrics: _,
            throttle: _,
            worker: _,
        } = self;
        Section::new(KIND, VERSION, &State {})
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {} = section.decode(KIND, VERSION)?;
        Ok(())
    }
}
