//! The device against the driver for tests, over real Unix sockets.

mod arbitrary;
mod echo;
mod flow;
mod hostile;
mod lifecycle;
mod open;
mod shutdown;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use zerocopy::{FromBytes, IntoBytes};

use super::backlog::CAPACITY;
use super::spec::{Credit, Ends, HEADER_LEN, HOST_CID, Header, Op, Packet, Shutdown, TYPE_STREAM};
use super::{Connector, Vsock, VsockMetrics};
use crate::memory::GuestRam;
use crate::virtio::driver::{self, CountingInterrupt, Ring, readable, writable};
use crate::virtio::{ActiveQueue, VirtioDevice};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a worker to do what it must not do.
const QUIET: Duration = Duration::from_millis(30);
const MEMORY: usize = 32 << 20;
const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x4_0000;
const EVENT_RING: u64 = 0x7_0000;
const TX_DATA: u64 = 0x10_0000;
const RX_DATA: u64 = 0x40_0000;
/// Distance between receive buffers.
const STRIDE: u64 = 0x1_1000;
const SIZE: u16 = 256;
const CID: u32 = 3;
/// The port of the guest's program.
const GUEST: u32 = 1234;
/// The port of the host's program.
const HOST: u32 = 52;
/// Room that the guest says it has.
const ROOM: u32 = 256 << 10;

/// The host's programs that take connections of the guest: one socket for each connection to come, by port.
#[derive(Default)]
struct Programs(Mutex<HashMap<u32, VecDeque<UnixStream>>>);

impl Connector for Programs {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut waiting = self.0.lock().unwrap();
        let stream = waiting.get_mut(&port).and_then(VecDeque::pop_front);
        stream.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// A guest with the device, and its host.
struct Bench {
    memory: GuestRam,
    rx: Ring,
    tx: Ring,
    event: Ring,
    interrupt: Arc<CountingInterrupt>,
    vsock: Vsock,
    metrics: Arc<VsockMetrics>,
    programs: Arc<Programs>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    /// Length of each receive buffer.
    buffer_len: u32,
    /// Where the receive buffer of a head is.
    buffers: HashMap<u16, u64>,
    credit: Credit,
}

impl Bench {
    /// A device that is not started.
    fn new() -> Self {
        let memory = driver::memory(&[(0, MEMORY)]);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let listener = Arc::new(UnixListener::bind(&socket).unwrap());
        let programs = Arc::new(Programs::default());
        let connector = Arc::clone(&programs) as Arc<dyn Connector>;
        let vsock = Vsock::new("virtio-_vsock0", CID, listener, connector).unwrap();
        Self {
            rx: Ring::new(&memory, RX_RING, SIZE),
            tx: Ring::new(&memory, TX_RING, SIZE),
            event: Ring::new(&memory, EVENT_RING, 16),
            memory,
            interrupt: Arc::default(),
            metrics: vsock.metrics(),
            vsock,
            programs,
            socket,
            _folder: folder,
            buffer_len: 0,
            buffers: HashMap::new(),
            credit: Credit {
                buf_alloc: ROOM,
                fwd_cnt: 0,
            },
        }
    }

    /// A device that runs for a guest that offered 64 receive buffers of 4 KiB.
    fn started() -> Self {
        let mut bench = Self::new();
        bench.start();
        bench.offer(64, 4096);
        bench
    }

    fn start(&mut self) {
        let rings = [&self.rx, &self.tx, &self.event];
        let activation = driver::activation(&self.memory, &rings, 0, &self.interrupt);
        self.vsock.start(activation).unwrap();
    }

    fn resume(&mut self, queues: Vec<ActiveQueue>) {
        for active in &queues {
            active.notify.write(1).unwrap();
        }
        let interrupt = Arc::clone(&self.interrupt) as _;
        self.vsock
            .start(crate::virtio::Activation {
                memory: self.memory.clone(),
                queues,
                features: 0,
                interrupt,
            })
            .unwrap();
    }

    /// Offers `count` receive buffers of `len` bytes.
    fn offer(&mut self, count: u64, len: u32) {
        self.buffer_len = len;
        for at in 0..count {
            let address = RX_DATA + at * STRIDE;
            let head = self.rx.push(&[writable(address, len)]);
            self.buffers.insert(head, address);
        }
        self.rx.kick();
    }

