//! The work on one request queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use event_manager::{EventOps, Events};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use zerocopy::{FromZeros, IntoBytes};

use super::engine::{Completion, Engine};
use super::gate::Pass;
use super::metrics::{BlockMetrics, add};
use super::resize::Capacity;
use super::slot::{Next, Slot, Work};
use super::spec::{ID_LEN, Limits, Request, RequestHeader, Status};
use crate::memory::{GuestRam, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// Bytes begun in one go before the worker looks for other events: an engine that blocks has moved them by then.
const MAX_BYTES_AT_ONCE: u64 = 64 << 20;

/// What the queues of one device share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// Where requests may go; it changes while they are served.
    pub(super) capacity: Arc<Capacity>,
    pub(super) read_only: bool,
    /// The driver does not flush: a write is durable when it completes.
    pub(super) write_through: bool,
    pub(super) id: [u8; ID_LEN],
    pub(super) metrics: Arc<BlockMetrics>,
    /// Bounds what the driver can have logged, however often it resets the device.
    pub(super) throttle: Arc<Throttle>,
}

/// Owns one queue while the device runs.
pub(super) struct QueueHandler {
    shared: Shared,
    queue: ActiveQueue,
    engine: Engine,
    pass: Pass,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Used elements were added since the driver was last told.
    added: bool,
    /// The ring cannot be gone on with: nothing is taken from it or put into it any more.
    broken: bool,
}

/// The driver broke the ring.
type RingError = virtio_queue::Error;

impl QueueHandler {
    pub(super) fn new(shared: Shared, queue: ActiveQueue, engine: Engine, pass: Pass) -> Self {
        let depth = queue.queue.size();
        Self {
            shared,
            queue,
            engine,
            pass,
            slots: (0..depth).map(|_| Slot::new()).collect(),
            free: (0..depth).rev().collect(),
            added: false,
            broken: false,
        }
    }

