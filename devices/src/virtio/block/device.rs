//! The block device as its transport sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueT;
use zerocopy::{FromZeros, IntoBytes};

use super::disk::{BlockSizes, Disk};
use super::engine::{Engine, EngineKind, PoolSetup, threads_for};
use super::handler::{Durability, QueueHandler, Shared};
use super::limit::BlockLimits;
use super::metrics::BlockMetrics;
use super::resize::{BlockResizer, Capacity};
use super::spec::{
    Config, DISCARD, FEATURE_CONFIG_WCE, FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_MQ, FEATURE_RO,
    FEATURE_WRITE_ZEROES, FEATURES, ID_LEN, SECTOR_SIZE, WRITE_ZEROES,
};
use super::stop::{BlockWatch, StopOn, Stopper};
use crate::host_cpus::HostCpus;
use crate::platform::Platform;
use crate::rate_limit::RateLimiter;
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;
use crate::virtio::chain::MAX_PIECES;
use crate::virtio::device::read_fields;
use crate::virtio::limit::Limit;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-block";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// The driver flushes, and may say that it does not.
const BY_CONFIG: u64 = FEATURE_FLUSH | FEATURE_CONFIG_WCE;

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
    /// CPUs of the host that the worker of a queue runs on, by the queue's index. The worker of a queue that is not there
    /// runs where the host likes.
    pub affinity: BTreeMap<u16, HostCpus>,
    /// Whether io_uring is used where the disk and the host allow it.
    pub io_uring: bool,
    /// What limits the rate of requests, all queues together, now or when it is set to. Requests that are held back wait in
    /// the ring.
    pub limiter: Arc<RateLimiter>,
}

