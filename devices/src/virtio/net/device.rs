//! The device towards its transport.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::IntoBytes;

use super::backend::{Backend, Offloads};
use super::handler::{QueuePair, Shared};
use super::link::{Link, Port};
use super::metrics::NetMetrics;
use super::rx::Rx;
use super::spec::{self, bit};
use super::tx::Tx;
use crate::state::{Persist, Section, StateError};
use crate::virtio::device::read_fields;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

const KIND: &str = "virtio-net";
const VERSION: u16 = 1;

/// Most packets thrown away when the driver goes: more than a tap keeps by default.
const MAX_DISCARDED: usize = 4096;

/// What a network device cannot be made with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The queue size is not one that a split ring can have.
    #[error("queue size is {0}, expected a power of two from 2 to 32768")]
    QueueSize(u16),
    /// The MTU is below what a device may report.
    #[error("mtu is {0}, expected at least 68")]
    Mtu(u16),
    /// The address is a group's or nobody's.
    #[error("mac address is {}, expected that of one station: lowest bit of the first byte 0, not all zero", format_mac(.0))]
    Mac([u8; 6]),
}

/// What a network device is made with, besides its port.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// The MTU that the driver is told, in bytes, if any.
    pub mtu: Option<u16>,
    /// The largest size of each queue, in elements.
    pub queue_size: u16,
    /// What to leave to the guest and take from it, as far as the port can.
    pub offloads: Offloads,
}

/// The network device (virtio 1.2, section 5.1), with one queue pair.
pub struct Net<B: Backend> {
    name: String,
    backend: Arc<B>,
    mac: [u8; 6],
    mtu: Option<u16>,
    queue_sizes: [u16; 2],
    offloads: Offloads,
    link: Arc<Link>,
    metrics: Arc<NetMetrics>,
    worker: Option<Worker<QueuePair<B>>>,
    /// The port may hold packets that only a driver which took segmentation offload can take.
    oversized: bool,
    /// The driver has offered room for the longest packet once: kept over a pause, as its ring may be low when it resumes.
    offers_enough: bool,
}

