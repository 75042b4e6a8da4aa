//! The work on the queues.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, Events};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::handle::Shared;
use super::metrics::{BalloonMetrics, add};
use super::pages::{MAX_PAGES, Pages};
use super::spec::{MAX_STATISTICS_LEN, PAGE_SIZE, Statistics};
use crate::memory::{GuestRam, Ram, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::chain::{Buffers, ChainError};
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// Pages that are worked on in one go, before the worker looks for other events.
const MAX_PAGES_AT_ONCE: usize = 16384;

/// Most ranges in one report. Linux reports 32 at most.
const MAX_RANGES: usize = 256;

/// Bytes of a page number.
const NUMBER_LEN: usize = 4;

/// The queues while the device runs.
pub(super) struct Queues {
    pub(super) inflate: ActiveQueue,
    pub(super) deflate: ActiveQueue,
    pub(super) statistics: Option<ActiveQueue>,
    pub(super) reporting: Option<ActiveQueue>,
    /// Those that the driver enabled and has no use for.
    pub(super) idle: Vec<ActiveQueue>,
}

impl Queues {
    /// All of them, in the order of their indexes.
    pub(super) fn into_all(self) -> Vec<ActiveQueue> {
        let Self {
            inflate,
            deflate,
            statistics,
            reporting,
            idle,
        } = self;
        let mut all = vec![inflate, deflate];
        all.extend(statistics);
        all.extend(reporting);
        all.extend(idle);
        all.sort_by_key(|queue| queue.index);
        all
    }
}

/// Owns the queues while the device runs.
pub(super) struct QueueHandler {
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queues: Queues,
    /// The chain in which the driver told statistics. It is given back to ask for new ones.
    pub(super) held: Option<u16>,
    /// Readable when it is time for new statistics.
    pub(super) timer: Option<TimerFd>,
    pub(super) worker: PageWorker,
    /// The queues are not worked on any more.
    pub(super) broken: bool,
}

/// What it takes to answer a chain.
pub(super) struct PageWorker {
    pages: Pages,
    shared: Arc<Shared>,
    metrics: Arc<BalloonMetrics>,
    buffers: Buffers,
    numbers: Vec<u32>,
    ranges: Vec<Range<u64>>,
    /// Bounds what the driver can have logged, however often it resets the device.
    throttle: Arc<Throttle>,
}

/// The driver broke a ring.
type RingError = virtio_queue::Error;

type Chain<'a> = DescriptorChain<&'a Ram>;

/// What is wrong with a chain.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(
        "request is {0} bytes of page numbers, expected some of {NUMBER_LEN}, and no more than {MAX_PAGES}"
    )]
    Numbers(u64),
    #[error("report is of memory that the device may not write")]
    Readable,
    #[error("report is of more than {MAX_RANGES} ranges")]
    Ranges,
}

impl PageWorker {
    pub(super) fn new(
        pages: Pages,
        shared: Arc<Shared>,
        metrics: Arc<BalloonMetrics>,
        throttle: Arc<Throttle>,
    ) -> Self {
        Self {
            pages,
            shared,
            metrics,
            buffers: Buffers::new(),
            numbers: Vec::with_capacity(MAX_PAGES),
            ranges: Vec::with_capacity(MAX_RANGES),
            throttle,
        }
    }

    /// Gives back the pages of one chain, and tells how many it named.
    fn inflate(&mut self, memory: &RamGuard, chain: Chain<'_>) -> Result<usize, Malformed> {
        self.load_numbers(memory, chain)?;
        let count = self.numbers.len();
        let (given, result) = self.pages.give_back_numbers(memory, &mut self.numbers);
        add(&self.metrics.inflated_bytes, given);
        self.report(result);
        Ok(count)
    }

    /// Notes the pages that the driver takes back: they are there as soon as it touches them.
    fn deflate(&mut self, memory: &RamGuard, chain: Chain<'_>) -> Result<usize, Malformed> {
        self.load_numbers(memory, chain)?;
        let count = self.numbers.len();
        add(&self.metrics.deflated_bytes, count as u64 * PAGE_SIZE);
        Ok(count)
    }

