//! Engines: how a queue's transfers are carried out.

mod blocking;
mod uring;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use self::blocking::Blocking;
use self::uring::Uring;
use super::disk::{Disk, Pieces};

/// How a block device carries out its transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring, one ring per queue: many transfers at a time.
    IoUring,
    /// Blocking system calls on the worker thread: one transfer at a time.
    Blocking,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Blocking => "blocking",
        })
    }
}

/// One transfer, a flush, or what is done to a whole range. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation<'a> {
    Read { pieces: Pieces<'a>, offset: u64 },
    Write { pieces: Pieces<'a>, offset: u64 },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

impl Operation<'_> {
    /// Carries the operation out by calls that block, and tells how many bytes a transfer moved.
    fn carry_out(self, disk: &dyn Disk) -> io::Result<usize> {
        match self {
            Self::Read { pieces, offset } => disk.read_at(pieces, offset),
            Self::Write { pieces, offset } => disk.write_at(pieces, offset),
            Self::Flush => disk.flush().map(|()| 0),
            Self::Discard { offset, len } => disk.discard(offset, len).map(|()| 0),
            Self::WriteZeroes { offset, len, unmap } => {
                disk.write_zeroes(offset, len, unmap).map(|()| 0)
            }
        }
    }
}

/// An operation that ended.
#[derive(Debug)]
pub(super) struct Completion {
    /// The token it was submitted with.
    pub(super) token: u16,
    /// Bytes transferred, or the host's error.
    pub(super) result: io::Result<usize>,
    /// When it ended; none is just now.
    pub(super) ended: Option<Instant>,
}

/// The engine of one queue.
#[derive(Debug)]
pub(super) enum Engine {
    Uring(Box<Uring>),
    Blocking(Blocking),
}

impl Engine {
    /// The best engine that `disk` and the host allow, for up to `depth` operations at a time. With it goes why it is not
    /// io_uring, where the host is the reason.
    pub(super) fn new(disk: &Arc<dyn Disk>, depth: u16) -> (Self, Option<io::Error>) {
        let refusal = match disk
            .descriptor()
            .map(|descriptor| Uring::new(Arc::clone(disk), descriptor, depth))
        {
            Some(Ok(uring)) => return (Self::Uring(Box::new(uring)), None),
            Some(Err(error)) => Some(error),
            None => None,
        };
        (
            Self::Blocking(Blocking::new(Arc::clone(disk), depth)),
            refusal,
        )
    }

    pub(super) fn kind(&self) -> EngineKind {
        match self {
            Self::Uring(_) => EngineKind::IoUring,
            Self::Blocking(_) => EngineKind::Blocking,
        }
    }

    /// Readable after an operation has ended on its own; none if all operations end while they are submitted.
    pub(super) fn event(&self) -> Option<&EventFd> {
        match self {
            Self::Uring(uring) => Some(uring.event()),
            Self::Blocking(_) => None,
        }
    }

    /// Prepares `operation`, to be carried out at the latest by [`Engine::kick`], and tells whether it has ended already. No
    /// other operation with `token` is on its way, and less than `depth` are.
    ///
    /// # Safety
    ///
    /// The pieces, the list that names them and the memory in them, stay valid until [`Engine::next`] gave `token` back or
    /// the engine was dropped with [`Engine::in_flight`] being 0.
    #[allow(unsafe_code)]
    pub(super) unsafe fn submit(&mut self, token: u16, operation: Operation<'_>) -> bool {
        match self {
            // SAFETY: the caller makes the same promise.
            Self::Uring(uring) => unsafe { uring.submit(token, operation) },
            Self::Blocking(blocking) => {
                blocking.submit(token, operation);
                true
            }
        }
    }

    /// Hands what was prepared to the host. Returns whether all of it was taken; the rest goes with the next call.
    ///
    /// # Errors
    ///
    /// The host refuses operations for good.
    pub(super) fn kick(&mut self) -> io::Result<bool> {
        match self {
            Self::Uring(uring) => uring.kick(),
            Self::Blocking(_) => Ok(true),
        }
    }

    /// Takes one operation that has ended.
    pub(super) fn next(&mut self) -> Option<Completion> {
        match self {
            Self::Uring(uring) => uring.next(),
            Self::Blocking(blocking) => blocking.next(),
        }
    }

    /// Number of operations that the host holds.
    pub(super) fn in_flight(&self) -> usize {
        match self {
            Self::Uring(uring) => uring.in_flight(),
            Self::Blocking(_) => 0,
        }
    }

    /// Waits until one of the operations that the host holds has ended, or a signal came. At least one is held.
    pub(super) fn wait(&mut self) {
        match self {
            Self::Uring(uring) => uring.wait(),
            Self::Blocking(_) => {}
        }
    }
}
