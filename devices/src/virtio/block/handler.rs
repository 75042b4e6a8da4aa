//! The work on one request queue.

mod ends;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use event_manager::{EventOps, Events};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::epoll::EventSet;
use zerocopy::{FromZeros, IntoBytes};

use super::engine::Engine;
use super::gate::Pass;
use super::metrics::{BlockMetrics, add};
use super::resize::Capacity;
use super::slot::{Slot, Work};
use super::spec::{ID_LEN, Limits, Request, RequestHeader, Segment, Status};
use super::stop::Stopper;
use crate::memory::{GuestRam, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::chain::Walk;
use crate::virtio::limit::Limit;
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// Bytes begun in one go before the worker looks for other events.
const MAX_BYTES_AT_ONCE: u64 = 64 << 20;

/// When writes are to be durable.
#[derive(Clone)]
pub(super) enum Durability {
    /// When they complete: the driver does not flush.
    AtOnce,
    /// After the next flush.
    ByFlush,
    /// After the next flush as long as this holds: the driver changes it as it likes.
    ByFlushWhile(Arc<AtomicBool>),
}

impl Durability {
    fn at_once(&self) -> bool {
        match self {
            Self::AtOnce => true,
            Self::ByFlush => false,
            Self::ByFlushWhile(writeback) => !writeback.load(Ordering::Acquire),
        }
    }
}

/// What the queues of one device share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// Where requests may go; it changes while they are served.
    pub(super) capacity: Arc<Capacity>,
    pub(super) read_only: bool,
    /// The feature was negotiated.
    pub(super) discard: bool,
    /// The feature was negotiated.
    pub(super) write_zeroes: bool,
    /// Ranges of zeros may lose their blocks.
    pub(super) unmap: bool,
    pub(super) durability: Durability,
    /// What has errors of the host stop the machine, if some do.
    pub(super) stopper: Option<Stopper>,
    pub(super) id: [u8; ID_LEN],
    pub(super) metrics: Arc<BlockMetrics>,
    /// Bounds what the driver can have logged, however often it resets the device.
    pub(super) throttle: Arc<Throttle>,
}

/// What a request needs.
enum Todo {
    /// Work on the disk.
    Begin(Work),
    /// Nothing more than the status: `data` bytes were written before that.
    Nothing { data: u32 },
}

impl Shared {
    /// What the chain in `slot`, whose first bytes were `header`, asks for. The slot holds what that needs then.
    ///
    /// The error is the status to answer with.
    fn understand(&self, slot: &mut Slot, header: &RequestHeader) -> Result<Todo, Status> {
        let limits = Limits {
            capacity: self.capacity.get(),
            read_only: self.read_only,
            discard: self.discard,
            write_zeroes: self.write_zeroes,
        };
        let (readable, writable) = (slot.buffers.readable_len(), slot.buffers.writable_len());
        let (work, ranges) = match Request::parse(header, readable, writable, limits)? {
            Request::Read { offset } => return Ok(Todo::Begin(Work::Read { offset })),
            Request::Write { offset } => return Ok(Todo::Begin(Work::Write { offset })),
            Request::Flush => return Ok(Todo::Begin(Work::Flush)),
            Request::GetId => {
                // The parser saw that there is room.
                let _ = slot.buffers.write_front(&self.id);
                add(&self.metrics.identifications, 1);
                return Ok(Todo::Nothing {
                    data: ID_LEN as u32,
                });
            }
            Request::Discard { ranges } => (Work::Discard, ranges),
            Request::WriteZeroes { ranges } => (Work::WriteZeroes, ranges),
        };
        slot.ranges.clear();
        for _ in 0..ranges {
            let mut segment = Segment::new_zeroed();
            // The parser saw that there are so many.
            let _ = slot.buffers.read_front(segment.as_mut_bytes());
            let mut range = segment.parse(work == Work::WriteZeroes, limits)?;
            range.unmap &= self.unmap;
            if range.len > 0 {
                slot.ranges.push(range);
            }
        }
        if slot.ranges.is_empty() {
            return Ok(Todo::Nothing { data: 0 });
        }
        Ok(Todo::Begin(work))
    }
}

/// Owns one queue while the device runs.
pub(super) struct QueueHandler {
    shared: Shared,
    queue: ActiveQueue,
    engine: Engine,
    pass: Pass,
    /// How much is taken from the ring in a time.
    limit: Limit,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Heads of chains that were taken from the ring before the device was stopped last, and are the first to be begun,
    /// from the last to the first.
    again: Vec<u16>,
    /// Heads of chains that wait for the device to be stopped and started again, which nothing is begun before.
    kept: Vec<u16>,
    /// Used elements were added since the driver was last told.
    added: bool,
    /// The ring cannot be gone on with: nothing is taken from it or put into it any more.
    broken: bool,
}

