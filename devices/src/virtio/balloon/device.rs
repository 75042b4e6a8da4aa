//! The balloon as its transport sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::timerfd::TimerFd;
use zerocopy::IntoBytes;

use super::handle::{BalloonError, BalloonHandle, Driver, Shared, to_pages};
use super::handler::{PageWorker, QueueHandler, Queues};
use super::metrics::BalloonMetrics;
use super::pages::Pages;
use super::spec::{self, Config, bit};
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;
use crate::virtio::device::read_fields;
use crate::virtio::mem::MemHandle;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-balloon";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// Log lines per minute that the driver can cause.
const LOG_LINES: u32 = 10;

/// Sizes of the queues, without and with that for reports.
const QUEUE_SIZES: [u16; 5] = [128; 5];
const QUEUES_WITHOUT_REPORTING: usize = 3;

/// What a balloon is made of besides memory.
#[derive(Clone, Debug)]
pub struct BalloonSetup {
    /// Name for threads and logs.
    pub name: String,
    /// Bytes that the driver is asked for at first.
    pub size: u64,
    /// The driver may take pages back when its guest runs out of memory.
    pub deflate_on_oom: bool,
    /// The driver may report pages that it does not use.
    pub free_page_reporting: bool,
    /// How often the driver is asked for statistics. Without an interval, whenever its owner wants them.
    pub statistics_interval: Option<Duration>,
    /// Bytes of the host's pages behind the guest's memory.
    pub page_size: u64,
    /// The memory device of the machine: of its region, only plugged blocks are memory.
    pub mem: Option<MemHandle>,
}

/// A memory balloon (virtio 1.2, 5.5).
pub struct Balloon {
    name: String,
    deflate_on_oom: bool,
    free_page_reporting: bool,
    statistics_interval: Option<Duration>,
    page_size: u64,
    mem: Option<MemHandle>,
    shared: Arc<Shared>,
    metrics: Arc<BalloonMetrics>,
    throttle: Arc<Throttle>,
    worker: Option<Worker<QueueHandler>>,
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Pages that the balloon is to have.
    target: u32,
    /// Pages that the driver says it has.
    actual: u32,
    poison_val: u32,
    /// The driver does not know of `target` yet.
    untold: bool,
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("name", &self.name)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Balloon {
    /// A balloon that has nothing yet.
    ///
    /// # Errors
    ///
    /// [`BalloonError`] names what cannot be.
    pub fn new(setup: BalloonSetup) -> Result<Self, BalloonError> {
        let BalloonSetup {
            name,
            size,
            deflate_on_oom,
            free_page_reporting,
            statistics_interval,
            page_size,
            mem,
        } = setup;
        let statistics_interval = statistics_interval.filter(|interval| !interval.is_zero());
        let shared = Shared::new(to_pages(size)?, statistics_interval.is_none())?;
        Ok(Self {
            name,
            deflate_on_oom,
            free_page_reporting,
            statistics_interval,
            page_size,
            mem,
            shared: Arc::new(shared),
            metrics: Arc::default(),
            throttle: Arc::new(Throttle::per_minute(LOG_LINES)),
            worker: None,
        })
    }

    /// The owner's side.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<BalloonMetrics> {
        Arc::clone(&self.metrics)
    }

    fn config(&self) -> Config {
        Config {
            num_pages: self.shared.target.load(Ordering::Acquire).into(),
            actual: self.shared.actual.load(Ordering::Acquire).into(),
            free_page_hint_cmd_id: 0.into(),
            poison_val: self.shared.poison.load(Ordering::Acquire).into(),
        }
    }

