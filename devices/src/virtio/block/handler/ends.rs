//! How requests end.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::QueueT;

use super::{QueueHandler, RingError};
use crate::memory::RamGuard;
use crate::virtio::block::engine::Completion;
use crate::virtio::block::metrics::add;
use crate::virtio::block::slot::{Next, Work};
use crate::virtio::block::spec::Status;

impl QueueHandler {
    /// Takes the end of an operation, and tells whether its request has to go on. `now` is as for
    /// [`QueueHandler::take_chain`], for the requests that end together.
    pub(super) fn complete(
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
            Next::Done(status) => {
                if status == Status::Unsupported {
                    add(&self.shared.metrics.unsupported, 1);
                }
                status
            }
            Next::Failed(error) => {
                self.report(token, &error);
                if self.keep(token, &error) {
                    return Ok(false);
                }
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
            Work::Write { .. } if ok => {
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
            Work::Discard if ok => {
                add(&metrics.discards, 1);
                add(&metrics.discard_bytes, done);
                add(&metrics.discard_nanoseconds, time);
                1
            }
            Work::WriteZeroes if ok => {
                add(&metrics.zero_writes, 1);
                add(&metrics.zero_write_bytes, done);
                add(&metrics.zero_write_nanoseconds, time);
                1
            }
            Work::Write { .. } | Work::Discard | Work::WriteZeroes => 1,
            Work::Flush => u32::from(slot.buffers.writable_len() == 0),
        };
        metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.finish(token, status, written, memory)?;
        Ok(false)
    }

    pub(super) fn report(&mut self, token: u16, error: &io::Error) {
        add(&self.shared.metrics.host_errors, 1);
        if let Some(suppressed) = self.shared.throttle.allow() {
            let work = self.slots[usize::from(token)].work();
            tracing::warn!(queue = self.queue.index, %error, ?work, suppressed, "disk request failed");
        }
    }

    /// Keeps a request that failed with `error`, if that stops the machine: it is not answered, and begun once more when the
    /// device is started again. Its slot is free.
    pub(super) fn keep(&mut self, token: u16, error: &io::Error) -> bool {
        let slot = &mut self.slots[usize::from(token)];
        let stopper = self.shared.stopper.as_ref().filter(|_| !self.broken);
        if !stopper.is_some_and(|stopper| stopper.stops(slot.work(), error)) {
            return false;
        }
        // As nothing is begun from now on, there are no more than slots.
        self.kept.push(slot.head);
        slot.buffers.clear();
        self.free.push(token);
        let metrics = &self.shared.metrics;
        add(&metrics.stops, 1);
        metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Gives the chain back to the driver, with `written` bytes from its first writable one on, and frees the slot.
    pub(super) fn finish(
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
    pub(super) fn settle(&mut self, memory: &RamGuard, result: Result<(), RingError>) {
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
