//! Descriptor chains as buffers in host memory.

mod walk;

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::memory::{Ram, RamGuard};

pub use self::walk::Walk;

/// The most pieces one chain may have: what one `preadv` or `pwritev` takes (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Why a chain cannot be worked on (virtio 1.2, 2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The head leads to no descriptor: it is beyond the table, or an indirect table is empty or invalid.
    #[error("descriptor chain is empty")]
    Empty,
    /// The chain breaks off where a next descriptor was announced: it loops, leaves the table, is longer than the queue or
    /// than 4 GiB, or goes on in an invalid indirect table.
    #[error("descriptor chain breaks off before its end")]
    Broken,
    /// A device-readable descriptor follows a device-writable one.
    #[error("device-readable descriptor follows a device-writable one")]
    Order,
    /// A buffer is not wholly in guest memory.
    #[error("buffer at {address:#x} of {len} bytes is not in guest memory")]
    Address {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// The chain has more than [`MAX_PIECES`] pieces.
    #[error("descriptor chain has more than {MAX_PIECES} pieces")]
    TooLong,
    /// The device-readable part is shorter than what the request must begin with.
    #[error("device-readable part has {have} bytes, the request needs {need}")]
    ShortReadable {
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// The device-writable part is shorter than the answer.
    #[error("device-writable part has {have} bytes, the answer needs {need}")]
    ShortWritable {
        /// Bytes there are.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
}

/// One chain as two lists of buffers in host memory, ready for `preadv` and `pwritev`.
///
/// Meant to be reused: loading allocates only until the lists have grown to the longest chain seen, which is bounded. The
/// map of guest memory that the last chain was loaded from is held, so that the addresses stay valid until the next
/// [`Buffers::load`] or [`Buffers::clear`], or until this value is dropped.
#[derive(Default)]
pub struct Buffers {
    memory: Option<Arc<Ram>>,
    readable: Pieces,
    writable: Pieces,
    reserved: Pieces,
    status: Option<*mut u8>,
}

// SAFETY: the pointers lead into mappings owned by `memory`, which moves along and is itself Send; neither is bound to a
// thread.
#[allow(unsafe_code)]
unsafe impl Send for Buffers {}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffers")
            .field("readable_len", &self.readable.len)
            .field("writable_len", &self.writable.len)
            .field("status", &self.status.is_some())
            .finish_non_exhaustive()
    }
}