    fn load_numbers(&mut self, memory: &RamGuard, chain: Chain<'_>) -> Result<(), Malformed> {
        self.numbers.clear();
        self.buffers.load(memory, chain)?;
        let len = self.buffers.readable_len();
        let count = len / NUMBER_LEN as u64;
        if !len.is_multiple_of(NUMBER_LEN as u64) || !(1..=MAX_PAGES as u64).contains(&count) {
            return Err(Malformed::Numbers(len));
        }
        let mut bytes = [0; 256 * NUMBER_LEN];
        let mut left = len as usize;
        while left > 0 {
            let part = &mut bytes[..left.min(256 * NUMBER_LEN)];
            self.buffers.read_front(part)?;
            let (numbers, _) = part.as_chunks();
            self.numbers
                .extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
            left -= part.len();
        }
        Ok(())
    }

    /// Gives back the memory of one report, and tells how many pages that was in ranges.
    fn discard_reported(
        &mut self,
        memory: &RamGuard,
        chain: Chain<'_>,
    ) -> Result<usize, Malformed> {
        self.ranges.clear();
        let mut complete = false;
        // The descriptors are the message: their memory is neither read nor written, so it is not resolved.
        for descriptor in chain {
            if !descriptor.is_write_only() {
                return Err(Malformed::Readable);
            }
            if self.ranges.len() == MAX_RANGES {
                return Err(Malformed::Ranges);
            }
            let start = descriptor.addr().0;
            self.ranges
                .push(start..start.saturating_add(descriptor.len().into()));
            complete = !descriptor.has_next();
        }
        if !complete {
            return Err(ChainError::Broken.into());
        }
        let poisoned = self.shared.poison.load(Ordering::Acquire) != 0;
        for range in &self.ranges {
            if poisoned {
                add(&self.metrics.poisoned_bytes, range.end - range.start);
                continue;
            }
            let (given, result) = self.pages.give_back(memory, range.clone());
            add(&self.metrics.reported_bytes, given);
            self.report(result);
        }
        Ok(self.ranges.len())
    }

    /// Reads what the driver tells of its guest.
    fn take_statistics(&mut self, memory: &RamGuard, chain: Chain<'_>) -> Result<(), Malformed> {
        self.buffers.load(memory, chain)?;
        let len = self.buffers.readable_len().min(MAX_STATISTICS_LEN as u64);
        let mut bytes = [0; MAX_STATISTICS_LEN];
        let bytes = &mut bytes[..len as usize];
        self.buffers.read_front(bytes)?;
        *self.shared.statistics() = Statistics::parse(bytes);
        add(&self.metrics.statistics, 1);
        Ok(())
    }

    fn report(&self, result: io::Result<()>) {
        if let Err(error) = result
            && let Some(suppressed) = self.throttle.allow()
        {
            tracing::warn!(%error, suppressed, "cannot give back memory of a balloon");
        }
    }

    fn note<T>(&self, result: Result<T, Malformed>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                add(&self.metrics.malformed, 1);
                if let Some(suppressed) = self.throttle.allow() {
                    tracing::warn!(%error, suppressed, "malformed request to a balloon");
                }
                None
            }
        }
    }
}

/// Answers the chains of `queue` by `answer`, which tells how many pages that was, until there is none or it is enough for one
/// go.
fn serve(
    queue: &mut ActiveQueue,
    memory: &RamGuard,
    interrupt: &dyn Interrupt,
    mut answer: impl FnMut(Chain<'_>) -> Option<usize>,
) -> Result<(), RingError> {
    let ActiveQueue {
        index,
        queue,
        notify,
    } = queue;
    let before = queue.next_used();
    let mut chains = queue.size();
    let mut pages = 0;
    'all: loop {
        queue.disable_notification(&**memory)?;
        while let Some(chain) = queue.iter(&**memory)?.next() {
            let head = chain.head_index();
            pages += answer(chain).unwrap_or(0);
            // Nothing is written into any of them.
            queue.add_used(&**memory, head, 0)?;
            chains -= 1;
            if chains == 0 || pages >= MAX_PAGES_AT_ONCE {
                // Wakes this worker once more, after other events; a full counter wakes as well.
                let _ = notify.write(1);
                break 'all;
            }
        }
        if !queue.enable_notification(&**memory)? {
            break;
        }
    }
    if queue.next_used() != before && queue.needs_notification(&**memory)? {
        interrupt.queue(*index);
    }
    Ok(())
}

