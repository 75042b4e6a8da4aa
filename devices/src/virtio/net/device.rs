//! The device towards its transport.

mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::IntoBytes;

use super::backend::{Backend, Offloads, discard};
use super::control::{Control, Controlled, Settings, use_pairs};
use super::filter::{Filter, Mac, Rules, Sieve};
use super::handle::NetHandle;
use super::handler::{QueuePair, Shared};
use super::link::{Link, Port, Running};
use super::metrics::NetMetrics;
use super::options::{MAX_PAIRS, NetError, NetOptions, is_station};
use super::pairs::Pairs;
use super::rx::{Rx, RxSetup};
use super::spec::{self, bit};
use super::tx::Tx;
use crate::rate_limit::RateLimiter;
use crate::virtio::device::read_fields;
use crate::virtio::limit::Limit;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

#[cfg(test)]
pub(super) use self::state::State;

/// Most packets thrown away when the driver goes: more than a tap keeps by default.
const MAX_DISCARDED: usize = 4096;

/// The network device (virtio 1.2, section 5.1), with a queue pair for each of its ports, and a control queue.
pub struct Net<B: Backend> {
    name: String,
    backends: Vec<Arc<B>>,
    mac: Mac,
    mtu: Option<u16>,
    queue_sizes: Vec<u16>,
    offloads: Offloads,
    rx_limiter: Arc<RateLimiter>,
    tx_limiter: Arc<RateLimiter>,
    link: Arc<Link>,
    pairs: Arc<Pairs>,
    filter: Arc<Filter>,
    settings: Settings,
    metrics: Arc<NetMetrics>,
    workers: Vec<Worker<QueuePair<B>>>,
    /// Queues that the driver enabled and that nobody works on.
    idle: Vec<ActiveQueue>,
    /// The port may hold packets that only a driver which took segmentation offload can take.
    oversized: bool,
    /// The driver has offered room for the longest packet once, by pairs: kept over a pause, as its ring may be low when it
    /// resumes.
    offers_enough: Vec<bool>,
}