    /// The next packet that the guest got, its buffer offered again.
    fn try_receive(&mut self) -> Option<(Packet, Vec<u8>)> {
        let used = self.rx.pop_used()?;
        let address = self.buffers.remove(&used.head).unwrap();
        let bytes = self.read(address, used.len as usize);
        let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
        let packet = Packet::parse(&header);
        assert_eq!(packet.len as usize, payload.len());
        let payload = payload.to_vec();
        let head = self.rx.push(&[writable(address, self.buffer_len)]);
        self.buffers.insert(head, address);
        self.rx.kick();
        Some((packet, payload))
    }

    fn receive(&mut self) -> (Packet, Vec<u8>) {
        let end = Instant::now() + 10 * SECOND;
        loop {
            if let Some(received) = self.try_receive() {
                return received;
            }
            assert!(Instant::now() < end, "no packet came");
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// The next packet, which has no payload and is between the usual ends.
    fn receive_op(&mut self, op: Op) -> Packet {
        let (packet, payload) = self.receive();
        assert_eq!((packet.op, payload.len()), (op, 0));
        assert_eq!(packet.ends.src_cid, HOST_CID);
        assert_eq!(packet.ends.dst_cid, u64::from(CID));
        assert_eq!(packet.ends.kind, TYPE_STREAM);
        packet
    }

    fn receives_nothing(&mut self) {
        thread::sleep(QUIET);
        assert_eq!(self.try_receive(), None);
    }

    /// Sends a packet from the guest's port `from` to the host's port `to`.
    fn send_between(&mut self, from: u32, to: u32, op: Op, payload: &[u8]) {
        let ends = Ends {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: from,
            dst_port: to,
            kind: TYPE_STREAM,
        };
        let packet = Packet {
            ends,
            op,
            len: payload.len() as u32,
            credit: self.credit,
        };
        self.send_raw(&packet.header(), payload);
    }

    fn send(&mut self, op: Op) {
        self.send_between(GUEST, HOST, op, &[]);
    }

    fn send_data(&mut self, payload: &[u8]) {
        self.send_between(GUEST, HOST, Op::Data, payload);
    }

    fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        self.write(TX_DATA, header.as_bytes());
        self.write(TX_DATA + HEADER_LEN, payload);
        let mut chain = vec![readable(TX_DATA, HEADER_LEN as u32)];
        if !payload.is_empty() {
            chain.push(readable(TX_DATA + HEADER_LEN, payload.len() as u32));
        }
        let head = self.tx.push(&chain);
        self.tx.kick();
        let used = self.tx.wait_used(10 * SECOND).expect("a packet is taken");
        assert_eq!((used.head, used.len), (head, 0));
    }

    /// A program on the host waits for a connection of the guest to `port`; its end of it.
    fn program(&self, port: u32) -> UnixStream {
        let (device, program) = UnixStream::pair().unwrap();
        program.set_read_timeout(Some(10 * SECOND)).unwrap();
        let mut waiting = self.programs.0.lock().unwrap();
        waiting.entry(port).or_default().push_back(device);
        program
    }

    /// A connection that the guest opened, and the host's end of it.
    fn guest_connects(&mut self) -> UnixStream {
        let program = self.program(HOST);
        self.send(Op::Request);
        self.receive_op(Op::Response);
        program
    }

    /// A program on the host connects and says `greeting`.
    fn greet(&self, greeting: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(10 * SECOND)).unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        stream
    }

    /// A connection that a program on the host opened to the guest's port, and the host's port of it.
    fn host_connects(&mut self) -> (UnixStream, u32) {
        let mut stream = self.greet(&format!("CONNECT {GUEST}\n"));
        let request = self.receive_op(Op::Request);
        assert_eq!(request.ends.dst_port, GUEST);
        let port = request.ends.src_port;
        self.send_between(GUEST, port, Op::Response, &[]);
        assert_eq!(read_line(&mut stream), format!("OK {port}\n"));
        (stream, port)
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
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.vsock.stop();
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// What a program on the host reads until the connection ends.
fn read_all(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn read_exactly(mut stream: &UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes that differ from position to position and from `seed` to `seed`.
fn payload(seed: usize, len: usize) -> Vec<u8> {
    (seed..seed + len)
        .map(|at| (at * 7 + at / 251) as u8)
        .collect()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Waits until `counter` is `value`.
fn wait_count(counter: &AtomicU64, value: u64) {
    let end = Instant::now() + 10 * SECOND;
    while count(counter) != value {
        assert!(
            Instant::now() < end,
            "{} instead of {value}",
            count(counter)
        );
        thread::sleep(Duration::from_micros(200));
    }
}