impl<B: Backend> Net<B> {
    /// Makes a device that is called `virtio-ID`.
    ///
    /// # Errors
    ///
    /// [`NetError`] names the option that cannot be.
    pub fn new(id: &str, backend: B, options: NetOptions) -> Result<Self, NetError> {
        let NetOptions {
            mac,
            mtu,
            queue_size,
            offloads,
        } = options;
        if !queue_size.is_power_of_two() || !(2..=32768).contains(&queue_size) {
            return Err(NetError::QueueSize(queue_size));
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < spec::MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        if !is_station(mac) {
            return Err(NetError::Mac(mac));
        }
        Ok(Self {
            name: format!("virtio-{id}"),
            link: Arc::new(Link::new(backend.is_attached())),
            backend: Arc::new(backend),
            mac,
            mtu,
            queue_sizes: [queue_size; 2],
            offloads,
            metrics: Arc::default(),
            worker: None,
            // Whoever had the port before may have left some.
            oversized: true,
            offers_enough: false,
        })
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Whether the link is up.
    pub fn is_link_up(&self) -> bool {
        self.link.is_up()
    }

    fn config(&self) -> spec::Config {
        spec::Config {
            mac: self.mac,
            status: self.link.status().into(),
            max_virtqueue_pairs: 1.into(),
            mtu: self.mtu.unwrap_or_default().into(),
        }
    }

    fn set_offloads(&self, offloads: Offloads) -> Result<(), StartError> {
        match self.backend.set_offloads(offloads) {
            // An interface that is gone is a link that is down, and no reason to fail a machine that resumes.
            Err(source) if self.backend.is_attached() => Err(StartError::Resource {
                what: "the accepted offloads from the network interface",
                source,
            }),
            _ => Ok(()),
        }
    }
}

impl<B: Backend> VirtioDevice for Net<B> {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let mut features = spec::offered(self.offloads & self.backend.offloads());
        for feature in [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            spec::VIRTIO_NET_F_MAC,
            spec::VIRTIO_NET_F_MRG_RXBUF,
            spec::VIRTIO_NET_F_STATUS,
        ] {
            features |= bit(feature);
        }
        if self.mtu.is_some() {
            features |= bit(spec::VIRTIO_NET_F_MTU);
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
        let (mut rx, mut tx) = (None, None);
        for active in queues {
            match active.index {
                spec::RX => rx = Some(active),
                spec::TX => tx = Some(active),
                _ => {}
            }
        }
        let rx = rx.ok_or(StartError::QueueMissing(spec::RX))?;
        let tx = tx.ok_or(StartError::QueueMissing(spec::TX))?;

        let offloads = spec::accepted(features);
        self.set_offloads(offloads)?;
        self.oversized |= offloads.segmentation();

        let reports_status = features & bit(spec::VIRTIO_NET_F_STATUS) != 0;
        let port = Port::new(
            &self.name,
            self.backend.is_attached(),
            Arc::clone(&self.link),
            Arc::clone(&self.metrics),
            reports_status.then(|| Arc::clone(&interrupt)),
        );
        let shared = Shared {
            backend: Arc::clone(&self.backend),
            memory,
            interrupt,
            metrics: Arc::clone(&self.metrics),
        };
        let want = spec::longest_packet(offloads, self.mtu);
        let merge = features & bit(spec::VIRTIO_NET_F_MRG_RXBUF) != 0;
        let rx = Rx::new(rx, want, merge, self.offers_enough);
        let pair = QueuePair::new(&self.name, shared, port, rx, Tx::new(tx));
        let worker = Worker::spawn(&self.name, pair).map_err(|source| StartError::Resource {
            what: "a worker thread",
            source,
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let pair = worker.stop();
        self.offers_enough = pair.offers_enough();
        // Nobody takes packets now; those that wait for a resume are left, and what follows is for any driver.
        if let Err(error) = self.set_offloads(Offloads::empty()) {
            tracing::warn!(device = self.name, %error, "cannot reset the offloads of the network interface");
        }
        pair.into_queues().into()
    }

    fn reset(&mut self) {
        self.offers_enough = false;
        if !std::mem::take(&mut self.oversized) {
            return;
        }
        // Packets queued for the driver that went may be of a kind that the next one does not accept.
        let mut byte = 0_u8;
        let buffer = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        for _ in 0..MAX_DISCARDED {
            // SAFETY: the buffer is the byte above.
            #[allow(unsafe_code)]
            let result = unsafe { self.backend.receive(&[buffer]) };
            if !matches!(result, Ok(len) if len > 0) {
                break;
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    mac: [u8; 6],
    mtu: Option<u16>,
    link_up: bool,
    offers_enough: bool,
}

impl<B: Backend> Persist for Net<B> {
    fn save(&self) -> Section {
        let Self {
            mac,
            mtu,
            link,
            offers_enough,
            // Configuration, the same in the device that is restored into.
            name: _,
            queue_sizes: _,
            offloads: _,
            // Of this host.
            backend: _,
            metrics: _,
            oversized: _,
            // Stopped, its queues handed back.
            worker: _,
        } = self;
        Section::new(
            KIND,
            VERSION,
            &State {
                mac: *mac,
                mtu: *mtu,
                link_up: link.is_up(),
                offers_enough: *offers_enough,
            },
        )
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            mac,
            mtu,
            link_up,
            offers_enough,
        } = section.decode(KIND, VERSION)?;
        let refuse = |field, value, expected: &str| StateError::Field {
            kind: KIND,
            field,
            value,
            expected: expected.to_owned(),
        };
        if !is_station(mac) {
            return Err(refuse(
                "mac",
                format_mac(&mac),
                "the address of one station",
            ));
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < spec::MIN_MTU) {
            return Err(refuse("mtu", mtu.to_string(), "at least 68"));
        }
        self.mac = mac;
        self.mtu = mtu;
        self.link.set(link_up);
        self.offers_enough = offers_enough;
        Ok(())
    }
}

fn is_station(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

fn format_mac(mac: &[u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
