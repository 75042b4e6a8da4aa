//! The memory device as its transport sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use zerocopy::IntoBytes;

use super::blocks::Blocks;
use super::handle::{Driver, MemError, MemHandle, Shared};
use super::handler::QueueHandler;
use super::metrics::MemMetrics;
use super::region::MemRegion;
use super::spec::{Config, FEATURES, Geometry};
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;
use crate::virtio::chain::Buffers;
use crate::virtio::device::read_fields;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-mem";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// Log lines per minute that the driver can cause.
const LOG_LINES: u32 = 10;

/// Size of the only queue. Drivers wait for each answer.
const QUEUE_SIZES: [u16; 1] = [128];

/// What a memory device is made of besides its memory.
#[derive(Clone, Debug)]
pub struct MemSetup {
    /// Name for threads and logs.
    pub name: String,
    /// Guest physical address of the region, a multiple of the block size. Linux can use only those of its memory blocks
    /// that lie in the region as a whole, so that address and size are best multiples of those.
    pub address: u64,
    /// Bytes in a block: a power of two, at least [`MIN_BLOCK_SIZE`](super::MIN_BLOCK_SIZE) and a page of the memory.
    pub block_size: u64,
    /// Bytes that are requested at first. The driver plugs them when it starts.
    pub requested: u64,
}

/// A memory device (virtio 1.2, 5.15).
pub struct Mem {
    name: String,
    region: Arc<dyn MemRegion>,
    shared: Arc<Shared>,
    metrics: Arc<MemMetrics>,
    throttle: Arc<Throttle>,
    worker: Option<Worker<QueueHandler>>,
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    address: u64,
    region_size: u64,
    block_size: u64,
    requested: u64,
    /// One bit per block, lowest first.
    plugged: Vec<u8>,
    /// The driver does not know of `requested` yet.
    untold: bool,
}

impl fmt::Debug for Mem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mem")
            .field("name", &self.name)
            .field("region", &self.region)
            .field("geometry", &self.shared.geometry)
            .finish_non_exhaustive()
    }
}

impl Mem {
    /// A device for `region`, no block of which is plugged: as after a system reset, all its memory is discarded. Contents
    /// that belong to a saved state are put there afterwards.
    ///
    /// # Errors
    ///
    /// [`MemError`] names what cannot be.
    pub fn new(region: Arc<dyn MemRegion>, setup: MemSetup) -> Result<Self, MemError> {
        let MemSetup {
            name,
            address,
            block_size,
            requested,
        } = setup;
        let geometry = Geometry::new(address, region.size(), block_size, region.page_size())?;
        geometry.check_requested(requested)?;
        region
            .discard(0, geometry.region_size)
            .map_err(MemError::Discard)?;
        Ok(Self {
            name,
            region,
            shared: Arc::new(Shared::new(geometry, requested)),
            metrics: Arc::default(),
            throttle: Arc::new(Throttle::per_minute(LOG_LINES)),
            worker: None,
        })
    }

    /// The owner's side.
    pub fn handle(&self) -> MemHandle {
        MemHandle(Arc::clone(&self.shared))
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<MemMetrics> {
        Arc::clone(&self.metrics)
    }

    fn config(&self) -> Config {
        let Shared {
            geometry,
            requested,
            plugged,
            blocks: _,
            driver: _,
        } = &*self.shared;
        Config {
            block_size: geometry.block_size.into(),
            node_id: 0.into(),
            padding: [0; 6],
            addr: geometry.address.into(),
            region_size: geometry.region_size.into(),
            // All of it from the start: the driver has the widest choice, and the field never has to grow.
            usable_region_size: geometry.region_size.into(),
            plugged_size: plugged.load(Ordering::Acquire).into(),
            requested_size: requested.load(Ordering::Acquire).into(),
        }
    }
}

impl VirtioDevice for Mem {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_MEM as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // All fields are read-only for the driver (5.15.4).
    }

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
            interrupt: Arc::clone(&interrupt),
            queue,
            region: Arc::clone(&self.region),
            shared: Arc::clone(&self.shared),
            metrics: Arc::clone(&self.metrics),
            buffers: Buffers::new(),
            broken: false,
            throttle: Arc::clone(&self.throttle),
        };
        let worker = Worker::spawn(&self.name, handler).map_err(|source| StartError::Resource {
            what: "a worker thread",
            source,
        })?;
        self.worker = Some(worker);
        self.shared.connect(interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.shared.disconnect();
        self.worker
            .take()
            .map(|worker| worker.stop().queue)
            .into_iter()
            .collect()
    }

    fn reset(&mut self) {
        // What is plugged stays plugged (5.15.5): it may be memory that the guest runs on.
    }
}

impl Persist for Mem {
    fn save(&self) -> Section {
        let Self {
            name: _,
            region: _,
            shared,
            metrics: _,
            throttle: _,
            worker: _,
        } = self;
        let Shared {
            geometry:
                Geometry {
                    address,
                    region_size,
                    block_size,
                },
            requested,
            // The sum of the blocks.
            plugged: _,
            blocks: _,
            driver: _,
        } = &**shared;
        let Driver {
            interrupt: _,
            untold,
        } = &*shared.driver();
        let state = State {
            address: *address,
            region_size: *region_size,
            block_size: *block_size,
            requested: requested.load(Ordering::Acquire),
            plugged: shared.blocks().to_bytes(),
            untold: *untold,
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            address,
            region_size,
            block_size,
            requested,
            plugged,
            untold,
        } = section.decode(KIND, VERSION)?;
        let geometry = self.shared.geometry;
        let field = |field, value: String, expected: String| StateError::Field {
            kind: KIND,
            field,
            value,
            expected,
        };
        for (name, value, expected) in [
            ("address", address, geometry.address),
            ("region_size", region_size, geometry.region_size),
            ("block_size", block_size, geometry.block_size),
        ] {
            if value != expected {
                return Err(field(name, format!("{value:#x}"), format!("{expected:#x}")));
            }
        }
        if geometry.check_requested(requested).is_err() {
            let expected = format!("a multiple of {block_size:#x} up to {region_size:#x}");
            return Err(field("requested", format!("{requested:#x}"), expected));
        }
        let Some(blocks) = Blocks::from_bytes(geometry.blocks(), &plugged) else {
            let found = format!("{} bytes", plugged.len());
            let expected = format!("a bit for each of {} blocks", geometry.blocks());
            return Err(field("plugged", found, expected));
        };
        self.shared.change(|all| *all = blocks);
        self.shared.requested.store(requested, Ordering::Release);
        self.shared.driver().untold = untold;
        Ok(())
    }
}
