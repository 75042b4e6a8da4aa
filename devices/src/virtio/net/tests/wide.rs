//! A guest with several queue pairs and a control queue.

use super::*;
use crate::virtio::net::spec::{self, bit};

const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x2000;
const CONTROL_RING: u64 = 0x8_0000;
pub(super) const COMMAND: u64 = 0x9_0000;
const ACK: u64 = 0xf_fff0;
/// What nobody answers.
const UNANSWERED: u8 = 0xaa;

/// All that concerns the control queue.
pub(super) const CONTROLLED: u64 = PLAIN
    | bit(spec::VIRTIO_NET_F_STATUS)
    | bit(spec::VIRTIO_NET_F_CTRL_VQ)
    | bit(spec::VIRTIO_NET_F_CTRL_RX)
    | bit(spec::VIRTIO_NET_F_CTRL_RX_EXTRA)
    | bit(spec::VIRTIO_NET_F_CTRL_VLAN)
    | bit(spec::VIRTIO_NET_F_CTRL_MAC_ADDR)
    | bit(spec::VIRTIO_NET_F_GUEST_ANNOUNCE);
pub(super) const WIDE: u64 = CONTROLLED | bit(spec::VIRTIO_NET_F_MQ);

pub(super) struct Wide {
    pub(super) memory: GuestRam,
    pub(super) rx: Vec<Ring>,
    pub(super) tx: Vec<Ring>,
    pub(super) control: Ring,
    pub(super) interrupt: Arc<CountingInterrupt>,
    pub(super) net: Net<SocketPort>,
    pub(super) metrics: Arc<NetMetrics>,
    pub(super) controls: Vec<Arc<Control>>,
    pub(super) hosts: Vec<UnixDatagram>,
}

impl Wide {
    /// A device with `pairs` that is not started.
    pub(super) fn new(pairs: u64) -> Self {
        Self::with_options(pairs, options())
    }

    pub(super) fn with_options(pairs: u64, options: NetOptions) -> Self {
        let memory = driver::memory(&[(0, MEMORY)]);
        let ends = (0..pairs).map(|_| SocketPort::pair(Offloads::all()));
        let (mut ports, mut controls, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
        for (port, control, host) in ends {
            ports.push(port);
            controls.push(control);
            hosts.push(host);
        }
        let net = Net::new("_net0", ports, options).unwrap();
        let ring = |at| Ring::new(&memory, RINGS + at * RING, SIZE);
        Self {
            rx: (0..pairs).map(|pair| ring(2 * pair)).collect(),
            tx: (0..pairs).map(|pair| ring(2 * pair + 1)).collect(),
            control: Ring::new(&memory, CONTROL_RING, SIZE),
            memory,
            interrupt: Arc::default(),
            metrics: net.metrics(),
            net,
            controls,
            hosts,
        }
    }

    /// One that runs for a driver that accepted `features`.
    pub(super) fn started(pairs: u64, features: u64) -> Self {
        let mut wide = Self::new(pairs);
        wide.start(features);
        wide
    }

    pub(super) fn start(&mut self, features: u64) {
        let data = self.rx.iter().zip(&self.tx).flat_map(|(rx, tx)| [rx, tx]);
        let rings: Vec<&Ring> = data.chain([&self.control]).collect();
        let activation = driver::activation(&self.memory, &rings, features, &self.interrupt);
        self.net.start(activation).unwrap();
    }

    /// Which ports receive.
    pub(super) fn receiving(&self) -> Vec<bool> {
        let rests = self.controls.iter().map(|control| &control.rests);
        rests.map(|rests| !rests.load(Ordering::SeqCst)).collect()
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        let memory = self.memory.memory();
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.memory.memory();
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Offers `buffers` on the control queue, and returns what comes back.
    pub(super) fn offer_control(&mut self, buffers: &[Buffer]) -> Used {
        self.control.push(buffers);
        self.control.kick();
        self.control.wait_used(5 * SECOND).expect("an answer comes")
    }

    /// The answer to the command `bytes`.
    pub(super) fn command(&mut self, bytes: &[u8]) -> u8 {
        self.write(COMMAND, bytes);
        self.write(ACK, &[UNANSWERED]);
        let buffers = [readable(COMMAND, bytes.len() as u32), writable(ACK, 1)];
        assert_eq!(self.offer_control(&buffers).len, 1);
        self.read(ACK, 1)[0]
    }

    pub(super) fn offer_rx(&mut self, pair: usize, address: u64) {
        self.rx[pair].push(&[writable(address, 2048)]);
        self.rx[pair].kick();
    }

    /// Whether what the host sends to `pair` reaches the guest.
    pub(super) fn arrives(&mut self, pair: usize, payload: &[u8]) -> bool {
        self.hosts[pair].send(&frame(payload)).unwrap();
        self.rx[pair].wait_used(QUIET).is_some()
    }

    pub(super) fn guest_sends(&mut self, pair: usize, payload: &[u8]) {
        self.write(DATA, &HEADER);
        self.write(DATA + 12, payload);
        self.tx[pair].push(&[readable(DATA, payload.len() as u32 + 12)]);
        self.tx[pair].kick();
        self.tx[pair]
            .wait_used(5 * SECOND)
            .expect("a packet is sent");
    }

    pub(super) fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.net.read_config(offset, &mut bytes);
        bytes
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        self.net.stop();
    }
}