impl QueueHandler {
    /// Whatever `fd` asks for.
    fn run(&mut self, fd: i32) -> Result<(), RingError> {
        let memory = self.memory.memory();
        let Self {
            interrupt,
            queues,
            timer,
            worker,
            ..
        } = self;
        let Queues {
            inflate,
            deflate,
            statistics,
            reporting,
            idle: _,
        } = queues;
        let of = |queue: &ActiveQueue| queue.notify.as_raw_fd() == fd;
        if of(inflate) {
            let _ = inflate.notify.read();
            return serve(inflate, &memory, &**interrupt, |chain| {
                let result = worker.inflate(&memory, chain);
                worker.note(result)
            });
        }
        if of(deflate) {
            let _ = deflate.notify.read();
            return serve(deflate, &memory, &**interrupt, |chain| {
                let result = worker.deflate(&memory, chain);
                worker.note(result)
            });
        }
        if let Some(reporting) = reporting.as_mut().filter(|queue| of(queue)) {
            let _ = reporting.notify.read();
            return serve(reporting, &memory, &**interrupt, |chain| {
                let result = worker.discard_reported(&memory, chain);
                worker.note(result)
            });
        }
        if let Some(statistics) = statistics.as_ref().filter(|queue| of(queue)) {
            let _ = statistics.notify.read();
            return self.take_statistics(&memory);
        }
        if let Some(timer) = timer.as_mut().filter(|timer| timer.as_raw_fd() == fd) {
            let _ = timer.wait();
        } else {
            let _ = worker.shared.ask.read();
        }
        self.ask_for_statistics(&memory)
    }

    /// Reads the statistics that came, and keeps the last chain of them.
    fn take_statistics(&mut self, memory: &RamGuard) -> Result<(), RingError> {
        let Some(active) = &mut self.queues.statistics else {
            return Ok(());
        };
        let queue = &mut active.queue;
        let mut chains = queue.size();
        loop {
            queue.disable_notification(&**memory)?;
            while let Some(chain) = queue.iter(&**memory)?.next() {
                // A driver has one of them.
                if let Some(head) = self.held.replace(chain.head_index()) {
                    queue.add_used(&**memory, head, 0)?;
                    if queue.needs_notification(&**memory)? {
                        self.interrupt.queue(active.index);
                    }
                }
                let result = self.worker.take_statistics(memory, chain);
                self.worker.note(result);
                chains -= 1;
                if chains == 0 {
                    let _ = active.notify.write(1);
                    return Ok(());
                }
            }
            if !queue.enable_notification(&**memory)? {
                return Ok(());
            }
        }
    }

    /// Gives the chain of the last statistics back, which asks for new ones. Without one, they are on their way.
    fn ask_for_statistics(&mut self, memory: &RamGuard) -> Result<(), RingError> {
        let Some(active) = &mut self.queues.statistics else {
            return Ok(());
        };
        let Some(head) = self.held.take() else {
            return Ok(());
        };
        active.queue.add_used(&**memory, head, 0)?;
        if active.queue.needs_notification(&**memory)? {
            self.interrupt.queue(active.index);
        }
        Ok(())
    }
}

impl Handler for QueueHandler {
    fn init(&mut self, ops: &mut EventOps) {
        let queues = &self.queues;
        let optional = queues.statistics.iter().chain(&queues.reporting);
        for queue in [&queues.inflate, &queues.deflate]
            .into_iter()
            .chain(optional)
        {
            ops.add(Events::new(&queue.notify, EventSet::IN))
                .expect("a new epoll instance takes an eventfd");
        }
        if let Some(timer) = &self.timer {
            ops.add(Events::new(timer, EventSet::IN))
                .expect("a new epoll instance takes a timerfd");
        } else {
            ops.add(Events::new(&self.worker.shared.ask, EventSet::IN))
                .expect("a new epoll instance takes an eventfd");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.broken {
            // Nothing more comes of it: what is left readable would wake this worker without end.
            let _ = ops.remove(events);
            return;
        }
        if let Err(error) = self.run(events.fd()) {
            let worker = &self.worker;
            add(&worker.metrics.broken_rings, 1);
            if let Some(suppressed) = worker.throttle.allow() {
                tracing::warn!(%error, suppressed, "ring of a balloon is broken, the device needs a reset");
            }
            self.broken = true;
            self.interrupt.needs_reset();
        }
    }

    fn drain(&mut self) {
        // The chain of the last statistics goes back into the available ring: it is taken again with the same contents.
        if let (Some(active), Some(_)) = (&mut self.queues.statistics, self.held.take()) {
            active.queue.go_to_previous_position();
        }
        self.worker.buffers.clear();
    }
}
