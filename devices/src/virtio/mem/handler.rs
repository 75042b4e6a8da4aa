//! The work on the request queue.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, Events};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use zerocopy::{FromZeros, IntoBytes};

use super::handle::Shared;
use super::metrics::{MemMetrics, count};
use super::region::MemRegion;
use super::spec::{BlockState, RESPONSE_LEN, RawRequest, Request, Response};
use crate::memory::{GuestRam, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::chain::{Buffers, ChainError};
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// Bytes plugged and unplugged in one go before the worker looks for other events: the host may have to clear them.
const MAX_BYTES_AT_ONCE: u64 = 1 << 30;

/// Owns the queue while the device runs.
pub(super) struct QueueHandler {
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queue: ActiveQueue,
    pub(super) region: Arc<dyn MemRegion>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<MemMetrics>,
    pub(super) buffers: Buffers,
    /// The queue is not worked on any more.
    pub(super) broken: bool,
    /// Bounds what the driver can have logged, however often it resets the device.
    pub(super) throttle: Arc<Throttle>,
}

/// The driver broke the ring.
type RingError = virtio_queue::Error;

impl QueueHandler {
    /// Answers chains until there is none, or it is enough for one go.
    pub(super) fn run(&mut self) {
        let memory = self.memory.memory();
        let before = self.queue.queue.next_used();
        let result = self.exchange(&memory).and_then(|()| {
            if self.queue.queue.next_used() != before
                && self.queue.queue.needs_notification(&*memory)?
            {
                self.interrupt.queue(self.queue.index);
            }
            Ok(())
        });
        if let Err(error) = result {
            count(&self.metrics.broken_rings);
            if let Some(suppressed) = self.throttle.allow() {
                tracing::warn!(%error, suppressed, "ring of a memory device is broken, the device needs a reset");
            }
            self.broken = true;
            self.interrupt.needs_reset();
        }
    }

    fn exchange(&mut self, memory: &RamGuard) -> Result<(), RingError> {
        let mut chains = self.queue.queue.size();
        let mut bytes = 0_u64;
        loop {
            self.queue.queue.disable_notification(&**memory)?;
            while let Some(moved) = self.take_chain(memory)? {
                chains -= 1;
                bytes = bytes.saturating_add(moved);
                if chains == 0 || bytes >= MAX_BYTES_AT_ONCE {
                    // Wakes this worker once more, after other events; a full counter wakes as well.
                    let _ = self.queue.notify.write(1);
                    return Ok(());
                }
            }
            if !self.queue.queue.enable_notification(&**memory)? {
                return Ok(());
            }
        }
    }

    /// Answers one chain. Returns the bytes it plugged or unplugged, none if there is no chain.
    fn take_chain(&mut self, memory: &RamGuard) -> Result<Option<u64>, RingError> {
        let Some(chain) = self.queue.queue.iter(&**memory)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        let mut raw = RawRequest::new_zeroed();
        let loaded = self
            .buffers
            .load(memory, chain)
            .and_then(|()| self.buffers.read_front(raw.as_mut_bytes()))
            .and_then(|()| self.check_room());
        let (written, moved) = match loaded {
            Ok(()) => {
                let before = self.shared.plugged.load(Ordering::Relaxed);
                let response = self.answer(&raw);
                let after = self.shared.plugged.load(Ordering::Relaxed);
                // There is room.
                let _ = self.buffers.write_front(response.to_wire().as_bytes());
                (RESPONSE_LEN, after.abs_diff(before))
            }
            Err(error) => {
                count(&self.metrics.malformed);
                if let Some(suppressed) = self.throttle.allow() {
                    tracing::warn!(%error, suppressed, "malformed request to a memory device");
                }
                (0, 0)
            }
        };
        self.queue.queue.add_used(&**memory, head, written)?;
        Ok(Some(moved))
    }

    /// Nothing is done for a request that cannot be answered.
    fn check_room(&self) -> Result<(), ChainError> {
        let (have, need) = (self.buffers.writable_len(), RESPONSE_LEN.into());
        if have < need {
            return Err(ChainError::ShortWritable { have, need });
        }
        Ok(())
    }

    fn answer(&self, raw: &RawRequest) -> Response {
        let response = match Request::parse(raw, &self.shared.geometry) {
            Some(Request::Plug(blocks)) => self.plug(&blocks),
            Some(Request::Unplug(blocks)) => self.unplug(&blocks),
            Some(Request::UnplugAll) => self.unplug_all(),
            Some(Request::State(blocks)) => {
                count(&self.metrics.states);
                Response::State(self.state(&blocks))
            }
            None => Response::Error,
        };
        match response {
            Response::Ack | Response::State(_) => {}
            Response::Nack => count(&self.metrics.beyond_requested),
            Response::Busy => count(&self.metrics.host_errors),
            Response::Error => count(&self.metrics.refused),
        }
        response
    }

    fn state(&self, blocks: &Range<usize>) -> BlockState {
        self.shared.blocks().state(blocks)
    }

    fn plug(&self, blocks: &Range<usize>) -> Response {
        if self.state(blocks) != BlockState::Unplugged {
            return Response::Error;
        }
        let (offset, len) = self.shared.geometry.bytes(blocks);
        let plugged = self.shared.plugged.load(Ordering::Relaxed);
        if plugged.saturating_add(len) > self.shared.requested.load(Ordering::Acquire) {
            return Response::Nack;
        }
        if let Err(error) = self.region.populate(offset, len) {
            self.report("take memory for", &error);
            if let Err(error) = self.region.discard(offset, len) {
                self.report("give back memory of", &error);
            }
            return Response::Busy;
        }
        self.shared.change(|all| all.plug(blocks));
        count(&self.metrics.plugs);
        Response::Ack
    }

    fn unplug(&self, blocks: &Range<usize>) -> Response {
        if self.state(blocks) != BlockState::Plugged {
            return Response::Error;
        }
        let (offset, len) = self.shared.geometry.bytes(blocks);
        if let Err(error) = self.region.discard(offset, len) {
            self.report("give back memory of", &error);
            return Response::Busy;
        }
        self.shared.change(|all| all.unplug(blocks));
        count(&self.metrics.unplugs);
        Response::Ack
    }

    /// Discards the whole region: one call to the host, however scattered the blocks are.
    fn unplug_all(&self) -> Response {
        if let Err(error) = self.region.discard(0, self.shared.geometry.region_size) {
            self.report("give back memory of", &error);
            return Response::Busy;
        }
        self.shared.change(|all| all.clear());
        count(&self.metrics.unplug_alls);
        Response::Ack
    }

    fn report(&self, doing: &str, error: &io::Error) {
        if let Some(suppressed) = self.throttle.allow() {
            tracing::warn!(%error, suppressed, "cannot {doing} a memory device");
        }
    }
}

impl Handler for QueueHandler {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.queue.notify, EventSet::IN))
            .expect("a new epoll instance takes an eventfd");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Reading makes it wait for the next signal; there is none to read if it was read before.
        let _ = self.queue.notify.read();
        if !self.broken {
            self.run();
        }
    }

    fn drain(&mut self) {
        // Requests are answered as they are taken: nothing is in flight.
        self.buffers.clear();
    }
}
