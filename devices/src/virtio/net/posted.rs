//! Receive buffers taken from the ring and not used yet.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::backend::Backend;
use super::spec::NUM_BUFFERS;
use crate::memory::{Ram, RamGuard};
use crate::virtio::chain::MAX_PIECES;

/// The most pieces that are kept: one `readv` takes them and the one that tells a cut-off packet.
const MOST_PIECES: usize = MAX_PIECES - 1;

/// Where the kept pieces are moved to the front again.
const COMPACT_AT: usize = MAX_PIECES;

struct Chain {
    head: u16,
    pieces: usize,
    len: u64,
}

/// A queue of chains whose pieces lie one after the other, so that one `readv` fills as many chains as a packet needs.
///
/// It allocates until it has grown to the most that is kept, which is bounded, and then no more.
#[derive(Default)]
pub(super) struct Posted {
    memory: Option<Arc<Ram>>,
    chains: VecDeque<Chain>,
    /// Pieces of the chains in order, from `first` on.
    pieces: Vec<libc::iovec>,
    first: usize,
    len: u64,
}

// SAFETY: the pieces lead into mappings owned by `memory`, which moves along and is itself Send; neither is bound to a
// thread.
#[allow(unsafe_code)]
unsafe impl Send for Posted {}

impl Posted {
    /// Number of chains.
    pub(super) fn count(&self) -> usize {
        self.chains.len()
    }

    /// Bytes that the chains hold together.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no chain.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether chains of more than one map of guest memory would be mixed if one of `memory` were added.
    pub(super) fn is_of_another_map(&self, memory: &RamGuard) -> bool {
        let held = self.memory.as_ref();
        held.is_some_and(|held| !std::ptr::eq(Arc::as_ptr(held), &raw const **memory))
    }

    /// Forgets all chains, and returns how many there were.
    pub(super) fn clear(&mut self) -> usize {
        let count = self.chains.len();
        self.memory = None;
        self.chains.clear();
        self.pieces.clear();
        self.first = 0;
        self.len = 0;
        count
    }

    /// Whether there is no room for another piece.
    pub(super) fn is_full(&self) -> bool {
        self.pieces.len() - self.first >= MOST_PIECES
    }

    /// Adds a chain that was loaded from `memory`, and tells whether there was room. Of a chain that fills the room by
    /// itself, what goes beyond is left out.
    pub(super) fn push(&mut self, memory: &RamGuard, head: u16, pieces: &[libc::iovec]) -> bool {
        let room = MOST_PIECES - (self.pieces.len() - self.first);
        let pieces = match pieces.get(..room) {
            Some(fitting) if fitting.len() < pieces.len() && !self.is_empty() => return false,
            Some(fitting) => fitting,
            None => pieces,
        };
        if self.memory.is_none() {
            self.memory = Some(memory.clone().into_inner());
        }
        let len = pieces.iter().map(|piece| piece.iov_len as u64).sum();
        self.chains.push_back(Chain {
            head,
            pieces: pieces.len(),
            len,
        });
        self.pieces.extend_from_slice(pieces);
        self.len += len;
        true
    }

    /// Receives one packet, and returns its length, or one more than [`Posted::len`] if the packet is longer than that.
    pub(super) fn receive(&mut self, backend: &impl Backend) -> io::Result<u64> {
        // The length that a cut-off packet reports is that of the buffers: only a byte after them shows that it was cut off.
        let mut beyond = [0_u8; 1];
        self.pieces.push(libc::iovec {
            iov_base: beyond.as_mut_ptr().cast(),
            iov_len: beyond.len(),
        });
        let pieces = &self.pieces[self.first..];
        // SAFETY: the pieces are guest memory in a mapping that `self.memory` keeps, checked when their chain was loaded,
        // and the byte above.
        #[allow(unsafe_code)]
        let result = unsafe { backend.receive(pieces) };
        self.pieces.pop();
        result.map(|len| len as u64)
    }

    /// The chains that a packet of `len` bytes fills, as pairs of head index and length written.
    pub(super) fn filled(&self, len: u64) -> impl Iterator<Item = (u16, u32)> {
        let mut rest = len;
        self.chains.iter().map_while(move |chain| {
            let part = rest.min(chain.len);
            rest -= part;
            // A part is no longer than the packet, and that came from one `readv` of at most 2 GiB.
            (part > 0).then(|| (chain.head, u32::try_from(part).unwrap_or(u32::MAX)))
        })
    }

    /// Copies what was received, from `offset` on, to `bytes`, and tells how much there is. The guest may change it at the same
    /// time.
    pub(super) fn peek(&self, offset: u64, bytes: &mut [u8]) -> usize {
        let mut skip = offset as usize;
        let mut done = 0;
        for piece in &self.pieces[self.first..] {
            let slot = piece.iov_base.cast::<u8>();
            for at in skip..piece.iov_len {
                let Some(byte) = bytes.get_mut(done) else {
                    return done;
                };
                // SAFETY: `at` is within the piece, which is guest memory in a mapping that `self.memory` keeps; the guest
                // may write it at the same time, hence volatile.
                #[allow(unsafe_code)]
                unsafe {
                    *byte = slot.wrapping_add(at).read_volatile();
                }
                done += 1;
            }
            skip = skip.saturating_sub(piece.iov_len);
        }
        done
    }

    /// Writes `num_buffers` into the header at the beginning of the first chain, wherever descriptors divide it.
    pub(super) fn write_num_buffers(&mut self, count: u16) {
        let mut offset = NUM_BUFFERS;
        let mut bytes = count.to_le_bytes().into_iter().peekable();
        for piece in &self.pieces[self.first..] {
            while offset < piece.iov_len {
                let Some(byte) = bytes.next() else { return };
                let at = piece.iov_base.cast::<u8>().wrapping_add(offset);
                // SAFETY: `offset` is within the piece, which is guest memory in a mapping that `self.memory` keeps; the
                // guest may write it at the same time, hence volatile.
                #[allow(unsafe_code)]
                unsafe {
                    at.write_volatile(byte);
                }
                offset += 1;
            }
            if bytes.peek().is_none() {
                return;
            }
            offset -= piece.iov_len;
        }
    }

    /// Forgets the first `count` chains.
    pub(super) fn drop_front(&mut self, count: usize) {
        for chain in self.chains.drain(..count.min(self.chains.len())) {
            self.first += chain.pieces;
            self.len -= chain.len;
        }
        if self.chains.is_empty() {
            self.clear();
        } else if self.first >= COMPACT_AT {
            self.pieces.drain(..self.first);
            self.first = 0;
        }
    }
}