impl<B: Backend> Net<B> {
    /// Makes a device that is called `virtio-ID`, with a queue pair for each of `backends`, which are of one interface. All
    /// but the first are set aside until the driver uses more pairs.
    ///
    /// # Errors
    ///
    /// [`NetError`] names the option that cannot be.
    pub fn new(id: &str, backends: Vec<B>, options: NetOptions) -> Result<Self, NetError> {
        let NetOptions {
            mac,
            mtu,
            queue_size,
            offloads,
            rx_limiter,
            tx_limiter,
            link,
            observer,
        } = options;
        let count = backends.len();
        if !(1..=MAX_PAIRS).contains(&count) {
            return Err(NetError::Pairs(count));
        }
        if !queue_size.is_power_of_two() || !(2..=32768).contains(&queue_size) {
            return Err(NetError::QueueSize(queue_size));
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < spec::MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        if !is_station(mac) {
            return Err(NetError::Mac(mac));
        }
        let name = format!("virtio-{id}");
        let metrics = Arc::<NetMetrics>::default();
        let ports = backends.iter().map(Backend::is_attached);
        let link = Link::new(&name, ports, link, Arc::clone(&metrics), observer);
        let net = Self {
            link: Arc::new(link),
            pairs: Arc::new(Pairs::new(count as u16)),
            filter: Arc::new(Filter::new(mac)),
            settings: Settings::default(),
            backends: backends.into_iter().map(Arc::new).collect(),
            mac,
            mtu,
            queue_sizes: vec![queue_size; 2 * count + 1],
            offloads,
            rx_limiter,
            tx_limiter,
            metrics,
            workers: Vec::new(),
            idle: Vec::new(),
            // Whoever had the port before may have left some.
            oversized: true,
            offers_enough: vec![false; count],
            name,
        };
        net.set_receiving().map_err(NetError::Queues)?;
        Ok(net)
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    /// A way to the device from now on, wherever it goes.
    pub fn handle(&self) -> NetHandle {
        NetHandle {
            link: Arc::clone(&self.link),
            pairs: Arc::clone(&self.pairs),
            rx_limiter: Arc::clone(&self.rx_limiter),
            tx_limiter: Arc::clone(&self.tx_limiter),
        }
    }

    fn config(&self) -> spec::Config {
        spec::Config {
            mac: self.filter.rules().mac,
            status: self.link.status().into(),
            max_virtqueue_pairs: self.pairs.count().into(),
            mtu: self.mtu.unwrap_or_default().into(),
        }
    }

    /// What the device can offload.
    fn can_offload(&self) -> Offloads {
        self.offloads & self.backends[0].offloads()
    }

    fn set_offloads(&self, offloads: Offloads) -> Result<(), StartError> {
        let first = &self.backends[0];
        match first.set_offloads(offloads) {
            // An interface that is gone is a link that is down, and no reason to fail a machine that resumes.
            Err(source) if first.is_attached() => Err(StartError::Resource {
                what: "the accepted offloads from the network interface",
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Has the host give packets to the pairs that are in use, and to no others.
    fn set_receiving(&self) -> io::Result<()> {
        if self.backends.len() == 1 {
            return Ok(());
        }
        let in_use = usize::from(self.pairs.in_use());
        let (used, unused) = self.backends.split_at(in_use.min(self.backends.len()));
        let resting = unused.iter().rev().map(|backend| (backend, false));
        let receiving = used.iter().map(|backend| (backend, true));
        for (backend, receives) in resting.chain(receiving) {
            match backend.set_receiving(receives) {
                Err(error) if backend.is_attached() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn port(&self, index: u16) -> Port {
        let attached = self.backends[usize::from(index)].is_attached();
        Port::new(index, attached, Arc::clone(&self.link))
    }

    /// Starts the worker of pair `index`. An error tells what could not be had.
    fn start_pair(
        &mut self,
        index: u16,
        (rx, tx): (ActiveQueue, ActiveQueue),
        activation: &AllPairs,
        control: Option<ActiveQueue>,
    ) -> Result<(), (&'static str, io::Error)> {
        let AllPairs {
            memory,
            interrupt,
            features,
            pairs,
        } = activation;
        let limit = |limiter: &Arc<RateLimiter>| {
            Limit::new(Arc::clone(limiter)).map_err(|source| ("a timer", source))
        };
        let control = control.map(|queue| {
            let controlled = Controlled {
                name: self.name.clone(),
                backends: self.backends[..usize::from(*pairs)].to_vec(),
                filter: Arc::clone(&self.filter),
                pairs: Arc::clone(&self.pairs),
                link: Arc::clone(&self.link),
                interrupt: Arc::clone(interrupt),
                metrics: Arc::clone(&self.metrics),
                features: *features,
                settings: self.settings,
            };
            Control::new(queue, controlled)
        });
        let control = control.transpose().map_err(|source| ("a timer", source))?;
        let setup = RxSetup {
            want: spec::longest_packet(spec::accepted(*features), self.mtu),
            merge: features & bit(spec::VIRTIO_NET_F_MRG_RXBUF) != 0,
            offers_enough: self.offers_enough[usize::from(index)],
            sieve: Sieve::new(&self.filter),
            limit: limit(&self.rx_limiter)?,
        };
        let shared = Shared {
            backend: Arc::clone(&self.backends[usize::from(index)]),
            memory: memory.clone(),
            interrupt: Arc::clone(interrupt),
            filter: Arc::clone(&self.filter),
            metrics: Arc::clone(&self.metrics),
        };
        let queues = (Rx::new(rx, setup), Tx::new(tx, limit(&self.tx_limiter)?));
        let name = match self.backends.len() {
            1 => self.name.clone(),
            _ => format!("{}-q{index}", self.name),
        };
        let place = (index, Arc::clone(&self.pairs));
        let pair = QueuePair::new(&name, place, shared, self.port(index), queues, control);
        let worker = Worker::spawn(&name, pair).map_err(|source| ("a worker thread", source))?;
        self.workers.push(worker);
        Ok(())
    }
}

/// What all pairs of an activation have in common.
struct AllPairs {
    memory: crate::memory::GuestRam,
    interrupt: Arc<dyn crate::virtio::Interrupt>,
    features: u64,
    /// Number of pairs that have both their queues.
    pairs: u16,
}

impl<B: Backend> VirtioDevice for Net<B> {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let offloads = spec::offered(self.can_offload());
        let mut features = offloads;
        for feature in [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            spec::VIRTIO_NET_F_MAC,
            spec::VIRTIO_NET_F_MRG_RXBUF,
            spec::VIRTIO_NET_F_STATUS,
            spec::VIRTIO_NET_F_CTRL_VQ,
            spec::VIRTIO_NET_F_CTRL_RX,
            spec::VIRTIO_NET_F_CTRL_VLAN,
            spec::VIRTIO_NET_F_CTRL_RX_EXTRA,
            spec::VIRTIO_NET_F_GUEST_ANNOUNCE,
            spec::VIRTIO_NET_F_CTRL_MAC_ADDR,
        ] {
            features |= bit(feature);
        }
        for (feature, offered) in [
            (spec::VIRTIO_NET_F_MTU, self.mtu.is_some()),
            (spec::VIRTIO_NET_F_MQ, self.backends.len() > 1),
            (spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, offloads != 0),
        ] {
            if offered {
                features |= bit(feature);
            }
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // All fields are read-only for the driver (virtio 1.2, 5.1.4).
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues,
            features,
            interrupt,
        } = activation;
        let accepted = |feature| features & bit(feature) != 0;
        // Where the control queue is follows from what the driver accepted (5.1.2).
        let most = if accepted(spec::VIRTIO_NET_F_MQ) {
            self.pairs.count()
        } else {
            1
        };
        let mut queues: BTreeMap<u16, ActiveQueue> = queues
            .into_iter()
            .map(|active| (active.index, active))
            .collect();
        let mut pairs = Vec::new();
        for (rx, tx) in (0..most).map(spec::queues_of_pair) {
            if !queues.contains_key(&rx) || !queues.contains_key(&tx) {
                break;
            }
            pairs.extend(queues.remove(&rx).zip(queues.remove(&tx)));
        }
        let needed = self.pairs.in_use();
        if pairs.len() < usize::from(needed) {
            let (rx, tx) = spec::queues_of_pair(pairs.len() as u16);
            let missing = if queues.contains_key(&rx) { tx } else { rx };
            return Err(StartError::QueueMissing(missing));
        }
        let mut control = accepted(spec::VIRTIO_NET_F_CTRL_VQ)
            .then(|| queues.remove(&spec::control_queue(most)))
            .flatten();
        self.idle = queues.into_values().collect();

        let wakes = pairs.iter().flat_map(|(rx, tx)| [&rx.notify, &tx.notify]);
        let wakes = wakes
            .map(|notify| notify.try_clone())
            .collect::<io::Result<_>>();
        let wakes = wakes.map_err(|source| StartError::Resource {
            what: "an eventfd",
            source,
        })?;
        if accepted(spec::VIRTIO_NET_F_CTRL_VLAN) {
            let mut rules = (*self.filter.rules()).clone();
            rules.expect_vlans();
            self.filter.set(rules);
        }
        self.set_offloads(self.settings.offloads(features))?;
        self.oversized |= spec::accepted(features).segmentation();
        self.set_receiving()
            .map_err(|source| StartError::Resource {
                what: "the queues of the network interface",
                source,
            })?;

        let common = AllPairs {
            memory,
            interrupt: Arc::clone(&interrupt),
            features,
            pairs: pairs.len() as u16,
        };
        self.link.begin(Running {
            interrupt: accepted(spec::VIRTIO_NET_F_STATUS).then_some(interrupt),
            announces: accepted(spec::VIRTIO_NET_F_GUEST_ANNOUNCE)
                && accepted(spec::VIRTIO_NET_F_STATUS)
                && control.is_some(),
            wakes,
        });
        for (index, queues) in (0..).zip(pairs) {
            if let Err((what, source)) = self.start_pair(index, queues, &common, control.take()) {
                self.stop();
                return Err(StartError::Resource { what, source });
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.link.end();
        let mut queues = std::mem::take(&mut self.idle);
        if self.workers.is_empty() {
            return queues;
        }
        for (index, worker) in self.workers.drain(..).enumerate() {
            let pair = worker.stop();
            self.offers_enough[index] = pair.offers_enough();
            let (handed_back, settings) = pair.into_parts();
            queues.extend(handed_back);
            self.settings = settings.unwrap_or(self.settings);
        }
        // Nobody takes packets now; those that wait for a resume are left, and what follows is for any driver.
        if let Err(error) = self.set_offloads(Offloads::empty()) {
            tracing::warn!(device = self.name, %error, "cannot reset the offloads of the network interface");
        }
        queues.sort_by_key(|active| active.index);
        queues
    }

    fn reset(&mut self) {
        self.offers_enough.fill(false);
        self.settings = Settings::default();
        self.filter.set(Rules::new(self.mac));
        self.link.reset();
        if let Err(error) = use_pairs(&self.backends, &self.pairs, 1) {
            tracing::warn!(device = self.name, %error, "cannot set aside queues of the network interface");
        }
        self.link.forget(1);
        if !std::mem::take(&mut self.oversized) {
            return;
        }
        // Packets queued for the driver that went may be of a kind that the next one does not accept. The queues that were
        // set aside hold none.
        for _ in 0..MAX_DISCARDED {
            if !matches!(discard(&*self.backends[0]), Ok(len) if len > 0) {
                break;
            }
        }
    }
}
