//! The block device as its transport sees it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueT;
use zerocopy::{FromZeros, IntoBytes};

use super::disk::{BlockSizes, Disk};
use super::engine::{Engine, EngineKind};
use super::handler::{QueueHandler, Shared};
use super::metrics::BlockMetrics;
use super::resize::{BlockResizer, Capacity};
use super::spec::{Config, FEATURE_FLUSH, FEATURE_MQ, FEATURE_RO, FEATURES, ID_LEN, SECTOR_SIZE};
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;
use crate::virtio::chain::MAX_PIECES;
use crate::virtio::device::read_fields;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-block";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// Log lines per minute that the driver can cause.
const LOG_LINES: u32 = 10;

/// What a block device is made of besides its disk.
#[derive(Clone, Debug)]
pub struct BlockSetup {
    /// Name for threads and logs.
    pub name: String,
    /// What VIRTIO_BLK_T_GET_ID returns, filled up with zeros.
    pub id: [u8; ID_LEN],
    /// Number of request queues, at least 1.
    pub queues: u16,
    /// The largest size of each queue, a power of two of at least 4.
    pub queue_size: u16,
}

/// A block device (virtio 1.2, 5.2).
pub struct Block {
    name: String,
    disk: Arc<dyn Disk>,
    id: [u8; ID_LEN],
    queue_sizes: Vec<u16>,
    capacity: Arc<Capacity>,
    block_sizes: BlockSizes,
    metrics: Arc<BlockMetrics>,
    throttle: Arc<Throttle>,
    workers: Vec<Worker<QueueHandler>>,
    engine: Option<EngineKind>,
}

