//! The used ring, written several elements at a time.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::memory::Ram;

const HEADER: u64 = 4;
const INDEX: u64 = 2;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;

/// Returns chains to the driver, and knows what it was told of.
///
/// The buffers of one merged packet must reach the driver together (virtio 1.2, 5.1.6.4): a driver that sees the first and
/// not yet the others takes the packet for broken. `Queue::add_used` would show them one by one.
#[derive(Debug)]
pub(super) struct UsedRing {
    /// Index up to which the driver was notified, or did not want to be.
    told: Wrapping<u16>,
}

impl UsedRing {
    /// Starts where `queue` stands.
    pub(super) fn new(queue: &Queue) -> Self {
        Self {
            told: Wrapping(queue.next_used()),
        }
    }

    /// Puts `chains`, pairs of head index and length written, into the used ring, and shows them all at once. There are no
    /// more than the queue has elements.
    ///
    /// # Errors
    ///
    /// A head index that the queue does not have, or a ring that is not in memory: the queue is broken.
    pub(super) fn add(
        &self,
        queue: &mut Queue,
        memory: &Ram,
        chains: impl Iterator<Item = (u16, u32)>,
    ) -> Result<(), Error> {
        let ring = GuestAddress(queue.used_ring());
        let mut next = Wrapping(queue.next_used());
        for (head, len) in chains {
            if head >= queue.size() {
                return Err(Error::InvalidDescriptorIndex);
            }
            let slot = u64::from(next.0 % queue.size());
            let element = u64::from(head) | u64::from(len) << 32;
            memory
                .write_obj(element.to_le(), at(ring, HEADER + slot * USED_ELEMENT)?)
                .map_err(Error::GuestMemory)?;
            next += 1;
        }
        queue.set_next_used(next.0);
        memory
            .store(next.0.to_le(), at(ring, INDEX)?, Ordering::Release)
            .map_err(Error::GuestMemory)
    }

    /// Whether the driver wants an interrupt for what was added since the last call (virtio 1.2, 2.7.7.2).
    ///
    /// # Errors
    ///
    /// The ring is not in memory.
    pub(super) fn needs_interrupt(&mut self, queue: &Queue, memory: &Ram) -> Result<bool, Error> {
        let now = Wrapping(queue.next_used());
        let told = std::mem::replace(&mut self.told, now);
        if now == told {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read, as the driver does it the other way around.
        fence(Ordering::SeqCst);
        let ring = GuestAddress(queue.avail_ring());
        let load = |offset| {
            memory
                .load(at(ring, offset)?, Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(Error::GuestMemory)
        };
        if queue.event_idx_enabled() {
            let event = load(HEADER + u64::from(queue.size()) * AVAIL_ELEMENT)?;
            Ok(now - Wrapping(event) - Wrapping(1) < now - told)
        } else {
            Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }
}

fn at(ring: GuestAddress, offset: u64) -> Result<GuestAddress, Error> {
    ring.checked_add(offset).ok_or(Error::AddressOverflow)
}