impl Buffers {
    /// Empty lists.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the content by the buffers of `chain`, resolved in `memory`.
    ///
    /// A buffer that lies in two adjoining regions of guest memory becomes two pieces; one of no bytes is left out.
    ///
    /// # Errors
    ///
    /// [`ChainError`]. Nothing is readable then, and writable is at most the last byte of a chain whose end was found: the
    /// status byte, where the device type has one.
    pub fn load(
        &mut self,
        memory: &RamGuard,
        chain: impl Iterator<Item = Descriptor>,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.reserved.clear();
        self.status = None;
        let held = self.memory.as_ref();
        if !held.is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), &raw const **memory)) {
            self.memory = Some(memory.clone().into_inner());
        }

        let result = self.resolve(memory, chain);
        if let Err((_, status)) = result {
            self.readable.clear();
            self.writable.clear();
            if let Some(status) = status {
                self.writable.vec.push(status);
                self.writable.len = 1;
            }
        }
        result.map_err(|(error, _)| error)
    }

    /// Fills the lists. With an error goes the last byte of the chain, if the whole chain was seen and it is writable.
    fn resolve(
        &mut self,
        memory: &RamGuard,
        chain: impl Iterator<Item = Descriptor>,
    ) -> Result<(), (ChainError, Option<libc::iovec>)> {
        let mut fault = None;
        let mut complete = false;
        let mut writing = false;
        let mut count = 0_usize;
        let mut status = None;
        for descriptor in chain {
            count += 1;
            if count > MAX_PIECES || self.readable.vec.len() + self.writable.vec.len() > MAX_PIECES
            {
                return Err((ChainError::TooLong, None));
            }
            complete = !descriptor.has_next();
            status = None;
            if descriptor.is_write_only() {
                writing = true;
            } else if writing {
                fault.get_or_insert(ChainError::Order);
                continue;
            }
            let (pieces, access) = if writing {
                (&mut self.writable, Permissions::Write)
            } else {
                (&mut self.readable, Permissions::Read)
            };
            let (address, len) = (descriptor.addr(), descriptor.len());
            if len == 0 {
                continue;
            }
            let resolved =
                memory
                    .get_slices(address, len as usize, access)
                    .and_then(|mut slices| {
                        slices.try_for_each(|slice| slice.map(|slice| pieces.push(&slice)))
                    });
            match resolved {
                Ok(()) if writing => status = pieces.last_byte(),
                Ok(()) => {}
                Err(_) => {
                    fault.get_or_insert(ChainError::Address {
                        address: address.0,
                        len,
                    });
                }
            }
        }
        if count == 0 {
            return Err((ChainError::Empty, None));
        }
        if !complete {
            return Err((ChainError::Broken, None));
        }
        if self.readable.vec.len() + self.writable.vec.len() > MAX_PIECES {
            fault.get_or_insert(ChainError::TooLong);
        }
        fault.map_or(Ok(()), |fault| Err((fault, status)))
    }

    /// Forgets the chain, and lets the map of guest memory go.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.reserved.clear();
        self.status = None;
        self.memory = None;
    }

    /// What the device reads, in order, without what [`Buffers::read_front`] took.
    pub fn readable(&self) -> &[libc::iovec] {
        self.readable.iovecs()
    }

    /// What the device writes, in order, without what [`Buffers::write_front`] and [`Buffers::take_status`] took.
    pub fn writable(&self) -> &[libc::iovec] {
        self.writable.iovecs()
    }

    /// Sum of the lengths in [`Buffers::readable`], in bytes.
    pub fn readable_len(&self) -> u64 {
        self.readable.len
    }

    /// Sum of the lengths in [`Buffers::writable`], in bytes.
    pub fn writable_len(&self) -> u64 {
        self.writable.len
    }

    /// Copies the first bytes of the readable part to `front` and takes them away, wherever descriptors divide them. The
    /// guest's bytes are read once.
    ///
    /// # Errors
    ///
    /// [`ChainError::ShortReadable`]; nothing is taken then.
    pub fn read_front(&mut self, front: &mut [u8]) -> Result<(), ChainError> {
        let need = front.len() as u64;
        if self.readable.len < need {
            return Err(ChainError::ShortReadable {
                have: self.readable.len,
                need,
            });
        }
        let mut done = 0;
        self.readable.take_front(need, |slice| {
            let part = &mut front[done..done + slice.len()];
            done += slice.copy_to(part);
        });
        Ok(())
    }

    /// Takes the first `len` bytes of the readable part away unread, or all if there are fewer.
    pub fn skip_front(&mut self, len: u64) {
        self.readable.take_front(len.min(self.readable.len), |_| {});
    }

    /// Copies `front` to the first bytes of the writable part and takes them away.
    ///
    /// # Errors
    ///
    /// [`ChainError::ShortWritable`]; nothing is written or taken then.
    pub fn write_front(&mut self, front: &[u8]) -> Result<(), ChainError> {
        let need = front.len() as u64;
        if self.writable.len < need {
            return Err(ChainError::ShortWritable {
                have: self.writable.len,
                need,
            });
        }
        let mut done = 0;
        self.writable.take_front(need, |slice| {
            slice.copy_from(&front[done..done + slice.len()]);
            done += slice.len();
        });
        Ok(())
    }

    /// Takes the first `len` bytes of the writable part away, to be written by [`Buffers::write_reserved`] once it is known
    /// what follows them.
    ///
    /// # Errors
    ///
    /// [`ChainError::ShortWritable`]; nothing is taken then.
    pub fn reserve_front(&mut self, len: u64) -> Result<(), ChainError> {
        if self.writable.len < len {
            return Err(ChainError::ShortWritable {
                have: self.writable.len,
                need: len,
            });
        }
        self.reserved.clear();
        let reserved = &mut self.reserved;
        self.writable.take_front(len, |slice| reserved.push(&slice));
        Ok(())
    }

    /// Copies `bytes` to the place that [`Buffers::reserve_front`] took away; what goes beyond it is left out.
    pub fn write_reserved(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in self.reserved.iovecs() {
            let (now, later) = rest.split_at(rest.len().min(piece.iov_len));
            volatile(piece).copy_from(now);
            rest = later;
        }
    }

    /// Copies `bytes` to the writable part, `offset` bytes after its beginning, and takes nothing away.
    ///
    /// # Errors
    ///
    /// [`ChainError::ShortWritable`]; nothing is written then.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ChainError> {
        let need = offset.saturating_add(bytes.len() as u64);
        if self.writable.len < need {
            return Err(ChainError::ShortWritable {
                have: self.writable.len,
                need,
            });
        }
        let mut skip = offset as usize;
        let mut rest = bytes;
        for iovec in self.writable.iovecs() {
            if rest.is_empty() {
                break;
            }
            if skip >= iovec.iov_len {
                skip -= iovec.iov_len;
                continue;
            }
            let len = rest.len().min(iovec.iov_len - skip);
            let (now, later) = rest.split_at(len);
            volatile(iovec)
                .subslice(skip, len)
                .expect("checked against the piece's length")
                .copy_from(now);
            rest = later;
            skip = 0;
        }
        Ok(())
    }

    /// Takes the last writable byte away, as the place for [`Buffers::write_status`], so that the writable part is data
    /// only.
    ///
    /// # Errors
    ///
    /// [`ChainError::ShortWritable`] if nothing is writable.
    pub fn take_status(&mut self) -> Result<(), ChainError> {
        let Some(last) = self.writable.last_byte() else {
            return Err(ChainError::ShortWritable { have: 0, need: 1 });
        };
        self.status = Some(last.iov_base.cast());
        self.writable.truncate(self.writable.len - 1);
        Ok(())
    }

    /// Writes the status byte where [`Buffers::take_status`] found its place, and tells whether there was one.
    pub fn write_status(&mut self, status: u8) -> bool {
        let Some(at) = self.status else { return false };
        // SAFETY: `at` is the last byte of a piece of the loaded chain, in a mapping that `self.memory` keeps; the guest
        // may write it at the same time, hence volatile.
        #[allow(unsafe_code)]
        unsafe {
            at.write_volatile(status);
        }
        true
    }

    /// Shortens the readable part to its first `len` bytes; a longer `len` does nothing.
    pub fn truncate_readable(&mut self, len: u64) {
        self.readable.truncate(len);
    }

    /// Shortens the writable part to its first `len` bytes; a longer `len` does nothing.
    pub fn truncate_writable(&mut self, len: u64) {
        self.writable.truncate(len);
    }
}

