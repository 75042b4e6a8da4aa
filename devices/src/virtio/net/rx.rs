//! From the host to the guest.

use std::iter;
use std::time::Instant;

use virtio_queue::{Error, QueueOwnedT, QueueT};

use super::backend::{Backend, Fault, discard};
use super::filter::{LOOKED_AT, Sieve};
use super::handler::{Outcome, Shared};
use super::link::{Port, PortState};
use super::metrics::add;
use super::posted::Posted;
use super::spec::HEADER_LEN;
use super::used::UsedRing;
use crate::memory::RamGuard;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Buffers;
use crate::virtio::limit::Limit;

/// Packets received before other work has its turn.
const MAX_PACKETS: usize = 128;

/// Chains taken from the ring before other work has its turn.
const MAX_CHAINS: usize = 1024;

/// What [`Rx::gather`] ended with.
enum Gathered {
    /// There are buffers to receive into.
    Ready,
    /// The guest has to offer buffers first.
    Starved,
    /// Other work has its turn.
    Again,
}

/// A receive queue.
pub(super) struct Rx {
    pub(super) active: ActiveQueue,
    used: UsedRing,
    chain: Buffers,
    posted: Posted,
    /// Bytes to have room for before a packet is received.
    want: u64,
    /// VIRTIO_NET_F_MRG_RXBUF: a packet may fill several chains.
    merge: bool,
    /// The guest had offered room for the longest packet once, and so is one that will again.
    offers_enough: bool,
    /// What the guest wants to receive.
    sieve: Sieve,
    limit: Limit,
}

/// How a receive queue works.
pub(super) struct RxSetup {
    /// Bytes of the longest packet with its header.
    pub(super) want: u64,
    /// A packet may fill several chains.
    pub(super) merge: bool,
    /// What [`Rx::offers_enough`] was when the same driver's queue was handed back.
    pub(super) offers_enough: bool,
    /// What the guest wants to receive.
    pub(super) sieve: Sieve,
    /// The rate of packets.
    pub(super) limit: Limit,
}

impl Rx {
    /// Goes on where `active` stands.
    pub(super) fn new(active: ActiveQueue, setup: RxSetup) -> Self {
        let RxSetup {
            want,
            merge,
            offers_enough,
            sieve,
            limit,
        } = setup;
        Self {
            used: UsedRing::new(&active.queue),
            active,
            chain: Buffers::new(),
            posted: Posted::default(),
            want,
            merge,
            offers_enough,
            sieve,
            limit,
        }
    }

    /// The limit of the rate, whose timer wakes for the next turn.
    pub(super) fn limit(&mut self) -> &mut Limit {
        &mut self.limit
    }

    /// Whether the driver has offered room for the longest packet once.
    pub(super) fn offers_enough(&self) -> bool {
        self.offers_enough
    }

