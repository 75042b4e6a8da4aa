//! What the guest sent and the host's program does not take yet.

use super::spec::Credit;
use crate::virtio::chain::{Buffers, ChainError};

/// Bytes that the guest may have on the way in each connection (`buf_alloc`): two of the longest packets.
pub(super) const CAPACITY: usize = 128 << 10;

/// A ring of [`CAPACITY`] bytes, which takes memory from the first time that it is needed until its connection ends.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes for which there is room.
    pub(super) fn room(&self) -> usize {
        CAPACITY - self.len
    }

    /// Takes all that is readable in `chain`.
    ///
    /// # Errors
    ///
    /// That is more than there is room for; nothing is taken then.
    pub(super) fn push(&mut self, chain: &mut Buffers) -> Result<(), ChainError> {
        let len = chain.readable_len() as usize;
        if len > self.room() {
            return Err(ChainError::TooLong);
        }
        if self.bytes.is_empty() {
            self.bytes = vec![0; CAPACITY].into_boxed_slice();
        }
        let end = (self.start + self.len) % CAPACITY;
        let first = len.min(CAPACITY - end);
        chain.read_front(&mut self.bytes[end..end + first])?;
        chain.read_front(&mut self.bytes[..len - first])?;
        self.len += len;
        Ok(())
    }

    /// The bytes in order, in two parts.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        let end = self.start + self.len;
        if end <= CAPACITY {
            [self.bytes.get(self.start..end).unwrap_or_default(), &[]]
        } else {
            [&self.bytes[self.start..], &self.bytes[..end - CAPACITY]]
        }
    }

    /// Forgets the first `count` bytes.
    pub(super) fn drop_front(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        // From the beginning where it can be, for one long copy next time.
        self.start = if self.len == 0 {
            0
        } else {
            (self.start + count) % CAPACITY
        };
    }

    /// Forgets all, and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What this end received from the guest, and passed on (5.10.6.3). Counts wrap, as they do in packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inward {
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest last heard of it.
    told: u32,
}

impl Inward {
    /// `len` bytes came, of a packet.
    pub(super) fn receive(&mut self, len: u32) {
        self.received = self.received.wrapping_add(len);
    }

    /// `len` bytes of those went to the host.
    pub(super) fn forward(&mut self, len: usize) {
        // No more than the backlog or one packet at a time.
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// All that came is done with.
    pub(super) fn forward_all(&mut self) {
        self.forwarded = self.received;
    }

    /// What to tell the guest, which is then taken as told.
    pub(super) fn tell(&mut self) -> Credit {
        self.told = self.forwarded;
        Credit {
            buf_alloc: CAPACITY as u32,
            fwd_cnt: self.forwarded,
        }
    }

    /// Whether the guest may soon stop for want of credit that it has and does not know of.
    pub(super) fn is_worth_telling(&self) -> bool {
        let taken = self.received.wrapping_sub(self.told) as usize;
        let news = self.forwarded.wrapping_sub(self.told) as usize;
        let all = self.forwarded == self.received;
        taken >= CAPACITY / 2 && (news >= CAPACITY / 4 || all && news > 0)
    }
}

/// What the guest said that it can take, and what it was sent (5.10.6.3).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outward {
    sent: u32,
    credit: Credit,
}

impl Outward {
    pub(super) fn hear(&mut self, credit: Credit) {
        self.credit = credit;
    }

    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// Bytes that the guest has room for. A guest whose counts make no sense has none.
    pub(super) fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.credit.fwd_cnt);
        self.credit.buf_alloc.saturating_sub(on_the_way)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

    use super::*;
    use crate::virtio::driver::{self, Ring, readable};
    use virtio_queue::QueueOwnedT;

    #[test]
    fn bytes_leave_in_the_order_they_came_across_the_end_of_the_ring() {
        let memory = driver::memory(&[(0, 1 << 20)]);
        let mut backlog = Backlog::default();
        let mut next_in = 0_usize;
        let mut next_out = 0_usize;
        for (len, taken) in [
            (60_000, 50_000),
            (65_536, 1),
            (50_000, 100_000),
            (65_536, 90_071),
        ] {
            let bytes: Vec<_> = (next_in..next_in + len)
                .map(|at| (at % 251) as u8)
                .collect();
            next_in += len;
            memory
                .memory()
                .write_slice(&bytes, GuestAddress(0x1_0000))
                .unwrap();
            let mut ring = Ring::new(&memory, 0x1000, 4);
            ring.push(&[readable(0x1_0000, len as u32)]);
            let mut active = ring.active(0, 0);
            let guard = memory.memory();
            let chain = active.queue.iter(&*guard).unwrap().next().unwrap();
            let mut chain_buffers = Buffers::new();
            chain_buffers.load(&guard, chain).unwrap();
            backlog.push(&mut chain_buffers).unwrap();
            let held = backlog.parts().concat();
            for byte in &held[..taken] {
                assert_eq!(*byte, (next_out % 251) as u8);
                next_out += 1;
            }
            backlog.drop_front(taken);
        }
        assert_eq!(next_in - next_out, CAPACITY - backlog.room());
    }

    #[test]
    fn guest_that_is_short_of_credit_is_told_of_what_was_forwarded() {
        let mut inward = Inward::default();
        inward.receive(1000);
        inward.forward(1000);
        assert!(!inward.is_worth_telling(), "it has plenty");
        inward.receive(CAPACITY as u32 - 1000);
        assert!(!inward.is_worth_telling(), "little of it went on");
        inward.forward(CAPACITY / 4);
        assert!(inward.is_worth_telling());
        assert_eq!(inward.tell().fwd_cnt as usize, 1000 + CAPACITY / 4);
        assert!(!inward.is_worth_telling(), "it was told");
        inward.forward_all();
        assert!(inward.is_worth_telling());
        assert_eq!(inward.tell().fwd_cnt as usize, CAPACITY);
    }

    #[test]
    fn credit_is_what_the_guest_has_room_for() {
        let mut outward = Outward::default();
        assert_eq!(outward.room(), 0);
        let hear = |outward: &mut Outward, buf_alloc, fwd_cnt| {
            outward.hear(Credit { buf_alloc, fwd_cnt });
        };
        hear(&mut outward, 100, 0);
        outward.send(60);
        assert_eq!(outward.room(), 40);
        hear(&mut outward, 50, 0);
        assert_eq!(
            outward.room(),
            0,
            "the buffer shrank below what is on its way"
        );
        hear(&mut outward, 100, 60);
        assert_eq!(outward.room(), 100);
        hear(&mut outward, 100, 61);
        assert_eq!(outward.room(), 0, "more was taken than sent");
        hear(&mut outward, 100, 10);
        assert_eq!(outward.room(), 50, "backwards, it has what it says");
        hear(&mut outward, u32::MAX, 60);
        assert_eq!(outward.room(), u32::MAX);
    }

    #[test]
    fn counts_wrap() {
        let mut outward = Outward {
            sent: u32::MAX - 9,
            credit: Credit {
                buf_alloc: 100,
                fwd_cnt: u32::MAX - 9,
            },
        };
        outward.send(20);
        assert_eq!(outward.room(), 80);
        outward.hear(Credit {
            buf_alloc: 100,
            fwd_cnt: 10,
        });
        assert_eq!(outward.room(), 100);
    }
}
