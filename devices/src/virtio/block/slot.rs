//! One request on its way.

use std::io;
use std::time::{Duration, Instant};

use super::disk::{Pieces, is_unsupported};
use super::engine::{Engine, Operation};
use super::spec::{Range, Status};
use crate::virtio::chain::Buffers;

/// How often an operation that the host wants to have tried again is tried without getting on.
const MAX_ATTEMPTS: u8 = 16;

/// How many times [`ZEROS`] are written by one operation.
const ZERO_PIECES: usize = 16;

/// What is written where the host has no way to zero a range; as aligned as a disk wants it.
static ZEROS: Zeros = Zeros([0; 1 << 16]);

#[repr(align(4096))]
struct Zeros([u8; 1 << 16]);

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    /// On the slot's ranges.
    Discard,
    /// On the slot's ranges.
    WriteZeroes,
}

impl Work {
    /// What it is called, as in `write-zeroes`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }
}

/// What an operation on its way does for the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The work itself.
    Work,
    /// Writes zeros, as the host has no better way.
    Zeros,
    /// Makes durable what was written.
    Flush,
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
    /// What is discarded or zeroed, range after range; bounded, and none is empty.
    pub(super) ranges: Vec<Range>,
    work: Work,
    /// What was written must be durable in the end.
    then_flush: bool,
    step: Step,
    begun: Instant,
    /// What is left of the data once a transfer stopped early, and the zeros that are written next.
    rest: Vec<libc::iovec>,
    total: u64,
    done: u64,
    /// The range that it is the turn of, and how many of its bytes are done.
    range: usize,
    range_done: u64,
    attempts: u8,
}

// SAFETY: the pointers in `rest` lead where those of `buffers` lead, which is Send, or to a static that is only read.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            head: 0,
            buffers: Buffers::new(),
            ranges: Vec::new(),
            work: Work::Flush,
            then_flush: false,
            step: Step::Work,
            begun: Instant::now(),
            rest: Vec::new(),
            total: 0,
            done: 0,
            range: 0,
            range_done: 0,
            attempts: 0,
        }
    }

    /// Begins `work` on the data in `buffers`, or on `ranges`, of which there is at least one, at the time `now`. What it
    /// writes is durable in the end if `then_flush`.
    pub(super) fn begin(&mut self, work: Work, then_flush: bool, now: Instant) {
        self.work = work;
        self.then_flush = then_flush && matches!(work, Work::Write { .. } | Work::WriteZeroes);
        self.step = Step::Work;
        self.begun = now;
        self.rest.clear();
        self.done = 0;
        self.range = 0;
        self.range_done = 0;
        self.attempts = 0;
        self.total = match work {
            Work::Read { .. } => self.buffers.writable_len(),
            Work::Write { .. } => self.buffers.readable_len(),
            Work::Flush => 0,
            Work::Discard | Work::WriteZeroes => self.ranges.iter().map(|range| range.len).sum(),
        };
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// How long the work took that ended at `end`.
    pub(super) fn time_until(&self, end: Instant) -> Duration {
        end.saturating_duration_since(self.begun)
    }

    /// Bytes that the work is about.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of it that are done.
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
            Work::Flush | Work::Discard => &[],
            Work::WriteZeroes => self.rest.as_slice(),
            _ if self.done > 0 => &self.rest,
            Work::Read { .. } => self.buffers.writable(),
            Work::Write { .. } => self.buffers.readable(),
        };
        // SAFETY: the pieces come from `buffers`, which checked them and keeps their memory; a read gets writable ones. Or
        // they are a static, which is only written from.
        let pieces = unsafe { Pieces::new(list) };
        let operation = match (self.step, self.work) {
            (Step::Flush, _) | (_, Work::Flush) => Operation::Flush,
            (_, Work::Read { offset }) => Operation::Read {
                pieces,
                offset: offset + self.done,
            },
            (_, Work::Write { offset }) => Operation::Write {
                pieces,
                offset: offset + self.done,
            },
            (step, Work::Discard | Work::WriteZeroes) => {
                let Range { offset, len, unmap } = self.ranges[self.range];
                match (step, self.work) {
                    (Step::Zeros, _) => Operation::Write {
                        pieces,
                        offset: offset + self.range_done,
                    },
                    (_, Work::Discard) => Operation::Discard { offset, len },
                    _ => Operation::WriteZeroes { offset, len, unmap },
                }
            }
        };
        // SAFETY: the caller leaves the slot alone, and with it the list and the memory.
        unsafe { engine.submit(token, operation) };
    }

    /// Takes the result of the last submission.
    pub(super) fn advance(&mut self, result: io::Result<usize>) -> Next {
        let count = match result {
            Ok(count) => count as u64,
            Err(error) => return self.retry(error),
        };
        if self.step == Step::Flush {
            return Next::Done(Status::Ok);
        }
        match self.work {
            Work::Flush => return Next::Done(Status::Ok),
            Work::Discard | Work::WriteZeroes => return self.advance_range(count),
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
        self.end()
    }

    /// What follows an error of the host.
    fn retry(&mut self, error: io::Error) -> Next {
        if self.step == Step::Work && is_unsupported(&error) {
            match self.work {
                // The host could do it when it was asked first.
                Work::Discard => return Next::Done(Status::Unsupported),
                Work::WriteZeroes => {
                    self.step = Step::Zeros;
                    self.take_zeros();
                    return Next::Again;
                }
                Work::Read { .. } | Work::Write { .. } | Work::Flush => {}
            }
        }
        let again = matches!(
            error.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
        );
        self.attempts += 1;
        if again && self.attempts < MAX_ATTEMPTS {
            Next::Again
        } else {
            Next::Failed(error)
        }
    }

    /// Goes on with the ranges after an operation that succeeded, which wrote `count` zeros if that is what it does.
    fn advance_range(&mut self, count: u64) -> Next {
        let len = self.ranges[self.range].len;
        let count = match self.step {
            Step::Zeros if count == 0 => return Next::Failed(io::ErrorKind::WriteZero.into()),
            Step::Zeros => count.min(len - self.range_done),
            _ => len,
        };
        self.attempts = 0;
        self.done += count;
        self.range_done += count;
        if self.range_done == len {
            self.range += 1;
            self.range_done = 0;
        }
        if self.range == self.ranges.len() {
            return self.end();
        }
        if self.step == Step::Zeros {
            self.take_zeros();
        }
        Next::Again
    }

    /// What follows the last operation of the work.
    fn end(&mut self) -> Next {
        if !self.then_flush {
            return Next::Done(Status::Ok);
        }
        self.step = Step::Flush;
        self.attempts = 0;
        Next::Again
    }

    /// Makes `rest` the zeros that are written next.
    fn take_zeros(&mut self) {
        self.rest.clear();
        let mut left = self.ranges[self.range].len - self.range_done;
        while left > 0 && self.rest.len() < ZERO_PIECES {
            let len = left.min(ZEROS.0.len() as u64);
            self.rest.push(libc::iovec {
                iov_base: ZEROS.0.as_ptr().cast_mut().cast(),
                iov_len: len as usize,
            });
            left -= len;
        }
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