    /// Receives until there are no packets or no buffers, or other work has its turn. The driver gets one interrupt at
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
        if self.posted.is_of_another_map(memory) {
            self.hand_back();
        }
        self.active.queue.disable_notification(&**memory)?;
        let result = self.receive(shared, port, memory);
        if self.used.needs_interrupt(&self.active.queue, memory)? {
            shared.interrupt.queue(self.active.index);
        }
        result
    }

    fn receive<B: Backend>(
        &mut self,
        shared: &Shared<B>,
        port: &Port,
        memory: &RamGuard,
    ) -> Result<Outcome, Error> {
        let metrics = &shared.metrics;
        let mut chains = MAX_CHAINS;
        self.sieve.refresh(&shared.filter);
        for _ in 0..MAX_PACKETS {
            if !port.is_plugged() {
                return Ok(throw_away(shared, port));
            }
            match self.gather(shared, memory, &mut chains)? {
                Gathered::Ready => {}
                Gathered::Starved => {
                    add(&metrics.rx_starved, 1);
                    return Ok(Outcome::Idle);
                }
                Gathered::Again => return Ok(Outcome::Again),
            }
            if self.limit.is_limited() && self.limit.holds_back(Instant::now()) {
                add(&metrics.rx_held_back, 1);
                return Ok(Outcome::HeldBack);
            }
            match self.posted.receive(&*shared.backend) {
                Ok(len) if len < HEADER_LEN => {
                    // Also what a port reads that was closed at its other end: asked again, it would answer the same.
                    add(&metrics.rx_errors, 1);
                    if !shared.backend.is_attached() {
                        port.set(PortState::Gone);
                        return Ok(Outcome::Idle);
                    }
                }
                Ok(_) if !self.is_wanted() => add(&metrics.rx_filtered, 1),
                Ok(len) if len > self.posted.len() => add(&metrics.rx_too_long, 1),
                Ok(len) => {
                    self.deliver(memory, len)?;
                    add(&metrics.rx_packets, 1);
                    add(&metrics.rx_bytes, len - HEADER_LEN);
                    if self.limit.is_limited() {
                        self.limit.spend(len - HEADER_LEN, Instant::now());
                    }
                }
                Err(error) if is_end(&error, shared, port) => return Ok(Outcome::Idle),
                Err(_) => add(&metrics.rx_errors, 1),
            }
        }
        Ok(Outcome::Again)
    }

    /// Whether the guest wants the packet that was received last.
    fn is_wanted(&self) -> bool {
        let rules = self.sieve.rules();
        if rules.passes_all() {
            return true;
        }
        let mut frame = [0; LOOKED_AT];
        let len = self.posted.peek(HEADER_LEN, &mut frame);
        rules.passes(&frame[..len])
    }

    /// Takes chains from the ring until there is room for the longest packet.
    ///
    /// A guest that offers less than that at a time is served with what it offers. One that did offer as much is waited for
    /// when it runs low: it will fill the ring again, and a packet that does not fit would be lost.
    fn gather<B: Backend>(
        &mut self,
        shared: &Shared<B>,
        memory: &RamGuard,
        budget: &mut usize,
    ) -> Result<Gathered, Error> {
        while !self.has_enough() {
            let Some(left) = budget.checked_sub(1) else {
                return Ok(Gathered::Again);
            };
            *budget = left;
            let queue = &mut self.active.queue;
            let Some(chain) = queue.iter(&**memory)?.next() else {
                if queue.enable_notification(&**memory)? {
                    queue.disable_notification(&**memory)?;
                    continue;
                }
                return Ok(if self.runs_low() {
                    Gathered::Starved
                } else {
                    Gathered::Ready
                });
            };
            let head = chain.head_index();
            let valid =
                self.chain.load(memory, chain).is_ok() && self.chain.writable_len() >= HEADER_LEN;
            if valid && self.posted.push(memory, head, self.chain.writable()) {
                continue;
            }
            if !self.posted.is_empty() {
                // Chains leave in the order of the ring, so that those left over can be handed back: its turn comes later.
                queue.go_to_previous_position();
                return Ok(Gathered::Ready);
            }
            add(&shared.metrics.rx_malformed, 1);
            self.used.add(queue, memory, iter::once((head, 0)))?;
        }
        // A ring that is too small for it is full with less.
        self.offers_enough |= self.posted.len() >= self.want;
        Ok(Gathered::Ready)
    }

    /// Whether to wait for the guest, with what is left of the ring posted.
    ///
    /// Drivers fill the ring again when half of it is used at the latest: before that, they may wait for packets as well.
    fn runs_low(&self) -> bool {
        let half = usize::from(self.active.queue.size()) / 2;
        self.posted.is_empty() || self.offers_enough && self.posted.count() < half
    }

    fn has_enough(&self) -> bool {
        if self.merge {
            self.posted.len() >= self.want
                || self.posted.is_full()
                || self.posted.count() >= usize::from(self.active.queue.size())
        } else {
            !self.posted.is_empty()
        }
    }

    /// Returns the chains that a packet of `len` bytes fills, its header completed. The others wait for the next packet.
    fn deliver(&mut self, memory: &RamGuard, len: u64) -> Result<(), Error> {
        let count = self.posted.filled(len).count();
        // No more chains are kept than the queue has elements.
        self.posted
            .write_num_buffers(u16::try_from(count).unwrap_or(u16::MAX));
        self.used
            .add(&mut self.active.queue, memory, self.posted.filled(len))?;
        self.posted.drop_front(count);
        Ok(())
    }

    /// Gives the chains that no packet came for back to the ring, as if they had not been taken.
    pub(super) fn hand_back(&mut self) {
        // The queue has at most 32768 elements, and no more chains are kept.
        let count = self.posted.clear() as u16;
        let queue = &mut self.active.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
        self.chain.clear();
    }
}

/// Takes note of what `error` says of the port, and tells whether there is nothing to receive for now.
fn is_end<B: Backend>(error: &std::io::Error, shared: &Shared<B>, port: &Port) -> bool {
    match Fault::of(error, &*shared.backend) {
        Fault::WouldBlock => true,
        Fault::Down => {
            port.set(PortState::Down);
            true
        }
        Fault::Gone => {
            port.set(PortState::Gone);
            true
        }
        Fault::Packet => false,
    }
}

/// Receives for nobody: the link is set down, and what comes meanwhile is lost as with a cable that is pulled.
fn throw_away<B: Backend>(shared: &Shared<B>, port: &Port) -> Outcome {
    for _ in 0..MAX_PACKETS {
        match discard(&*shared.backend) {
            Ok(0) => {
                if !shared.backend.is_attached() {
                    port.set(PortState::Gone);
                }
                return Outcome::Idle;
            }
            Ok(_) => add(&shared.metrics.rx_link_down, 1),
            Err(error) if is_end(&error, shared, port) => return Outcome::Idle,
            Err(_) => add(&shared.metrics.rx_errors, 1),
        }
    }
    Outcome::Again
}