/// The driver broke the ring.
type RingError = virtio_queue::Error;

impl QueueHandler {
    pub(super) fn new(
        shared: Shared,
        queue: ActiveQueue,
        engine: Engine,
        pass: Pass,
        limit: Limit,
        mut again: Vec<u16>,
    ) -> Self {
        let depth = queue.queue.size();
        again.reverse();
        Self {
            shared,
            queue,
            engine,
            pass,
            limit,
            slots: (0..depth).map(|_| Slot::new()).collect(),
            free: (0..depth).rev().collect(),
            again,
            kept: Vec::with_capacity(depth.into()),
            added: false,
            broken: false,
        }
    }

    /// The queue, and the heads of chains that were taken from it and are to be begun when it runs again.
    pub(super) fn into_queue(mut self) -> (ActiveQueue, Vec<u16>) {
        self.kept.extend(self.again.drain(..).rev());
        (self.queue, self.kept)
    }

    /// Takes what ended and what the driver added, until there is nothing more or it is enough for one go.
    fn run(&mut self) {
        if self.pass.is_refused() && !self.make_way() {
            return;
        }
        let memory = self.shared.memory.memory();
        let result = self.exchange(&memory);
        self.settle(&memory, result);
    }

    /// Finishes what is on its way and takes nothing new. Once all has ended, waits until the queue may go to the disk
    /// again, and returns true.
    fn make_way(&mut self) -> bool {
        let memory = self.shared.memory.memory();
        let result = self.kick_and_reap(&memory);
        self.settle(&memory, result);
        if self.free.len() < self.slots.len() {
            // The next completion leads back here, and the opening of the gate does.
            return false;
        }
        drop(memory);
        self.pass.wait();
        true
    }

    fn exchange(&mut self, memory: &RamGuard) -> Result<(), RingError> {
        self.reap(memory)?;
        if self.broken || !self.kept.is_empty() {
            return Ok(());
        }
        let mut chains = u32::from(self.queue.queue.size());
        let mut bytes = 0;
        loop {
            self.queue.queue.disable_notification(&**memory)?;
            let mut now = None;
            let mut held_back = false;
            while chains > 0
                && bytes < MAX_BYTES_AT_ONCE
                && !self.free.is_empty()
                && !self.pass.is_refused()
            {
                if self.limit.is_limited()
                    && self.limit.holds_back(*now.get_or_insert_with(Instant::now))
                {
                    held_back = true;
                    break;
                }
                let Some(moved) = self.take_chain(memory, &mut now)? else {
                    break;
                };
                bytes += moved;
                chains -= 1;
            }
            self.kick_and_reap(memory)?;
            if chains == 0 || bytes >= MAX_BYTES_AT_ONCE || self.pass.is_refused() {
                self.look_again();
                return Ok(());
            }
            if self.free.is_empty() || held_back || !self.kept.is_empty() {
                // The next completion leads back here, or the timer, or another start.
                return Ok(());
            }
            if !self.queue.queue.enable_notification(&**memory)? {
                return Ok(());
            }
        }
    }

    /// Wakes this worker once more, after other events.
    fn look_again(&self) {
        // A full counter wakes as well.
        let _ = self.queue.notify.write(1);
    }

