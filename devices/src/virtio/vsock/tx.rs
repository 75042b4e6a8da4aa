//! From the guest to the host.

use virtio_queue::{Error, QueueOwnedT, QueueT};
use zerocopy::IntoBytes;

use super::connection::{Key, Violation};
use super::handler::{Outcome, Shared};
use super::host::Host;
use super::metrics::add;
use super::spec::{HOST_CID, Header, MAX_PAYLOAD, Op, Packet, TYPE_STREAM};
use crate::memory::RamGuard;
use crate::throttle::Throttle;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Buffers;

/// Packets taken before other work has its turn.
const MAX_PACKETS: usize = 256;

/// A guest can open connections and spoil them all day.
static VIOLATIONS: Throttle = Throttle::per_minute(10);

/// A transmit queue.
pub(super) struct Tx {
    pub(super) active: ActiveQueue,
    chain: Buffers,
}

impl Tx {
    pub(super) fn new(active: ActiveQueue) -> Self {
        Self {
            active,
            chain: Buffers::new(),
        }
    }

    /// Takes packets until the ring is empty, or other work has its turn, or the guest has to take answers first. The
    /// driver gets one interrupt at most.
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
        self.active.queue.disable_notification(&**memory)?;
        let before = self.active.queue.next_used();
        let result = self.take_all(shared, host, memory);
        if self.active.queue.next_used() != before
            && self.active.queue.needs_notification(&**memory)?
        {
            shared.interrupt.queue(self.active.index);
        }
        result
    }

    fn take_all(
        &mut self,
        shared: &Shared,
        host: &mut Host,
        memory: &RamGuard,
    ) -> Result<Outcome, Error> {
        for _ in 0..MAX_PACKETS {
            if host.answers_are_full() {
                add(&shared.metrics.tx_blocked, 1);
                return Ok(Outcome::Blocked);
            }
            let queue = &mut self.active.queue;
            let Some(chain) = queue.iter(&**memory)?.next() else {
                if queue.enable_notification(&**memory)? {
                    queue.disable_notification(&**memory)?;
                    continue;
                }
                return Ok(Outcome::Idle);
            };
            let head = chain.head_index();
            let mut header = Header::default();
            let loaded = self
                .chain
                .load(memory, chain)
                .and_then(|()| self.chain.read_front(header.as_mut_bytes()));
            let packet = Packet::parse(&header);
            if loaded.is_ok() && packet.ends.src_cid == u64::from(shared.guest_cid) {
                add(&shared.metrics.tx_packets, 1);
                self.take(shared, host, &packet);
            } else {
                add(&shared.metrics.tx_malformed, 1);
            }
            self.active.queue.add_used(&**memory, head, 0)?;
        }
        Ok(Outcome::Again)
    }

    /// Does what `packet` says, its payload in the loaded chain. It gives no more than one answer.
    fn take(&mut self, shared: &Shared, host: &mut Host, packet: &Packet) {
        let ends = packet.ends;
        let key = Key {
            host_port: ends.dst_port,
            guest_port: ends.src_port,
        };
        let known = ends.dst_cid == HOST_CID && ends.kind == TYPE_STREAM;
        let slot = if known { host.table.find(key) } else { None };
        let Some(slot) = slot else {
            match packet.op {
                // An answer to an answer would have no end.
                Op::Reset => {}
                Op::Request if known && host.connect(key, packet.credit) => {}
                Op::Request => host.refuse(ends),
                _ => {
                    add(&shared.metrics.tx_unknown, 1);
                    host.refuse(ends);
                }
            }
            return;
        };
        if let Err(Violation) = self.take_for(shared, host, slot, packet) {
            add(&shared.metrics.tx_violations, 1);
            if let Some(suppressed) = VIOLATIONS.allow() {
                tracing::warn!(
                    device = shared.name,
                    ?packet,
                    suppressed,
                    "guest sent what a vsock connection must not get, which is reset"
                );
            }
            if let Some(connection) = host.table.get(slot) {
                connection.abort();
            }
        }
        host.settle(slot);
    }

    fn take_for(
        &mut self,
        shared: &Shared,
        host: &mut Host,
        slot: usize,
        packet: &Packet,
    ) -> Result<(), Violation> {
        let timeout = host.timeout();
        let Some(connection) = host.table.get(slot) else {
            return Ok(());
        };
        let requested = connection.is_requested();
        if connection.is_over() {
            if packet.op == Op::Reset {
                connection.reset_by_guest();
            }
            return Ok(());
        }
        connection.hear(packet.credit);
        match packet.op {
            Op::Response => {
                connection.accept()?;
                add(&shared.metrics.host_connections, 1);
            }
            Op::Reset => {
                connection.reset_by_guest();
                let counter = if requested {
                    &shared.metrics.refused_connections
                } else {
                    &shared.metrics.guest_resets
                };
                add(counter, 1);
            }
            Op::Shutdown(ended) => connection.end_guest(ended)?,
            Op::Data => {
                if packet.len > MAX_PAYLOAD || u64::from(packet.len) > self.chain.readable_len() {
                    return Err(Violation);
                }
                self.chain.truncate_readable(packet.len.into());
                connection.receive(&mut self.chain, timeout)?;
                add(&shared.metrics.tx_bytes, packet.len.into());
            }
            Op::CreditUpdate => {}
            Op::CreditRequest => connection.ask_credit(),
            Op::Request | Op::Unknown => return Err(Violation),
        }
        Ok(())
    }

    /// Lets the map of guest memory go.
    pub(super) fn drain(&mut self) {
        self.chain.clear();
    }
}
