//! Transfers by io_uring.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use vmm_sys_util::eventfd::EventFd;

use super::{Completion, Operation};
use crate::virtio::block::disk::Disk;
use crate::virtio::block::file::{PUNCH_HOLE, ZERO_RANGE};

/// The disk in the ring's table of registered files.
const DISK: types::Fixed = types::Fixed(0);

/// A ring of its own, with the disk registered in it.
pub(crate) struct Uring {
    ring: IoUring,
    disk: Arc<dyn Disk>,
    /// The disk can be discarded and zeroed by `fallocate`.
    fallocate: bool,
    in_flight: usize,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `descriptor`, which is that of `disk`. It writes to `event` when operations have ended.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        descriptor: BorrowedFd<'_>,
        depth: u16,
        event: &EventFd,
    ) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(depth))?;
        ring.submitter().register_files(&[descriptor.as_raw_fd()])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            fallocate: disk.unmapping().fallocate,
            disk,
            in_flight: 0,
        })
    }

    /// Prepares `operation`, unless the ring has no way to do it, or the descriptor: that is what is returned.
    ///
    /// # Safety
    ///
    /// As for [`super::Engine::submit`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn submit(&mut self, token: u16, operation: Operation<'_>) -> bool {
        let fallocate = |mode, offset, len| {
            self.fallocate.then(|| {
                opcode::Fallocate::new(DISK, len)
                    .offset(offset)
                    .mode(mode)
                    .build()
            })
        };
        let entry = match operation {
            Operation::Read { pieces, offset } if self.disk.takes(pieces, offset) => {
                let iovecs = pieces.iovecs();
                let read = opcode::Readv::new(DISK, iovecs.as_ptr(), iovecs.len() as u32);
                Some(read.offset(offset).build())
            }
            Operation::Write { pieces, offset } if self.disk.takes(pieces, offset) => {
                let iovecs = pieces.iovecs();
                let write = opcode::Writev::new(DISK, iovecs.as_ptr(), iovecs.len() as u32);
                Some(write.offset(offset).build())
            }
            Operation::Read { .. } | Operation::Write { .. } => None,
            Operation::Flush => {
                let fsync = opcode::Fsync::new(DISK);
                Some(fsync.flags(types::FsyncFlags::DATASYNC).build())
            }
            Operation::Discard { offset, len } => fallocate(PUNCH_HOLE, offset, len),
            Operation::WriteZeroes { offset, len, unmap } => {
                let mode = if unmap { PUNCH_HOLE } else { ZERO_RANGE };
                fallocate(mode, offset, len)
            }
        };
        let Some(entry) = entry else {
            return false;
        };
        // SAFETY: the caller keeps the pieces and their list until the completion with this token was taken.
        let pushed = unsafe {
            self.ring
                .submission()
                .push(&entry.user_data(u64::from(token)))
        };
        // Tokens are unique, and there are as many entries as tokens.
        pushed.expect("the submission queue has an entry for each token");
        true
    }

    pub(super) fn kick(&mut self) -> io::Result<bool> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => return Ok(false),
                Ok(taken) => self.in_flight += taken,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The host is short of memory for requests.
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(false),
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }

    pub(super) fn next(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        let result = usize::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some(Completion {
            // Only tokens were submitted.
            token: entry.user_data() as u16,
            result,
            ended: None,
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}