/// Buffers of one direction. Pieces before `first` were taken; no piece is empty.
#[derive(Default)]
struct Pieces {
    vec: Vec<libc::iovec>,
    first: usize,
    len: u64,
}

impl Pieces {
    fn clear(&mut self) {
        self.vec.clear();
        self.first = 0;
        self.len = 0;
    }

    fn push(&mut self, slice: &VolatileSlice<'_>) {
        if slice.is_empty() {
            return;
        }
        self.vec.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        self.len += slice.len() as u64;
    }

    fn iovecs(&self) -> &[libc::iovec] {
        &self.vec[self.first..]
    }

    /// The last byte, as a piece of its own.
    fn last_byte(&self) -> Option<libc::iovec> {
        let last = self.iovecs().last()?;
        Some(libc::iovec {
            iov_base: last.iov_base.wrapping_byte_add(last.iov_len - 1),
            iov_len: 1,
        })
    }

    /// Gives the first `count` bytes to `copy`, piece by piece, and takes them away. There are at least so many.
    fn take_front(&mut self, count: u64, mut copy: impl FnMut(VolatileSlice<'_>)) {
        let mut count = count as usize;
        while count > 0 {
            let piece = &mut self.vec[self.first];
            let len = count.min(piece.iov_len);
            copy(
                volatile(piece)
                    .subslice(0, len)
                    .expect("no longer than the piece"),
            );
            piece.iov_base = piece.iov_base.wrapping_byte_add(len);
            piece.iov_len -= len;
            if piece.iov_len == 0 {
                self.first += 1;
            }
            count -= len;
            self.len -= len as u64;
        }
    }

    fn truncate(&mut self, len: u64) {
        while self.len > len {
            let Some(last) = self.vec.last_mut() else {
                return;
            };
            let surplus = self.len - len;
            if last.iov_len as u64 <= surplus {
                self.len -= last.iov_len as u64;
                self.vec.pop();
            } else {
                last.iov_len -= surplus as usize;
                self.len = len;
            }
        }
    }
}

/// The memory of a piece, for a copy that tolerates that the guest writes at the same time.
fn volatile(piece: &libc::iovec) -> VolatileSlice<'_> {
    // SAFETY: pieces come from slices of guest memory in `Buffers::load`, and are only ever made smaller; `Buffers`
    // keeps the mapping as long as it keeps the piece.
    #[allow(unsafe_code)]
    unsafe {
        VolatileSlice::new(piece.iov_base.cast(), piece.iov_len)
    }
}

#[cfg(test)]
mod tests;
