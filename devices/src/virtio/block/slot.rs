//! One request on its way.

use std::io;
use std::time::{Duration, Instant};

use super::disk::Pieces;
use super::engine::{Engine, Operation};
use super::spec::Status;
use crate::virtio::chain::Buffers;

/// How often an operation that the host wants to have tried again is tried without getting on.
const MAX_ATTEMPTS: u8 = 16;

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
        then_flush: bool,
    },
    Flush,
    /// The flush after a write that must be durable when it completes.
    FlushWrite,
}

/// What follows the end of an operation.
#[derive(Debug)]
pub(super) enum Next {
    /// The request goes on: submit again.
    Again,
    /// The request is done.
    Done(Status),
    /// The request failed on the host.
    Failed(io::Error),
}

/// A place for one request, used again and again, so that no request allocates.
#[derive(Debug)]
pub(super) struct Slot {
    /// Head of the chain, for the used ring.
    pub(super) head: u16,
    /// The chain. After the request was parsed, only its data are left.
    pub(super) buffers: Buffers,
    work: Work,
    begun: Instant,
    /// What is left of the data once a transfer stopped early.
    rest: Vec<libc::iovec>,
    total: u64,
    done: u64,
    attempts: u8,
}

// SAFETY: the pointers in `rest` lead where those of `buffers` lead, which is Send.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            head: 0,
            buffers: Buffers::new(),
            work: Work::Flush,
            begun: Instant::now(),
            rest: Vec::new(),
            total: 0,
            done: 0,
            attempts: 0,
        }
    }

    /// Begins `work` on the data in `buffers`, at the time `now`.
    pub(super) fn begin(&mut self, work: Work, now: Instant) {
        self.work = work;
        self.begun = now;
        self.rest.clear();
        self.done = 0;
        self.attempts = 0;
        self.total = match work {
            Work::Read { .. } => self.buffers.writable_len(),
            Work::Write { .. } => self.buffers.readable_len(),
            Work::Flush | Work::FlushWrite => 0,
        };
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// How long the work took that ended at `end`.
    pub(super) fn time_until(&self, end: Instant) -> Duration {
        end.saturating_duration_since(self.begun)
    }

    /// Bytes transferred.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Submits what is left of the work.
    ///
    /// # Safety
    ///
    /// The slot is neither dropped nor used until `engine` gave `token` back, or holds no operation any more.
    #[allow(unsafe_code)]
    pub(super) unsafe fn submit(&self, engine: &mut Engine, token: u16) {
        let list = match self.work {
            _ if self.done > 0 => &self.rest,
            Work::Read { .. } => self.buffers.writable(),
            Work::Write { .. } => self.buffers.readable(),
            Work::Flush | Work::FlushWrite => &[],
        };
        // SAFETY: the pieces come from `buffers`, which checked them and keeps their memory; a read gets writable ones.
        let pieces = unsafe { Pieces::new(list) };
        let operation = match self.work {
            Work::Read { offset } => Operation::Read {
                pieces,
                offset: offset + self.done,
            },
            Work::Write { offset, .. } => Operation::Write {
                pieces,
                offset: offset + self.done,
            },
            Work::Flush | Work::FlushWrite => Operation::Flush,
        };
        // SAFETY: the caller leaves the slot alone, and with it the list and the memory.
        unsafe { engine.submit(token, operation) }
    }

    /// Takes the result of the last submission.
    pub(super) fn advance(&mut self, result: io::Result<usize>) -> Next {
        let count = match result {
            Ok(count) => count as u64,
            Err(error) => {
                let again = matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                );
                self.attempts += 1;
                return if again && self.attempts < MAX_ATTEMPTS {
                    Next::Again
                } else {
                    Next::Failed(error)
                };
            }
        };
        match self.work {
            Work::Flush | Work::FlushWrite => return Next::Done(Status::Ok),
            // The disk ends before its size: it was made smaller.
            Work::Read { .. } if count == 0 => {
                return Next::Failed(io::ErrorKind::UnexpectedEof.into());
            }
            Work::Write { .. } if count == 0 => {
                return Next::Failed(io::ErrorKind::WriteZero.into());
            }
            Work::Read { .. } | Work::Write { .. } => {}
        }
        let count = count.min(self.total - self.done);
        if self.done + count < self.total {
            self.skip(count as usize);
            self.done += count;
            self.attempts = 0;
            return Next::Again;
        }
        self.done = self.total;
        if let Work::Write {
            then_flush: true, ..
        } = self.work
        {
            self.work = Work::FlushWrite;
            self.attempts = 0;
            return Next::Again;
        }
        Next::Done(Status::Ok)
    }

    /// Takes `count` bytes off what is left of the data, which is more.
    fn skip(&mut self, mut count: usize) {
        if self.done == 0 {
            self.rest.extend_from_slice(match self.work {
                Work::Read { .. } => self.buffers.writable(),
                _ => self.buffers.readable(),
            });
        }
        let whole = self
            .rest
            .iter()
            .take_while(|piece| {
                let fits = piece.iov_len <= count;
                if fits {
                    count -= piece.iov_len;
                }
                fits
            })
            .count();
        self.rest.drain(..whole);
        if let Some(first) = self.rest.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(count);
            first.iov_len -= count;
        }
    }
}
