//! The device against the driver for tests, over a pair of datagram sockets in place of a tap.

mod control;
mod hostile;
mod lifecycle;
mod limit;
mod link;
mod pairs;
mod port;
mod receive;
mod transmit;
mod wide;

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::spec::{self, bit};
use super::{Net, NetMetrics, NetOptions, Offloads};
use crate::memory::GuestRam;
use crate::rate_limit::{RateLimiter, RateLimits};
use crate::virtio::VirtioDevice;
use crate::virtio::driver::{self, Buffer, CountingInterrupt, Ring, Used, readable, writable};
use port::{Control, SocketPort};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a worker to do what it must not do.
const QUIET: Duration = Duration::from_millis(30);
const MEMORY: usize = 16 << 20;
const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x4_0000;
const TABLE: u64 = 0x8_0000;
const DATA: u64 = 0x10_0000;
const SIZE: u16 = 256;
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

const PLAIN: u64 = bit(VIRTIO_F_VERSION_1);
const MERGE: u64 = PLAIN | bit(spec::VIRTIO_NET_F_MRG_RXBUF);
const STATUS: u64 = PLAIN | bit(spec::VIRTIO_NET_F_STATUS);

fn unlimited() -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(RateLimits::default(), Instant::now()))
}

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: Some(1500),
        queue_size: SIZE,
        offloads: Offloads::all(),
        rx_limiter: unlimited(),
        tx_limiter: unlimited(),
        link: true,
        observer: None,
    }
}

/// A guest with the device, and the host's end of its cable.
struct Bench {
    memory: GuestRam,
    rx: Ring,
    tx: Ring,
    interrupt: Arc<CountingInterrupt>,
    net: Net<SocketPort>,
    metrics: Arc<NetMetrics>,
    control: Arc<Control>,
    host: UnixDatagram,
}

impl Bench {
    /// A device that is not started.
    fn new() -> Self {
        Self::with_memory(&[(0, MEMORY)])
    }

    fn with_memory(regions: &[(u64, usize)]) -> Self {
        Self::with_rings(regions, SIZE)
    }

    /// A device with rings of `size` elements.
    fn with_rings(regions: &[(u64, usize)], size: u16) -> Self {
        let memory = driver::memory(regions);
        let (port, control, host) = SocketPort::pair(Offloads::all());
        let net = Net::new("_net0", vec![port], options()).unwrap();
        Self {
            rx: Ring::new(&memory, RX_RING, size),
            tx: Ring::new(&memory, TX_RING, size),
            memory,
            interrupt: Arc::default(),
            metrics: net.metrics(),
            net,
            control,
            host,
        }
    }

    /// A device that runs for a driver that accepted `features`.
    fn started(features: u64) -> Self {
        let mut bench = Self::new();
        bench.start(features);
        bench
    }

    fn start(&mut self, features: u64) {
        let activation = driver::activation(
            &self.memory,
            &[&self.rx, &self.tx],
            features,
            &self.interrupt,
        );
        self.net.start(activation).unwrap();
    }

    /// The host sends `payload` with a header whose first byte is 1, the flag for a missing checksum.
    fn host_sends(&self, payload: &[u8]) {
        self.host.send(&frame(payload)).unwrap();
    }

    /// The payload the host gets next, after a header as [`Bench::guest_packet`] writes it.
    fn host_gets(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 17];
        let len = self.host.recv(&mut frame).expect("a packet comes");
        assert_eq!(frame[..12], HEADER);
        frame[12..len].to_vec()
    }

    fn host_gets_nothing(&self) {
        thread::sleep(QUIET);
        self.host.set_nonblocking(true).unwrap();
        assert!(self.host.recv(&mut [0; 16]).is_err());
        self.host.set_nonblocking(false).unwrap();
    }

    fn offer_rx(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.rx.push(buffers);
        self.rx.kick();
        head
    }

    /// Writes header and `payload` at `address`, and offers them as one buffer.
    fn guest_sends(&mut self, address: u64, payload: &[u8]) -> u16 {
        self.guest_packet(address, payload);
        let head = self
            .tx
            .push(&[readable(address, payload.len() as u32 + 12)]);
        self.tx.kick();
        head
    }

    fn guest_packet(&self, address: u64, payload: &[u8]) {
        self.write(address, &HEADER);
        self.write(address + 12, payload);
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn wait_rx(&mut self) -> Used {
        self.rx.wait_used(5 * SECOND).expect("a packet is received")
    }

    fn wait_tx(&mut self) -> Used {
        self.tx.wait_used(5 * SECOND).expect("a packet is sent")
    }

    fn rx_stays_unused(&mut self) {
        assert_eq!(self.rx.wait_used(QUIET), None);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.net.stop();
    }
}

/// The header that the guest sends: no offload.
const HEADER: [u8; 12] = [0; 12];

/// What the host sends for `payload`.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee];
    frame.extend_from_slice(payload);
    frame
}

/// The header that the guest finds before such a payload in `buffers` chains.
fn received_header(buffers: u16) -> [u8; 12] {
    let [low, high] = buffers.to_le_bytes();
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, low, high]
}

/// Bytes that differ from position to position and from `seed` to `seed`.
fn payload(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + at / 251) as u8 ^ seed)
        .collect()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Waits until `counter` is at least `least`.
fn wait_count(counter: &AtomicU64, least: u64) {
    wait_until(|| count(counter) >= least);
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + 5 * SECOND;
    while !condition() {
        assert!(Instant::now() < end, "what was waited for did not come");
        thread::sleep(Duration::from_micros(200));
    }
}
