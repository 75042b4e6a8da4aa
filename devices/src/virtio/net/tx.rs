//! From the guest to the host.

use std::iter;
use std::time::Instant;

use virtio_queue::{Error, QueueOwnedT, QueueT};

use super::backend::{Backend, Fault};
use super::handler::{Outcome, Shared};
use super::link::{Port, PortState};
use super::metrics::add;
use super::spec::{HEADER_LEN, MAX_PACKET};
use super::used::UsedRing;
use crate::memory::RamGuard;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Buffers;
use crate::virtio::limit::Limit;

/// Packets sent before other work has its turn.
const MAX_PACKETS: usize = 128;

/// A transmit queue.
pub(super) struct Tx {
    pub(super) active: ActiveQueue,
    used: UsedRing,
    chain: Buffers,
    limit: Limit,
}

impl Tx {
    /// Sends no faster than `limit`.
    pub(super) fn new(active: ActiveQueue, limit: Limit) -> Self {
        Self {
            used: UsedRing::new(&active.queue),
            active,
            chain: Buffers::new(),
            limit,
        }
    }

    /// The limit of the rate, whose timer wakes for the next turn.
    pub(super) fn limit(&mut self) -> &mut Limit {
        &mut self.limit
    }

    /// Sends until the ring is empty or the host has no room, or other work has its turn. The driver gets one interrupt at
    /// most.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub(super) fn run<B: Backend>(
        &mut self,
        shared: &Shared<B>,
        port: &Port,
        memory: &RamGuard,
    ) -> Result<Outcome, Error> {
        self.active.queue.disable_notification(&**memory)?;
        let result = self.send_all(shared, port, memory);
        if self.used.needs_interrupt(&self.active.queue, memory)? {
            shared.interrupt.queue(self.active.index);
        }
        result
    }

    fn send_all<B: Backend>(
        &mut self,
        shared: &Shared<B>,
        port: &Port,
        memory: &RamGuard,
    ) -> Result<Outcome, Error> {
        for _ in 0..MAX_PACKETS {
            let queue = &mut self.active.queue;
            let Some(chain) = queue.iter(&**memory)?.next() else {
                if queue.enable_notification(&**memory)? {
                    queue.disable_notification(&**memory)?;
                    continue;
                }
                return Ok(Outcome::Idle);
            };
            let head = chain.head_index();
            // What a pulled cable takes is not limited.
            if self.limit.is_limited() && port.is_plugged() && self.limit.holds_back(Instant::now())
            {
                // The chain stays in the ring until its turn.
                queue.go_to_previous_position();
                add(&shared.metrics.tx_held_back, 1);
                return Ok(Outcome::HeldBack);
            }
            let counter = if self.chain.load(memory, chain).is_err()
                || self.chain.readable_len() < HEADER_LEN
            {
                &shared.metrics.tx_malformed
            } else if self.chain.readable_len() > MAX_PACKET {
                &shared.metrics.tx_too_long
            } else if !port.is_plugged() {
                &shared.metrics.tx_link_down
            } else {
                match self.send(shared, port) {
                    Ok(()) => &shared.metrics.tx_packets,
                    Err(Fault::WouldBlock) => {
                        // The chain stays in the ring until there is room.
                        self.active.queue.go_to_previous_position();
                        add(&shared.metrics.tx_blocked, 1);
                        return Ok(Outcome::Blocked);
                    }
                    Err(Fault::Packet) => &shared.metrics.tx_refused,
                    Err(Fault::Down) => {
                        port.set(PortState::Down);
                        &shared.metrics.tx_link_down
                    }
                    Err(Fault::Gone) => {
                        port.set(PortState::Gone);
                        &shared.metrics.tx_link_down
                    }
                }
            };
            add(counter, 1);
            self.used
                .add(&mut self.active.queue, memory, iter::once((head, 0)))?;
        }
        Ok(Outcome::Again)
    }

    /// Sends the loaded chain.
    fn send<B: Backend>(&self, shared: &Shared<B>, port: &Port) -> Result<(), Fault> {
        if port.state() == PortState::Gone {
            return Err(Fault::Gone);
        }
        // SAFETY: the pieces are guest memory, checked when the chain was loaded, in a mapping that the chain keeps.
        #[allow(unsafe_code)]
        let result = unsafe { shared.backend.send(self.chain.readable()) };
        match result {
            Ok(_) => {
                port.set(PortState::Up);
                let len = self.chain.readable_len() - HEADER_LEN;
                add(&shared.metrics.tx_bytes, len);
                if self.limit.is_limited() {
                    self.limit.spend(len, Instant::now());
                }
                Ok(())
            }
            Err(error) => Err(Fault::of(&error, &*shared.backend)),
        }
    }
}
