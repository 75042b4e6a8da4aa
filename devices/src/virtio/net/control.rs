//! The control queue: what the driver tells the device (virtio 1.2, 5.1.6.5).

use std::io;
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};
use virtio_queue::{Error, QueueOwnedT, QueueT};

use super::backend::{Backend, Offloads};
use super::command::{Command, MAX_COMMAND};
use super::filter::Filter;
use super::handler::Outcome;
use super::link::Link;
use super::metrics::{NetMetrics, add};
use super::pairs::Pairs;
use super::spec;
use super::used::UsedRing;
use crate::memory::RamGuard;
use crate::rate_limit::{RateLimiter, RateLimits, TokenBucket};
use crate::throttle::Throttle;
use crate::virtio::chain::Buffers;
use crate::virtio::limit::Limit;
use crate::virtio::{ActiveQueue, Interrupt};

/// A guest can ask for what there is not as often as it likes.
static REFUSALS: Throttle = Throttle::per_minute(10);

/// Commands carried out before other work has its turn.
const MAX_COMMANDS: usize = 32;

/// Changes of the host's interface that a driver may make at once, and in a second: each takes a lock that all interfaces
/// of the host share.
const HOST_CHANGES: TokenBucket = TokenBucket {
    size: 64,
    one_time_burst: 0,
    refill_time: Duration::from_secs(1),
};

/// What the driver has set that neither the filter nor the pairs hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// The mask of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET; none while all that was negotiated is on.
    pub(super) offloads: Option<u64>,
}

impl Settings {
    /// What the port may hand to a driver that accepted `features`.
    pub(super) fn offloads(self, features: u64) -> Offloads {
        spec::accepted(self.offloads.unwrap_or(u64::MAX) & features)
    }
}

/// What commands change.
pub(super) struct Controlled<B> {
    pub(super) name: String,
    /// The port of each pair that has both its queues.
    pub(super) backends: Vec<Arc<B>>,
    pub(super) filter: Arc<Filter>,
    pub(super) pairs: Arc<Pairs>,
    pub(super) link: Arc<Link>,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) metrics: Arc<NetMetrics>,
    pub(super) features: u64,
    pub(super) settings: Settings,
}

/// The control queue, worked on by the worker of the first pair.
pub(super) struct Control<B> {
    pub(super) active: ActiveQueue,
    used: UsedRing,
    chain: Buffers,
    bytes: Vec<u8>,
    limit: Limit,
    controlled: Controlled<B>,
}

impl<B: Backend> Control<B> {
    /// # Errors
    ///
    /// There is no timer to be had.
    pub(super) fn new(active: ActiveQueue, controlled: Controlled<B>) -> io::Result<Self> {
        let limits = RateLimits {
            bandwidth: None,
            ops: Some(HOST_CHANGES),
        };
        let limiter = RateLimiter::new(limits, Instant::now());
        Ok(Self {
            used: UsedRing::new(&active.queue),
            active,
            chain: Buffers::new(),
            bytes: Vec::new(),
            limit: Limit::new(Arc::new(limiter))?,
            controlled,
        })
    }

    /// What the driver has set, and its queue.
    pub(super) fn into_parts(self) -> (Settings, ActiveQueue) {
        (self.controlled.settings, self.active)
    }

    /// The limit of changes to the host's interface, whose timer wakes for the next turn.
    pub(super) fn limit(&mut self) -> &mut Limit {
        &mut self.limit
    }