    pub(super) fn into_queue(self) -> ActiveQueue {
        self.queue
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
        if self.broken {
            return Ok(());
        }
        let mut chains = u32::from(self.queue.queue.size());
        let mut bytes = 0;
        loop {
            self.queue.queue.disable_notification(&**memory)?;
            let mut now = None;
            while chains > 0
                && bytes < MAX_BYTES_AT_ONCE
                && !self.free.is_empty()
                && !self.pass.is_refused()
            {
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
            if self.free.is_empty() {
                // The next completion leads back here.
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

    /// Takes one chain and begins its request. Returns the bytes of its data, none if there is no chain.
    ///
    /// `now` is the time, if it was read since the worker last waited for anything: one reading does for all the requests
    /// that are begun together.
    fn take_chain(
        &mut self,
        memory: &RamGuard,
        now: &mut Option<Instant>,
    ) -> Result<Option<u64>, RingError> {
        let Some(chain) = self.queue.queue.iter(&**memory)?.next() else {
            return Ok(None);
        };
        let Some(token) = self.free.pop() else {
            return Ok(None);
        };
        let limits = Limits {
            capacity: self.shared.capacity.get(),
            read_only: self.shared.read_only,
        };
        let slot = &mut self.slots[usize::from(token)];
        slot.head = chain.head_index();
        let loaded = slot.buffers.load(memory, chain);
        // A chain that could not be loaded still has its status byte, if it has one that can be written.
        let status = slot.buffers.take_status();
        let mut header = RequestHeader::new_zeroed();
        let read = loaded
            .and(status)
            .and_then(|()| slot.buffers.read_front(header.as_mut_bytes()));
        let request = match read {
            Ok(()) => Request::parse(
                &header,
                slot.buffers.readable_len(),
                slot.buffers.writable_len(),
                limits,
            ),
            Err(error) => {
                add(&self.shared.metrics.malformed, 1);
                if let Some(suppressed) = self.shared.throttle.allow() {
                    tracing::warn!(queue = self.queue.index, %error, suppressed, "malformed block request");
                }
                self.finish(token, Status::IoError, 0, memory)?;
                return Ok(Some(0));
            }
        };
        let work = match request {
            Ok(Request::Read { offset }) => Work::Read { offset },
            Ok(Request::Write { offset }) => Work::Write {
                offset,
                then_flush: self.shared.write_through,
            },
            Ok(Request::Flush) => Work::Flush,
            Ok(Request::GetId) => {
                let id = self.shared.id;
                // The parser saw that there is room.
                let _ = slot.buffers.write_front(&id);
                add(&self.shared.metrics.identifications, 1);
                let whole = slot.buffers.writable_len() == 0;
                self.finish(token, Status::Ok, ID_LEN as u32 + u32::from(whole), memory)?;
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
        slot.begin(work, *now.get_or_insert_with(Instant::now));
        add(&self.shared.metrics.in_flight, 1);
        self.submit(token);
        if self.engine.event().is_none() {
            // Its operation has ended, however long that took.
            *now = None;
        }
        Ok(Some(match work {
            Work::Read { .. } => self.slots[usize::from(token)].buffers.writable_len(),
            _ => self.slots[usize::from(token)].buffers.readable_len(),
        }))
    }

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
        let mut again = false;
        let mut now = None;
        while let Some(completion) = self.engine.next() {
            again |= self.complete(completion, memory, &mut now)?;
        }
        Ok(again)
    }

    /// Takes the end of an operation, and tells whether its request has to go on. `now` is as for
    /// [`QueueHandler::take_chain`], for the requests that end together.
    fn complete(
        &mut self,
        completion: Completion,
        memory: &RamGuard,
        now: &mut Option<Instant>,
    ) -> Result<bool, RingError> {
        let Completion {
            token,
            result,
            ended,
        } = completion;
        let slot = &mut self.slots[usize::from(token)];
        let status = match slot.advance(result) {
            Next::Again => {
                self.submit(token);
                return Ok(true);
            }
            Next::Done(status) => status,
            Next::Failed(error) => {
                self.report(token, &error);
                Status::IoError
            }
        };
        let slot = &self.slots[usize::from(token)];
        let (work, done) = (slot.work(), slot.done());
        // A chain is no longer than 4 GiB, and one byte of it is the status.
        let bytes = u32::try_from(done).unwrap_or(u32::MAX);
        let ok = status == Status::Ok;
        let end = ended.unwrap_or_else(|| *now.get_or_insert_with(Instant::now));
        // This many nanoseconds are 584 years.
        let time = u64::try_from(slot.time_until(end).as_nanos()).unwrap_or(u64::MAX);
        let metrics = &self.shared.metrics;
        let written = match work {
            Work::Read { .. } if ok => {
                add(&metrics.reads, 1);
                add(&metrics.read_bytes, done);
                add(&metrics.read_nanoseconds, time);
                bytes.saturating_add(1)
            }
            // The status lies behind data that were not written.
            Work::Read { .. } => bytes,
            Work::Write { .. } | Work::FlushWrite if ok => {
                add(&metrics.writes, 1);
                add(&metrics.write_bytes, done);
                add(&metrics.write_nanoseconds, time);
                1
            }
            Work::Flush if ok => {
                add(&metrics.flushes, 1);
                add(&metrics.flush_nanoseconds, time);
                u32::from(slot.buffers.writable_len() == 0)
            }
            Work::Write { .. } | Work::FlushWrite => 1,
            Work::Flush => u32::from(slot.buffers.writable_len() == 0),
        };
        metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.finish(token, status, written, memory)?;
        Ok(false)
    }

    fn report(&mut self, token: u16, error: &io::Error) {
        add(&self.shared.metrics.host_errors, 1);
        if let Some(suppressed) = self.shared.throttle.allow() {
            let work = self.slots[usize::from(token)].work();
            tracing::warn!(queue = self.queue.index, %error, ?work, suppressed, "disk request failed");
        }
    }

    /// Gives the chain back to the driver, with `written` bytes from its first writable one on, and frees the slot.
    fn finish(
        &mut self,
        token: u16,
        status: Status,
        written: u32,
        memory: &RamGuard,
    ) -> Result<(), RingError> {
        let slot = &mut self.slots[usize::from(token)];
        let told = slot.buffers.write_status(status as u8);
        self.free.push(token);
        if self.broken {
            return Ok(());
        }
        self.added = true;
        let written = if told { written } else { 0 };
        self.queue.queue.add_used(&**memory, slot.head, written)
    }

    /// Tells the driver what happened in one go.
    fn settle(&mut self, memory: &RamGuard, result: Result<(), RingError>) {
        let result = result.and_then(|()| {
            if self.broken || !std::mem::take(&mut self.added) {
                return Ok(());
            }
            if self.queue.queue.needs_notification(&**memory)? {
                self.shared.interrupt.queue(self.queue.index);
            }
            Ok(())
        });
        if let Err(error) = result
            && !self.broken
        {
            if let Some(suppressed) = self.shared.throttle.allow() {
                tracing::warn!(
                    queue = self.queue.index,
                    %error,
                    suppressed,
                    "ring of a block device is broken, the device needs a reset"
                );
            }
            add(&self.shared.metrics.broken_rings, 1);
            self.broken = true;
            self.shared.interrupt.needs_reset();
        }
    }
}

impl Handler for QueueHandler {
    fn init(&mut self, ops: &mut EventOps) {
        for event in [Some(&self.queue.notify), self.engine.event()]
            .into_iter()
            .flatten()
        {
            ops.add(Events::new(event, EventSet::IN))
                .expect("a new epoll instance takes an eventfd");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        use std::os::fd::AsRawFd;
        let event = match self.engine.event() {
            Some(event) if event.as_raw_fd() == events.fd() => event,
            _ => &self.queue.notify,
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
                    self.report(token, &io::ErrorKind::OutOfMemory.into());
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
