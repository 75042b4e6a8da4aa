//! The device against the driver for tests, with lines that remember.

mod bytes;
mod hostile;
mod ports;
mod state;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use zerocopy::{FromBytes, IntoBytes};

use super::spec::{F_MULTIPORT, F_SIZE, Header};
use super::{
    Client, Console, ConsoleError, ConsoleMetrics, INPUT_CAPACITY, NamedPort, PortInput, PortLine,
    WindowSize,
};
use crate::memory::GuestRam;
use crate::virtio::driver::{self, CountingInterrupt, Ring, readable, writable};
use crate::virtio::{ActiveQueue, VirtioDevice};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Long enough for a worker to do what it must not do.
const QUIET: Duration = Duration::from_millis(30);
const MEMORY: usize = 16 << 20;
const SIZE: u16 = 16;
/// Where ring N is.
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x1000;
/// Where the buffer for the next chain is.
const DATA: u64 = 0x10_0000;

#[derive(Default)]
struct LineState {
    room: usize,
    taken: Vec<u8>,
    client: Client,
    size: Option<WindowSize>,
    ready: usize,
}

/// The other end of a port, played by the test.
#[derive(Default)]
struct Line(Mutex<LineState>);

impl Line {
    fn new(room: usize) -> Arc<Self> {
        let line = Self::default();
        line.0.lock().unwrap().room = room;
        Arc::new(line)
    }

    fn set(&self, change: impl FnOnce(&mut LineState)) {
        change(&mut self.0.lock().unwrap());
    }

    fn get<T>(&self, read: impl FnOnce(&LineState) -> T) -> T {
        read(&self.0.lock().unwrap())
    }

    fn taken(&self) -> Vec<u8> {
        self.get(|line| line.taken.clone())
    }
}

impl PortLine for Line {
    fn room(&self) -> usize {
        self.get(|line| line.room)
    }

    fn transmit(&self, bytes: &[u8]) {
        self.set(|line| {
            line.room -= bytes.len();
            line.taken.extend(bytes);
        });
    }

    fn receiver_ready(&self) {
        self.set(|line| line.ready += 1);
    }

    fn client(&self) -> Client {
        self.get(|line| line.client)
    }

    fn size(&self) -> Option<WindowSize> {
        self.get(|line| line.size)
    }
}

/// A guest with the device, and the other ends of its ports.
struct Bench {
    memory: GuestRam,
    rings: Vec<Ring>,
    interrupt: Arc<CountingInterrupt>,
    device: Console,
    inputs: Vec<PortInput>,
    lines: Vec<Arc<Line>>,
    metrics: Arc<ConsoleMetrics>,
    features: u64,
    next: u64,
}

impl Bench {
    fn around(device: Console, lines: Vec<Arc<Line>>) -> Self {
        let memory = driver::memory(&[(0, MEMORY)]);
        let rings = (0..device.queue_sizes().len() as u64)
            .map(|index| Ring::new(&memory, RINGS + index * RING_STRIDE, SIZE))
            .collect();
        Self {
            memory,
            rings,
            interrupt: Arc::default(),
            inputs: device.inputs(),
            metrics: device.metrics(),
            features: device.features(),
            device,
            lines,
            next: DATA,
        }
    }

    /// A console whose other end takes `room` bytes.
    fn console(room: usize) -> Self {
        let line = Line::new(room);
        let device = Console::single("virtio-_console0", line.clone()).unwrap();
        let mut bench = Self::around(device, vec![line]);
        bench.start();
        bench
    }

    /// A device with ports `a`, `b` and so on, which the driver does not know of yet.
    fn ports(count: u8) -> Self {
        let lines: Vec<_> = (0..count).map(|_| Line::new(usize::MAX)).collect();
        let named = lines.iter().zip(b'a'..).map(|(line, name)| NamedPort {
            name: char::from(name).to_string(),
            line: line.clone(),
        });
        let device = Console::named("virtio-ports", named.collect()).unwrap();
        let mut bench = Self::around(device, lines);
        bench.start();
        bench
    }

    /// One port, `a`, that the driver has taken and a program of the guest has opened.
    fn open_port() -> Self {
        let mut bench = Self::ports(1);
        bench.say(0xffff_ffff, 0, 1);
        bench.say(1, 3, 1);
        assert_eq!(bench.hear(), (1, 1, 1, Vec::new()));
        assert_eq!(bench.hear(), (1, 7, 1, b"a".to_vec()));
        bench.say(1, 6, 1);
        bench
    }

    fn start(&mut self) {
        let rings: Vec<_> = self.rings.iter().collect();
        let activation = driver::activation(&self.memory, &rings, self.features, &self.interrupt);
        self.device.start(activation).unwrap();
    }

    /// Starts again with the queues that a stop gave back.
    fn resume(&mut self, queues: Vec<ActiveQueue>) {
        for queue in &queues {
            queue.notify.write(1).unwrap();
        }
        let activation = crate::virtio::Activation {
            memory: self.memory.clone(),
            queues,
            features: self.features,
            interrupt: self.interrupt.clone(),
        };
        self.device.start(activation).unwrap();
    }

    fn place(&mut self, len: usize) -> u64 {
        let at = self.next;
        self.next += (len as u64).next_multiple_of(0x1000).max(0x1000);
        at
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let memory = self.memory.memory();
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.memory.memory();
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Puts `bytes` into queue `index` and notifies the device.
    fn send(&mut self, index: usize, bytes: &[u8]) -> u16 {
        let at = self.place(bytes.len());
        self.write(at, bytes);
        let head = self.rings[index].push(&[readable(at, bytes.len() as u32)]);
        self.rings[index].kick();
        head
    }

    /// Sends `bytes` and waits until they are used.
    fn sent(&mut self, index: usize, bytes: &[u8]) {
        let head = self.send(index, bytes);
        let used = self.rings[index].wait_used(TIMEOUT).expect("it is taken");
        assert_eq!((used.head, used.len), (head, 0));
    }

    /// Offers `len` bytes to queue `index`.
    fn offer(&mut self, index: usize, len: u32) -> u64 {
        let at = self.place(len as usize);
        self.rings[index].push(&[writable(at, len)]);
        self.rings[index].kick();
        at
    }

    /// Receives from queue `index` into a buffer of `len` bytes.
    fn receive(&mut self, index: usize, len: u32) -> Vec<u8> {
        let at = self.offer(index, len);
        let used = self.rings[index].wait_used(TIMEOUT).expect("bytes come");
        self.read(at, used.len as usize)
    }

    /// Says something on the control queue.
    fn say(&mut self, id: u32, event: u16, value: u16) {
        let header = Header {
            id: id.into(),
            event: event.into(),
            value: value.into(),
        };
        self.sent(3, header.as_bytes());
    }

    /// The next message of the device: port, event, value, and what follows.
    fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let bytes = self.receive(2, 4096);
        let (header, rest) = Header::read_from_prefix(&bytes).unwrap();
        let Header { id, event, value } = header;
        (id.get(), event.get(), value.get(), rest.to_vec())
    }

    /// Whether the device has nothing to say, and says nothing for a while.
    fn is_silent(&mut self) -> bool {
        self.offer(2, 64);
        thread::sleep(QUIET);
        let silent = self.rings[2].pop_used().is_none();
        // The buffer stays with the device.
        silent
    }

    /// Changes the other end of a port and lets the device look.
    fn change(&self, port: usize, change: impl FnOnce(&mut LineState)) {
        self.lines[port].set(change);
        self.inputs[port].wake();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}