    /// Takes one chain, if not one that was taken before, and begins its request. Returns the bytes of its data, none if there is no chain.
    ///
    /// `now` is the time, if it was read since the worker last waited for anything: one reading does for all the requests
    /// that are begun together.
    fn take_chain(
        &mut self,
        memory: &RamGuard,
        now: &mut Option<Instant>,
    ) -> Result<Option<u64>, RingError> {
        let Some(token) = self.free.last().copied() else {
            return Ok(None);
        };
        let slot = &mut self.slots[usize::from(token)];
        let queue = &mut self.queue.queue;
        let loaded = if let Some(head) = self.again.pop() {
            let table = GuestAddress(queue.desc_table());
            slot.head = head;
            slot.buffers
                .load(memory, Walk::new(memory, table, queue.size(), head))
        } else if let Some(chain) = queue.iter(&**memory)?.next() {
            slot.head = chain.head_index();
            slot.buffers.load(memory, chain)
        } else {
            return Ok(None);
        };
        self.free.pop();
        // A chain that could not be loaded still has its status byte, if it has one that can be written.
        let status = slot.buffers.take_status();
        let mut header = RequestHeader::new_zeroed();
        let read = loaded
            .and(status)
            .and_then(|()| slot.buffers.read_front(header.as_mut_bytes()));
        if let Err(error) = read {
            add(&self.shared.metrics.malformed, 1);
            if let Some(suppressed) = self.shared.throttle.allow() {
                tracing::warn!(queue = self.queue.index, %error, suppressed, "malformed block request");
            }
            self.finish(token, Status::IoError, 0, memory)?;
            return Ok(Some(0));
        }
        let work = match self.shared.understand(slot, &header) {
            Ok(Todo::Begin(work)) => work,
            Ok(Todo::Nothing { data }) => {
                let whole = slot.buffers.writable_len() == 0;
                self.finish(token, Status::Ok, data + u32::from(whole), memory)?;
                return Ok(Some(0));
            }
            Err(status) => {
                let counter = match status {
                    Status::Unsupported => &self.shared.metrics.unsupported,
                    _ => &self.shared.metrics.refused,
                };
                add(counter, 1);
                let written = u32::from(slot.buffers.writable_len() == 0);
                self.finish(token, status, written, memory)?;
                return Ok(Some(0));
            }
        };
        let begun = *now.get_or_insert_with(Instant::now);
        slot.begin(work, self.shared.durability.at_once(), begun);
        let bytes = slot.total();
        if self.limit.is_limited() {
            // What is discarded or zeroed is not moved.
            let moved = match work {
                Work::Read { .. } | Work::Write { .. } => bytes,
                Work::Flush | Work::Discard | Work::WriteZeroes => 0,
            };
            self.limit.spend(moved, begun);
        }
        add(&self.shared.metrics.in_flight, 1);
        self.submit(token);
        Ok(Some(bytes))
    }

    /// Submits what the request of `token` needs next.
    fn submit(&mut self, token: u16) {
        // SAFETY: a slot is left alone while its token is not in `free`, until `complete` gets the token; `drain` waits for
        // all of them before the slots can be dropped.
        #[allow(unsafe_code)]
        unsafe {
            self.slots[usize::from(token)].submit(&mut self.engine, token);
        }
    }

    /// Hands over what was prepared, and takes what ended, until neither leads to the other.
    fn kick_and_reap(&mut self, memory: &RamGuard) -> Result<(), RingError> {
        loop {
            match self.engine.kick() {
                Ok(true) => {}
                Ok(false) => {
                    self.look_again();
                    return self.reap(memory).map(|_| ());
                }
                Err(error) => {
                    if !self.broken {
                        tracing::error!(queue = self.queue.index, %error, "io_uring refuses disk transfers");
                        self.broken = true;
                        self.shared.interrupt.needs_reset();
                    }
                    return self.reap(memory).map(|_| ());
                }
            }
            if !self.reap(memory)? {
                return Ok(());
            }
        }
    }

    /// Takes what ended, and tells whether some of it has to go on.
    fn reap(&mut self, memory: &RamGuard) -> Result<bool, RingError> {
        let mut result = Ok(false);
        let mut now = None;
        // All of them, whatever becomes of the first: nothing tells of them again.
        while let Some(completion) = self.engine.next() {
            let again = self.complete(completion, memory, &mut now);
            result = result.and_then(|before| again.map(|again| before | again));
        }
        result
    }
}

impl Handler for QueueHandler {
    fn init(&mut self, ops: &mut EventOps) {
        for event in [&self.queue.notify, self.engine.event()] {
            ops.add(Events::new(event, EventSet::IN))
                .expect("a new epoll instance takes an eventfd");
        }
        ops.add(Events::new(self.limit.timer(), EventSet::IN))
            .expect("a new epoll instance takes a timer");
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        use std::os::fd::AsRawFd;
        if self.limit.timer().as_raw_fd() == events.fd() {
            self.limit.clear();
            self.run();
            return;
        }
        let ended = self.engine.event();
        let event = if ended.as_raw_fd() == events.fd() {
            ended
        } else {
            &self.queue.notify
        };
        // Reading makes it wait for the next signal; there is none to read if it was read before.
        let _ = event.read();
        self.run();
    }

    fn drain(&mut self) {
        let memory = self.shared.memory.memory();
        let mut result = self.kick_and_reap(&memory);
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            let reaped = self.kick_and_reap(&memory);
            result = result.and(reaped);
        }
        if self.free.len() < self.slots.len() {
            // What the host did not take at all fails.
            for token in 0..self.queue.queue.size() {
                if !self.free.contains(&token) {
                    let error = io::ErrorKind::OutOfMemory.into();
                    self.report(token, &error);
                    if self.keep(token, &error) {
                        continue;
                    }
                    let metrics = &self.shared.metrics;
                    metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
                    let finished = self.finish(token, Status::IoError, 0, &memory);
                    result = result.and(finished);
                }
            }
        }
        self.settle(&memory, result);
        for slot in &mut self.slots {
            slot.buffers.clear();
        }
    }
}
