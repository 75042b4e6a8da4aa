//! Engines: how a queue's transfers are carried out.

mod pool;
mod uring;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::pool::Pool;
use self::uring::Uring;
use super::disk::{Disk, Pieces};

pub(super) use self::pool::{PoolSetup, threads_for};

/// How a block device carries out its transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring, one ring per queue.
    IoUring,
    /// System calls that block, on a few threads per queue.
    Threads,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
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
    /// The same operation, for whoever cannot tell how long its pieces live.
    ///
    /// # Safety
    ///
    /// The pieces, the list that names them and the memory in them, are valid as long as the operation is used.
    #[allow(unsafe_code)]
    unsafe fn outliving(self) -> Operation<'static> {
        let outliving = |pieces: Pieces<'_>| {
            let list: *const [libc::iovec] = pieces.iovecs();
            // SAFETY: the caller's promise.
            unsafe { Pieces::new(&*list) }
        };
        match self {
            Self::Read { pieces, offset } => Operation::Read {
                pieces: outliving(pieces),
                offset,
            },
            Self::Write { pieces, offset } => Operation::Write {
                pieces: outliving(pieces),
                offset,
            },
            Self::Flush => Operation::Flush,
            Self::Discard { offset, len } => Operation::Discard { offset, len },
            Self::WriteZeroes { offset, len, unmap } => {
                Operation::WriteZeroes { offset, len, unmap }
            }
        }
    }

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

/// The engine of one queue: io_uring where there is one, and threads for all that it does not take.
#[derive(Debug)]
pub(super) struct Engine {
    uring: Option<Box<Uring>>,
    pool: Pool,
    /// Written to by both.
    event: EventFd,
}

impl Engine {
    /// The best engine that `disk` and the host allow, for up to `depth` operations at a time; one of threads alone unless
    /// `use_uring`. With it goes why it is not io_uring, where the host is the reason.
    ///
    /// # Errors
    ///
    /// There is no eventfd to be had.
    pub(super) fn new(
        disk: &Arc<dyn Disk>,
        depth: u16,
        use_uring: bool,
        pool: PoolSetup,
    ) -> io::Result<(Self, Option<io::Error>)> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let descriptor = disk.descriptor().filter(|_| use_uring);
        let uring = descriptor
            .map(|descriptor| Uring::new(Arc::clone(disk), descriptor, depth, &event))
            .transpose();
        let (uring, refusal) = match uring {
            Ok(uring) => (uring, None),
            Err(error) => (None, Some(error)),
        };
        let engine = Self {
            uring: uring.map(Box::new),
            pool: Pool::new(Arc::clone(disk), depth, event.try_clone()?, pool),
            event,
        };
        Ok((engine, refusal))
    }

    pub(super) fn kind(&self) -> EngineKind {
        match self.uring {
            Some(_) => EngineKind::IoUring,
            None => EngineKind::Threads,
        }
    }

    /// Readable after an operation has ended.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Prepares `operation`, to be carried out after [`Engine::kick`]. No other operation with `token` is on its way, and
    /// less than `depth` are.
    ///
    /// # Safety
    ///
    /// The pieces, the list that names them and the memory in them, stay valid until [`Engine::next`] gave `token` back or
    /// the engine was dropped with [`Engine::in_flight`] being 0.
    #[allow(unsafe_code)]
    pub(super) unsafe fn submit(&mut self, token: u16, operation: Operation<'_>) {
        // SAFETY: the caller makes the same promise.
        unsafe {
            if let Some(uring) = &mut self.uring
                && uring.submit(token, operation)
            {
                return;
            }
            self.pool.submit(token, operation);
        }
    }

    /// Hands what was prepared to the host. Returns whether all of it was taken; the rest goes with the next call.
    ///
    /// # Errors
    ///
    /// The host refuses operations for good.
    pub(super) fn kick(&mut self) -> io::Result<bool> {
        self.pool.kick();
        self.uring.as_mut().map_or(Ok(true), |uring| uring.kick())
    }

    /// Takes one operation that has ended.
    pub(super) fn next(&mut self) -> Option<Completion> {
        let completion = self.uring.as_mut().and_then(|uring| uring.next());
        completion.or_else(|| self.pool.next())
    }

    /// Number of operations that the host holds.
    pub(super) fn in_flight(&self) -> usize {
        let uring = self.uring.as_ref().map_or(0, |uring| uring.in_flight());
        uring + self.pool.in_flight()
    }

    /// Waits until one of the operations that the host holds has ended, or a signal came. At least one is held.
    pub(super) fn wait(&mut self) {
        let mut poll = libc::pollfd {
            fd: self.event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the call reads and writes one `pollfd`, and `poll` outlives it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // Going on would free memory that the kernel still writes to.
            assert!(
                error.kind() == io::ErrorKind::Interrupted,
                "cannot wait for disk operations: {error}"
            );
        }
        // Emptied before what ended is taken; there is nothing to read after a signal.
        let _ = self.event.read();
    }
}