/// What is saved: what the guest was told about the disk.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    capacity: u64,
    read_only: bool,
    logical_block_size: u32,
    physical_block_size: u32,
    /// The driver has still to be told that the capacity changed.
    capacity_untold: bool,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .field("capacity", &self.capacity.get())
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl Block {
    /// A device for `disk`, of the size that the disk has now.
    pub fn new(disk: Arc<dyn Disk>, setup: BlockSetup) -> Self {
        let BlockSetup {
            name,
            id,
            queues,
            queue_size,
        } = setup;
        Self {
            name,
            id,
            queue_sizes: vec![queue_size; usize::from(queues)],
            capacity: Arc::new(Capacity::new(disk.size())),
            block_sizes: disk.block_sizes(),
            disk,
            metrics: Arc::default(),
            throttle: Arc::new(Throttle::per_minute(LOG_LINES)),
            workers: Vec::new(),
            engine: None,
        }
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Changes the size of the disk from now on, wherever this device goes. It outlives the device, and then changes the
    /// disk alone.
    pub fn resizer(&self) -> BlockResizer {
        BlockResizer {
            name: self.name.clone(),
            disk: Arc::clone(&self.disk),
            capacity: Arc::clone(&self.capacity),
        }
    }

    /// How transfers are carried out; none before the first start.
    pub fn engine(&self) -> Option<EngineKind> {
        self.engine
    }

    fn config(&self) -> Config {
        let BlockSizes { logical, physical } = self.block_sizes;
        let queue_size = self.queue_sizes.first().copied().unwrap_or(0);
        // Each request has a header and a status besides its data, and a buffer over two regions of memory is two pieces.
        let segments = u32::from(queue_size)
            .saturating_sub(2)
            .min(MAX_PIECES as u32 / 2);
        let blocks = physical / logical;
        let mut config = Config::new_zeroed();
        config.capacity = (self.capacity.get() / SECTOR_SIZE).into();
        config.seg_max = segments.into();
        config.blk_size = logical.into();
        config.physical_block_exp = blocks.ilog2() as u8;
        config.min_io_size = u16::try_from(blocks).unwrap_or(u16::MAX).into();
        config.num_queues = (self.queue_sizes.len() as u16).into();
        config
    }

    /// Notes which engine is in use. Drivers start and reset a device as often as they like: only a change is logged.
    fn note_engine(&mut self, engine: &Engine, refusal: Option<std::io::Error>) {
        let kind = engine.kind();
        if self.engine.replace(kind) == Some(kind) {
            return;
        }
        match refusal {
            None => tracing::info!(device = self.name, engine = %kind, "disk engine"),
            Some(error) => {
                tracing::info!(device = self.name, engine = %kind, %error, "disk engine, as io_uring cannot be used");
            }
        }
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let read_only = if self.disk.read_only() { FEATURE_RO } else { 0 };
        let queues = if self.queue_sizes.len() > 1 {
            FEATURE_MQ
        } else {
            0
        };
        FEATURES | read_only | queues
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The only field that a driver may write comes with VIRTIO_BLK_F_CONFIG_WCE, which is not offered.
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues,
            features,
            interrupt,
        } = activation;
        if queues.first().is_none_or(|queue| queue.index != 0) {
            return Err(StartError::QueueMissing(0));
        }
        let shared = Shared {
            memory,
            interrupt: Arc::clone(&interrupt),
            capacity: Arc::clone(&self.capacity),
            read_only: self.disk.read_only(),
            write_through: features & FEATURE_FLUSH == 0,
            id: self.id,
            metrics: Arc::clone(&self.metrics),
            throttle: Arc::clone(&self.throttle),
        };
        for queue in queues {
            let (engine, refusal) = Engine::new(&self.disk, queue.queue.size());
            self.note_engine(&engine, refusal);
            let name = match self.queue_sizes.len() {
                1 => self.name.clone(),
                _ => format!("{}-q{}", self.name, queue.index),
            };
            let worker = match self.capacity.gate.pass(&queue.notify) {
                Ok(pass) => {
                    let handler = QueueHandler::new(shared.clone(), queue, engine, pass);
                    Worker::spawn(&name, handler).map_err(|source| ("a worker thread", source))
                }
                Err(source) => Err(("an eventfd", source)),
            };
            match worker {
                Ok(worker) => self.workers.push(worker),
                Err((what, source)) => {
                    self.stop();
                    return Err(StartError::Resource { what, source });
                }
            }
        }
        self.capacity.begin(interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.capacity.end();
        // Each handler is dropped before the next worker is waited for: a resizer does not wait for a queue that is gone.
        self.workers
            .drain(..)
            .map(|worker| worker.stop().into_queue())
            .collect()
    }

    fn reset(&mut self) {
        // Nothing but queues and features is set by a driver, and those belong to the transport.
        self.capacity.reset();
    }
}

impl Persist for Block {
    fn save(&self) -> Section {
        let Self {
            name: _,
            disk,
            id: _,
            queue_sizes: _,
            capacity,
            block_sizes: BlockSizes { logical, physical },
            metrics: _,
            throttle: _,
            workers: _,
            engine: _,
        } = self;
        let state = State {
            capacity: capacity.get(),
            capacity_untold: capacity.is_untold(),
            read_only: disk.read_only(),
            logical_block_size: *logical,
            physical_block_size: *physical,
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            capacity,
            read_only,
            logical_block_size: logical,
            physical_block_size: physical,
            capacity_untold,
        } = section.decode(KIND, VERSION)?;
        let field = |field, value: &dyn fmt::Display, expected: String| StateError::Field {
            kind: KIND,
            field,
            value: value.to_string(),
            expected,
        };
        let size = self.disk.size();
        if capacity == 0 || !capacity.is_multiple_of(SECTOR_SIZE) || capacity > size {
            let expected =
                format!("a multiple of {SECTOR_SIZE} up to the {size} bytes of the disk");
            return Err(field("capacity", &capacity, expected));
        }
        if read_only != self.disk.read_only() {
            return Err(field(
                "read_only",
                &read_only,
                self.disk.read_only().to_string(),
            ));
        }
        for (name, value, least) in [
            ("logical_block_size", logical, SECTOR_SIZE as u32),
            ("physical_block_size", physical, logical),
        ] {
            if !value.is_power_of_two() || value < least {
                return Err(field(
                    name,
                    &value,
                    format!("a power of two of at least {least}"),
                ));
            }
        }
        self.capacity.restore(capacity, capacity_untold);
        self.block_sizes = BlockSizes { logical, physical };
        Ok(())
    }
}
