//! The work on the request queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_manager::{EventOps, Events};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::metrics::RngMetrics;
use crate::memory::{GuestRam, RamGuard};
use crate::throttle::Throttle;
use crate::virtio::chain::{Buffers, ChainError};
use crate::virtio::{ActiveQueue, Handler, Interrupt};

/// The most random bytes one request is given; the rest of a longer buffer stays as it is.
pub const MAX_REQUEST_LEN: u64 = 64 << 10;

/// Owns the queue while the device runs.
pub(super) struct QueueHandler {
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queue: ActiveQueue,
    pub(super) source: Arc<File>,
    pub(super) metrics: Arc<RngMetrics>,
    pub(super) buffers: Buffers,
    /// A chain waits for the source to be readable.
    pub(super) waiting: bool,
    /// The queue is not worked on any more.
    pub(super) broken: bool,
    /// Bounds what the driver can have logged, however often it resets the device.
    pub(super) throttle: Arc<Throttle>,
}

/// Why the queue cannot be worked on any more.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("ring is broken")]
    Ring(#[from] virtio_queue::Error),
    #[error("source of entropy fails")]
    Source(#[source] io::Error),
}

/// What became of a look at the available ring.
enum Taken {
    Chain,
    Nothing,
    /// The source has nothing now; the chain was put back.
    Wait,
}

impl QueueHandler {
    /// Answers chains until there is none, the source has nothing, or it is enough for one go.
    fn run(&mut self, ops: &mut EventOps) {
        let memory = self.memory.memory();
        let before = self.queue.queue.next_used();
        let result = self.exchange(&memory, ops).and_then(|()| {
            if self.queue.queue.next_used() != before
                && self.queue.queue.needs_notification(&*memory)?
            {
                self.interrupt.queue(self.queue.index);
            }
            Ok(())
        });
        if let Err(failure) = result {
            let counter = match &failure {
                Failure::Ring(_) => &self.metrics.broken_rings,
                Failure::Source(_) => &self.metrics.source_errors,
            };
            add(counter, 1);
            let cause = std::error::Error::source(&failure).map(ToString::to_string);
            if let Some(suppressed) = self.throttle.allow() {
                tracing::warn!(error = %failure, cause, suppressed, "entropy device needs a reset");
            }
            self.broken = true;
            self.interrupt.needs_reset();
        }
    }

    fn exchange(&mut self, memory: &RamGuard, ops: &mut EventOps) -> Result<(), Failure> {
        let mut chains = self.queue.queue.size();
        loop {
            self.queue.queue.disable_notification(&**memory)?;
            loop {
                match self.take_chain(memory)? {
                    Taken::Chain => {}
                    Taken::Nothing => break,
                    Taken::Wait => return self.wait_for_source(ops),
                }
                chains -= 1;
                if chains == 0 {
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

    fn take_chain(&mut self, memory: &RamGuard) -> Result<Taken, Failure> {
        let Some(chain) = self.queue.queue.iter(&**memory)?.next() else {
            return Ok(Taken::Nothing);
        };
        let head = chain.head_index();
        let loaded =
            self.buffers
                .load(memory, chain)
                .and_then(|()| match self.buffers.writable_len() {
                    0 => Err(ChainError::ShortWritable { have: 0, need: 1 }),
                    _ => Ok(()),
                });
        let written = match loaded {
            Ok(()) => {
                self.buffers.truncate_writable(MAX_REQUEST_LEN);
                match read(&self.source, &self.buffers) {
                    Ok(0) => return Err(Failure::Source(io::ErrorKind::UnexpectedEof.into())),
                    Ok(count) => {
                        add(&self.metrics.requests, 1);
                        add(&self.metrics.bytes, count as u64);
                        // At most MAX_REQUEST_LEN.
                        count as u32
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.queue.queue.go_to_previous_position();
                        return Ok(Taken::Wait);
                    }
                    Err(error) => return Err(Failure::Source(error)),
                }
            }
            Err(error) => {
                add(&self.metrics.malformed, 1);
                if let Some(suppressed) = self.throttle.allow() {
                    tracing::warn!(%error, suppressed, "malformed entropy request");
                }
                0
            }
        };
        self.queue.queue.add_used(&**memory, head, written)?;
        Ok(Taken::Chain)
    }

    /// Lets the source wake this worker.
    fn wait_for_source(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        add(&self.metrics.waits, 1);
        if !self.waiting {
            ops.add(Events::new(&*self.source, EventSet::IN))
                .map_err(|error| Failure::Source(io::Error::other(error.to_string())))?;
            self.waiting = true;
        }
        Ok(())
    }
}

impl Handler for QueueHandler {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.queue.notify, EventSet::IN))
            .expect("a new epoll instance takes an eventfd");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.queue.notify.as_raw_fd() {
            // Reading makes it wait for the next signal; there is none to read if it was read before.
            let _ = self.queue.notify.read();
        } else if std::mem::take(&mut self.waiting) {
            // Readable all the time while nothing is wanted, the source would keep the worker awake.
            let _ = ops.remove(Events::empty(&*self.source));
        }
        if !self.broken && !self.waiting {
            self.run(ops);
        }
    }

    fn drain(&mut self) {
        // A chain that waits for the source is still in the available ring.
        self.waiting = false;
        self.buffers.clear();
    }
}

/// Fills the writable part of `buffers` from `source` and tells how many bytes were read.
fn read(source: &File, buffers: &Buffers) -> io::Result<usize> {
    let iovecs = buffers.writable();
    loop {
        // SAFETY: `buffers` checked that the pieces, of which there are at most 1024, are memory that may be written, and
        // keeps them mapped.
        #[allow(unsafe_code)]
        let count = unsafe {
            libc::readv(
                source.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
            )
        };
        match usize::try_from(count) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
