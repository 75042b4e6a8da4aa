//! From the host to the guest.

use virtio_queue::{Error, QueueOwnedT, QueueT};
use zerocopy::IntoBytes;

use super::connection::{Connection, Next};
use super::handler::{Outcome, Shared};
use super::host::Host;
use super::metrics::add;
use super::spec::{Credit, Ends, HEADER_LEN, HOST_CID, MAX_PAYLOAD, Op, Packet, TYPE_STREAM};
use crate::memory::RamGuard;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Buffers;

/// Packets given before other work has its turn.
const MAX_PACKETS: usize = 256;

/// A receive queue.
pub(super) struct Rx {
    pub(super) active: ActiveQueue,
    chain: Buffers,
    /// The guest is waited for to offer buffers.
    starved: bool,
}

impl Rx {
    pub(super) fn new(active: ActiveQueue) -> Self {
        Self {
            active,
            chain: Buffers::new(),
            starved: false,
        }
    }

    /// Gives the guest what there is for it, as long as it has buffers, until other work has its turn. The driver gets one
    /// interrupt at most.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub(super) fn run(
        &mut self,
        shared: &Shared,
        host: &mut Host,
        memory: &RamGuard,
    ) -> Result<Outcome, Error> {
        if !host.has_packets() {
            return Ok(Outcome::Idle);
        }
        self.active.queue.disable_notification(&**memory)?;
        let before = self.active.queue.next_used();
        let result = self.give_all(shared, host, memory);
        if self.active.queue.next_used() != before
            && self.active.queue.needs_notification(&**memory)?
        {
            shared.interrupt.queue(self.active.index);
        }
        result
    }

    fn give_all(
        &mut self,
        shared: &Shared,
        host: &mut Host,
        memory: &RamGuard,
    ) -> Result<Outcome, Error> {
        for _ in 0..MAX_PACKETS {
            if !host.has_packets() {
                return Ok(Outcome::Idle);
            }
            let queue = &mut self.active.queue;
            let Some(chain) = queue.iter(&**memory)?.next() else {
                if queue.enable_notification(&**memory)? {
                    queue.disable_notification(&**memory)?;
                    continue;
                }
                if !std::mem::replace(&mut self.starved, true) {
                    add(&shared.metrics.rx_starved, 1);
                }
                return Ok(Outcome::Idle);
            };
            self.starved = false;
            let head = chain.head_index();
            let loaded = self.chain.load(memory, chain);
            // Room for a byte at least: a connection that has data could not go on otherwise.
            if loaded.is_err()
                || self.chain.writable_len() <= HEADER_LEN
                || self.chain.reserve_front(HEADER_LEN).is_err()
            {
                add(&shared.metrics.rx_malformed, 1);
                self.active.queue.add_used(&**memory, head, 0)?;
                continue;
            }
            match self.fill(shared, host) {
                Some(payload) => {
                    add(&shared.metrics.rx_packets, 1);
                    add(&shared.metrics.rx_bytes, payload.into());
                    let len = HEADER_LEN as u32 + payload;
                    self.active.queue.add_used(&**memory, head, len)?;
                }
                None => self.active.queue.go_to_previous_position(),
            }
        }
        Ok(Outcome::Again)
    }

    /// Writes the next packet into the loaded chain, and returns the length of its payload. There is none if a socket
    /// turned out to have nothing now.
    fn fill(&mut self, shared: &Shared, host: &mut Host) -> Option<u32> {
        if let Some(ends) = host.answer() {
            host.answered();
            self.write(&Packet::new(ends, Op::Reset, Credit::default()));
            return Some(0);
        }
        let slot = host.table.first()?;
        host.table.take_turn();
        let timeout = host.timeout();
        let packet = host.table.get(slot).and_then(|connection| {
            let packet = self.packet(shared, connection, timeout)?;
            self.write(&packet);
            Some(packet)
        });
        host.settle(slot);
        packet.map(|packet| packet.len)
    }

    /// The next packet of `connection`, its payload in the loaded chain.
    fn packet(
        &mut self,
        shared: &Shared,
        connection: &mut Connection,
        timeout: std::time::Duration,
    ) -> Option<Packet> {
        let (op, len) = match connection.next()? {
            Next::Control(op) => (op, 0),
            Next::Data(room) => {
                self.chain.truncate_writable(room.min(MAX_PAYLOAD).into());
                match connection.read(&self.chain, timeout) {
                    Some(len) => (Op::Data, len),
                    // The end of the data is told in its place.
                    None => match connection.next()? {
                        Next::Control(op) => {
                            if op == Op::Reset {
                                add(&shared.metrics.host_resets, 1);
                            }
                            (op, 0)
                        }
                        Next::Data(_) => return None,
                    },
                }
            }
        };
        let key = connection.key()?;
        Some(Packet {
            ends: Ends {
                src_cid: HOST_CID,
                dst_cid: shared.guest_cid.into(),
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
            },
            op,
            len,
            credit: connection.tell(),
        })
    }

    fn write(&mut self, packet: &Packet) {
        self.chain.write_reserved(packet.header().as_bytes());
    }

    /// Lets the map of guest memory go.
    pub(super) fn drain(&mut self) {
        self.chain.clear();
    }
}