    /// Carries out what is in the ring. The driver gets one interrupt at most.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub(super) fn run(&mut self, memory: &RamGuard) -> Result<Outcome, Error> {
        self.active.queue.disable_notification(&**memory)?;
        let result = self.carry_out_all(memory);
        if self.used.needs_interrupt(&self.active.queue, memory)? {
            self.controlled.interrupt.queue(self.active.index);
        }
        result
    }

    fn carry_out_all(&mut self, memory: &RamGuard) -> Result<Outcome, Error> {
        for _ in 0..MAX_COMMANDS {
            if self.limit.holds_back(Instant::now()) {
                return Ok(Outcome::HeldBack);
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
            let len = match self.chain.load(memory, chain) {
                Ok(()) => self.answer(),
                Err(_) => {
                    add(&self.controlled.metrics.control_malformed, 1);
                    0
                }
            };
            self.used
                .add(&mut self.active.queue, memory, iter::once((head, len)))?;
        }
        Ok(Outcome::Again)
    }

    /// Carries out the command in the loaded chain, and returns the number of bytes written as its answer.
    fn answer(&mut self) -> u32 {
        let metrics = Arc::clone(&self.controlled.metrics);
        if self.chain.writable_len() == 0 {
            // Nothing can be answered, and so nothing is done.
            add(&metrics.control_malformed, 1);
            return 0;
        }
        let (counter, ack) = if self.carry_out() {
            (&metrics.control_commands, VIRTIO_NET_OK)
        } else {
            (&metrics.control_refused, VIRTIO_NET_ERR)
        };
        add(counter, 1);
        match self.chain.write_front(&[ack as u8]) {
            Ok(()) => 1,
            Err(_) => 0,
        }
    }

    /// Reads the command once and does what it says. Tells whether it did.
    fn carry_out(&mut self) -> bool {
        // Longer ones are no commands, or too long to be looked at.
        let len = self.chain.readable_len().min(MAX_COMMAND as u64 + 1) as usize;
        self.bytes.resize(len, 0);
        let read = self.chain.read_front(&mut self.bytes);
        if len > MAX_COMMAND || read.is_err() {
            self.controlled.refuse(&"command is too long");
            return false;
        }
        let command = match Command::parse(&self.bytes, self.controlled.features) {
            Ok(command) => command,
            Err(error) => {
                self.controlled.refuse(&error);
                return false;
            }
        };
        tracing::debug!(device = self.controlled.name, ?command, "control command");
        match command {
            Command::AnnounceAck => {
                self.controlled.link.announced();
                true
            }
            Command::Pairs(count) => self.spend(|controlled| controlled.set_pairs(count)),
            Command::Offloads(mask) => self.spend(|controlled| controlled.set_offloads(mask)),
            wish => {
                let mut rules = (*self.controlled.filter.rules()).clone();
                let applied = rules.apply(wish);
                self.controlled.filter.set(rules);
                applied
            }
        }
    }

    /// Makes a change that may be one of the host's interface.
    fn spend(&mut self, change: impl FnOnce(&mut Controlled<B>) -> Changed) -> bool {
        match change(&mut self.controlled) {
            Changed::Nothing => true,
            Changed::Interface(done) => {
                self.limit.spend(0, Instant::now());
                done
            }
            Changed::Refused => false,
        }
    }
}

/// What became of a command that concerns the host's interface.
enum Changed {
    /// It is so already.
    Nothing,
    /// The interface was asked, and agreed or not.
    Interface(bool),
    /// The command is none that can be carried out.
    Refused,
}

impl<B: Backend> Controlled<B> {
    fn refuse(&self, reason: &dyn std::fmt::Display) {
        if let Some(suppressed) = REFUSALS.allow() {
            let device = &self.name;
            tracing::debug!(device, %reason, suppressed, "control command refused");
        }
    }

    fn set_pairs(&self, count: u16) -> Changed {
        let before = self.pairs.in_use();
        if count == 0 || usize::from(count) > self.backends.len() {
            self.refuse(&"there are not so many queue pairs");
            return Changed::Refused;
        }
        if count == before {
            return Changed::Nothing;
        }
        let result = use_pairs(&self.backends, &self.pairs, count);
        if let Err(error) = &result {
            self.complain(error, "cannot change the queues of the network interface");
        }
        self.link.forget(self.pairs.in_use());
        Changed::Interface(result.is_ok())
    }

    fn set_offloads(&mut self, mask: u64) -> Changed {
        let settings = Settings {
            offloads: Some(mask),
        };
        let offloads = settings.offloads(self.features);
        if offloads == self.settings.offloads(self.features) {
            self.settings = settings;
            return Changed::Nothing;
        }
        let Some(first) = self.backends.first() else {
            return Changed::Refused;
        };
        match first.set_offloads(offloads) {
            Err(error) if first.is_attached() => {
                self.complain(
                    &error,
                    "cannot change the offloads of the network interface",
                );
                Changed::Interface(false)
            }
            // One that is gone hands over nothing.
            _ => {
                self.settings = settings;
                Changed::Interface(true)
            }
        }
    }

    fn complain(&self, error: &io::Error, what: &'static str) {
        if let Some(suppressed) = REFUSALS.allow() {
            tracing::warn!(device = self.name, %error, suppressed, "{what}");
        }
    }
}

/// Lets the first `count` of `pairs` receive, and no others. Returns when those that do no longer have ended their turn. An
/// interface that is gone takes any number.
///
/// # Errors
///
/// The host refused; as many receive as before.
pub(super) fn use_pairs<B: Backend>(
    backends: &[Arc<B>],
    pairs: &Pairs,
    count: u16,
) -> io::Result<()> {
    let before = pairs.in_use();
    // What is given to a pair while its worker does not receive would stay there.
    pairs.set_in_use(count);
    pairs.wait_for_turns(count.max(1));
    let change = |index: usize, receiving| match backends.get(index) {
        Some(backend) => match backend.set_receiving(receiving) {
            Err(error) if backend.is_attached() => Err(error),
            _ => Ok(()),
        },
        None => Ok(()),
    };
    let (low, high) = (before.min(count).into(), before.max(count).into());
    // In this order each pair keeps its number in the interface.
    let result = if count > before {
        (low..high).try_for_each(|index| change(index, true))
    } else {
        (low..high).rev().try_for_each(|index| change(index, false))
    };
    if result.is_err() {
        pairs.set_in_use(before);
        for index in low..high {
            let _ = change(index, count < before);
        }
    }
    result
}