/// A block device (virtio 1.2, 5.2).
pub struct Block {
    name: String,
    disk: Arc<dyn Disk>,
    id: [u8; ID_LEN],
    queue_sizes: Vec<u16>,
    affinity: BTreeMap<u16, HostCpus>,
    io_uring: bool,
    limiter: Arc<RateLimiter>,
    capacity: Arc<Capacity>,
    /// Writes need not be durable before a flush: `writeback` of the configuration space.
    writeback: Arc<AtomicBool>,
    block_sizes: BlockSizes,
    metrics: Arc<BlockMetrics>,
    throttle: Arc<Throttle>,
    workers: Vec<Worker<QueueHandler>>,
    watch: Arc<BlockWatch>,
    stopper: Option<Stopper>,
    /// Of each queue, the heads of chains that were taken from it and are to be begun when it runs again.
    pub(super) kept: Vec<Vec<u16>>,
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
    /// What the driver has made of the field of that name.
    writeback: bool,
    /// Of each queue, the heads of chains that were taken from it and not answered, since the host reported errors.
    kept: Vec<Vec<u16>>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .field("capacity", &self.capacity.get())
            .field("engine", &self.watch.engine())
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
            affinity,
            io_uring,
            limiter,
        } = setup;
        Self {
            name,
            id,
            queue_sizes: vec![queue_size; usize::from(queues)],
            affinity,
            io_uring,
            limiter,
            capacity: Arc::new(Capacity::new(disk.size())),
            writeback: Arc::new(true.into()),
            block_sizes: disk.block_sizes(),
            disk,
            metrics: Arc::default(),
            throttle: Arc::new(Throttle::per_minute(LOG_LINES)),
            workers: Vec::new(),
            watch: Arc::default(),
            stopper: None,
            kept: vec![Vec::new(); queues.into()],
        }
    }

    /// The same device, which does not answer a request whose error on the host is among those that stop the machine. It
    /// tells `platform` of it, and begins nothing more on that queue. Once it was stopped and is started again, as in a
    /// pause and a resume of the machine, that request is begun once more.
    #[must_use]
    pub fn stopping(mut self, on: StopOn, platform: Arc<dyn Platform>) -> Self {
        self.stopper = (on != StopOn::default()).then(|| Stopper {
            on,
            platform,
            watch: Arc::clone(&self.watch),
        });
        self
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

    /// Changes the limits of the device from now on, wherever it goes.
    pub fn limits(&self) -> BlockLimits {
        BlockLimits {
            limiter: Arc::clone(&self.limiter),
            gate: Arc::clone(&self.capacity.gate),
        }
    }

    /// What can be seen of the device, wherever it goes.
    pub fn watch(&self) -> Arc<BlockWatch> {
        Arc::clone(&self.watch)
    }

    fn can_discard(&self) -> bool {
        self.disk.unmapping().discard && !self.disk.read_only()
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
        config.writeback = self.writeback.load(Ordering::Acquire).into();
        config.num_queues = (self.queue_sizes.len() as u16).into();
        let discard = self.can_discard();
        if discard {
            config.max_discard_sectors = DISCARD.sectors.into();
            config.max_discard_seg = DISCARD.count.into();
            config.discard_sector_alignment = (physical / SECTOR_SIZE as u32).into();
        }
        if !self.disk.read_only() {
            config.max_write_zeroes_sectors = WRITE_ZEROES.sectors.into();
            config.max_write_zeroes_seg = WRITE_ZEROES.count.into();
            config.write_zeroes_may_unmap = discard.into();
        }
        config
    }

    /// Starts the worker of `queue`. An error tells what could not be had.
    fn start_queue(
        &mut self,
        shared: Shared,
        queue: ActiveQueue,
    ) -> Result<(), (&'static str, io::Error)> {
        let name = match self.queue_sizes.len() {
            1 => self.name.clone(),
            _ => format!("{}-q{}", self.name, queue.index),
        };
        let cpus = self.affinity.get(&queue.index);
        let depth = queue.queue.size();
        let pool = PoolSetup {
            name: name.clone(),
            threads: threads_for(self.queue_sizes.len() as u16).min(depth),
            cpus: cpus.cloned(),
        };
        let engine = Engine::new(&self.disk, depth, self.io_uring, pool);
        let (engine, refusal) = engine.map_err(|source| ("an eventfd", source))?;
        self.note_engine(engine.kind(), refusal);
        let limit = Limit::new(Arc::clone(&self.limiter));
        let limit = limit.map_err(|source| ("a timer", source))?;
        let pass = self.capacity.gate.pass(&queue.notify);
        let pass = pass.map_err(|source| ("an eventfd", source))?;
        let kept = self.kept.get_mut(usize::from(queue.index));
        let again = kept.map(std::mem::take).unwrap_or_default();
        let handler = QueueHandler::new(shared, queue, engine, pass, limit, again);
        let worker = Worker::spawn(&name, handler);
        let worker = worker.map_err(|source| ("a worker thread", source))?;
        let kept = cpus.map_or(Ok(()), |cpus| worker.keep_on(cpus));
        self.workers.push(worker);
        kept.map_err(|source| ("the host CPUs of a queue", source))
    }

    /// Notes which engine is in use. Drivers start and reset a device as often as they like: only a change is logged.
    fn note_engine(&self, kind: EngineKind, refusal: Option<io::Error>) {
        if !self.watch.note_engine(kind) {
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
        let optional = [
            (self.disk.read_only(), FEATURE_RO),
            // The device writes the zeros itself where the host has no better way.
            (!self.disk.read_only(), FEATURE_WRITE_ZEROES),
            (self.can_discard(), FEATURE_DISCARD),
            (self.queue_sizes.len() > 1, FEATURE_MQ),
        ];
        let offered = optional.into_iter().filter(|(offered, _)| *offered);
        offered.fold(FEATURES, |features, (_, feature)| features | feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The only field that a driver may write.
        const WRITEBACK: u64 = std::mem::offset_of!(Config, writeback) as u64;
        let at = WRITEBACK.checked_sub(offset).map(usize::try_from);
        if let Some(value) = at.and_then(|at| data.get(at.ok()?)) {
            self.writeback.store(*value != 0, Ordering::Release);
        }
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
            discard: features & FEATURE_DISCARD != 0,
            write_zeroes: features & FEATURE_WRITE_ZEROES != 0,
            unmap: self.can_discard(),
            durability: match features & (FEATURE_FLUSH | FEATURE_CONFIG_WCE) {
                BY_CONFIG => Durability::ByFlushWhile(Arc::clone(&self.writeback)),
                FEATURE_FLUSH => Durability::ByFlush,
                _ => Durability::AtOnce,
            },
            id: self.id,
            metrics: Arc::clone(&self.metrics),
            stopper: self.stopper.clone(),
            throttle: Arc::clone(&self.throttle),
        };
        for queue in queues {
            if let Err((what, source)) = self.start_queue(shared.clone(), queue) {
                self.stop();
                return Err(StartError::Resource { what, source });
            }
        }
        self.capacity.begin(interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.capacity.end();
        // Each handler is dropped before the next worker is waited for: a resizer does not wait for a queue that is gone.
        let workers = self.workers.drain(..);
        workers
            .map(|worker| {
                let (queue, kept) = worker.stop().into_queue();
                self.kept[usize::from(queue.index)] = kept;
                queue
            })
            .collect()
    }

    fn reset(&mut self) {
        // Queues and features belong to the transport.
        self.capacity.reset();
        self.kept.iter_mut().for_each(Vec::clear);
        self.writeback.store(true, Ordering::Release);
    }
}

impl Persist for Block {
    fn save(&self) -> Section {
        let Self {
            name: _,
            disk,
            id: _,
            queue_sizes: _,
            affinity: _,
            io_uring: _,
            limiter: _,
            capacity,
            writeback,
            block_sizes: BlockSizes { logical, physical },
            metrics: _,
            throttle: _,
            workers: _,
            watch: _,
            stopper: _,
            kept,
        } = self;
        let state = State {
            capacity: capacity.get(),
            capacity_untold: capacity.is_untold(),
            writeback: writeback.load(Ordering::Acquire),
            kept: kept.clone(),
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
            writeback,
            kept,
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
        let size = self.queue_sizes.first().copied().unwrap_or(0);
        let queue_fits = |heads: &Vec<u16>| {
            heads.len() <= usize::from(size) && heads.iter().all(|head| *head < size)
        };
        if kept.len() != self.queue_sizes.len() || !kept.iter().all(queue_fits) {
            let queues = self.queue_sizes.len();
            let expected = format!("of {queues} queues up to {size} heads below {size} each");
            return Err(field("kept", &format_args!("{kept:?}"), expected));
        }
        self.kept = kept;
        self.capacity.restore(capacity, capacity_untold);
        self.writeback.store(writeback, Ordering::Release);
        self.block_sizes = BlockSizes { logical, physical };
        Ok(())
    }
}