    fn timer(&self) -> Result<Option<TimerFd>, StartError> {
        let Some(interval) = self.statistics_interval else {
            return Ok(None);
        };
        let armed = TimerFd::new().and_then(|mut timer| {
            timer.reset(interval, Some(interval))?;
            Ok(timer)
        });
        armed.map(Some).map_err(|error| StartError::Resource {
            what: "a timer",
            source: std::io::Error::from_raw_os_error(error.errno()),
        })
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_BALLOON as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let mut features = spec::FEATURES;
        if self.deflate_on_oom {
            features |= bit(spec::VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
        }
        if self.free_page_reporting {
            // A guest that fills its free pages reports none unless the device knows with what.
            features |= bit(spec::VIRTIO_BALLOON_F_PAGE_REPORTING)
                | bit(spec::VIRTIO_BALLOON_F_PAGE_POISON);
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        if self.free_page_reporting {
            &QUEUE_SIZES
        } else {
            &QUEUE_SIZES[..QUEUES_WITHOUT_REPORTING]
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        let Ok(start) = usize::try_from(offset) else {
            return;
        };
        for (place, byte) in config.as_mut_bytes().iter_mut().skip(start).zip(data) {
            *place = *byte;
        }
        // The others are read-only for the driver (5.5.4).
        let Config {
            num_pages: _,
            actual,
            free_page_hint_cmd_id: _,
            poison_val,
        } = config;
        self.shared.actual.store(actual.get(), Ordering::Release);
        self.shared
            .poison
            .store(poison_val.get(), Ordering::Release);
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues: mut idle,
            features,
            interrupt,
        } = activation;
        let mut take = |index| {
            let at = idle.iter().position(|queue| queue.index == index)?;
            Some(idle.remove(at))
        };
        let inflate = take(spec::INFLATE).ok_or(StartError::QueueMissing(spec::INFLATE))?;
        let deflate = take(spec::DEFLATE).ok_or(StartError::QueueMissing(spec::DEFLATE))?;
        let statistics = spec::statistics_queue(features).and_then(&mut take);
        let reporting = spec::reporting_queues(features);
        let reporting = reporting.and_then(|indexes| indexes.into_iter().find_map(&mut take));
        let poison = features & bit(spec::VIRTIO_BALLOON_F_PAGE_POISON) != 0;
        if !poison {
            self.shared.poison.store(0, Ordering::Release);
        }
        let metrics = Arc::clone(&self.metrics);
        let handler = QueueHandler {
            memory,
            interrupt: Arc::clone(&interrupt),
            queues: Queues {
                inflate,
                deflate,
                statistics,
                reporting,
                idle,
            },
            held: None,
            timer: self.timer()?,
            worker: PageWorker::new(
                Pages::new(self.page_size, self.mem.clone(), Arc::clone(&metrics)),
                Arc::clone(&self.shared),
                metrics,
                Arc::clone(&self.throttle),
            ),
            broken: false,
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
        let worker = self.worker.take();
        worker.map_or_else(Vec::new, |worker| worker.stop().queues.into_all())
    }

    fn reset(&mut self) {
        // The pages are the guest's again: whoever used them last does not know of the balloon any more.
        self.shared.actual.store(0, Ordering::Release);
        self.shared.poison.store(0, Ordering::Release);
        *self.shared.statistics() = Default::default();
    }
}

impl Persist for Balloon {
    fn save(&self) -> Section {
        let Self {
            // Configuration, the same in the device that is restored into.
            name: _,
            deflate_on_oom: _,
            free_page_reporting: _,
            statistics_interval: _,
            page_size: _,
            mem: _,
            shared,
            metrics: _,
            throttle: _,
            worker: _,
        } = self;
        let Shared {
            target,
            actual,
            poison,
            on_demand: _,
            ask: _,
            // They are in the available ring, and are read again.
            statistics: _,
            driver: _,
        } = &**shared;
        let Driver {
            interrupt: _,
            untold,
        } = &*shared.driver();
        let state = State {
            target: target.load(Ordering::Acquire),
            actual: actual.load(Ordering::Acquire),
            poison_val: poison.load(Ordering::Acquire),
            untold: *untold,
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            target,
            actual,
            poison_val,
            untold,
        } = section.decode(KIND, VERSION)?;
        self.shared.target.store(target, Ordering::Release);
        self.shared.actual.store(actual, Ordering::Release);
        self.shared.poison.store(poison_val, Ordering::Release);
        self.shared.driver().untold = untold;
        Ok(())
    }
}
