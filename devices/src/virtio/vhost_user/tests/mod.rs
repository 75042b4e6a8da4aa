//! A device whose rings a backend made by hand serves.

mod fake;
mod hostile;
mod loss;
mod memory;
mod serving;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

pub(crate) use self::fake::Manner;
use self::fake::{Seen, serve};
use super::{Backend, BackendError, Needs, Peer, Rings, Timeouts};
use crate::memory::{GuestRam, Ram};
use crate::virtio::driver::{self, CountingInterrupt, Ring, readable, writable};
use crate::virtio::{ActiveQueue, StartError};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a backend has that does not answer.
const SOON: Duration = Duration::from_millis(300);
const QUEUES: u16 = 2;
const SIZE: u16 = 16;
const MEMORY: usize = 1 << 20;
const DATA: u64 = 0x8_0000;

/// Backends that are connected to one after the other.
pub(crate) struct Backends {
    manners: Mutex<Vec<Manner>>,
    seen: Mutex<Vec<Arc<Mutex<Seen>>>>,
    /// The ends of the backends.
    streams: Mutex<Vec<UnixStream>>,
    pub(crate) lost: Mutex<Vec<String>>,
    pub(crate) found: Mutex<u32>,
}

impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/run/fake.sock")
    }
}

impl Backends {
    /// Those of `manners`, the last of which is the first.
    pub(crate) fn new(manners: Vec<Manner>) -> Arc<Self> {
        Arc::new(Self {
            manners: Mutex::new(manners),
            seen: Mutex::default(),
            streams: Mutex::default(),
            lost: Mutex::default(),
            found: Mutex::default(),
        })
    }

    fn peer(self: &Arc<Self>) -> Arc<dyn Peer> {
        Arc::clone(self) as Arc<dyn Peer>
    }

    fn connect_within(self: &Arc<Self>, answer: Duration) -> Result<Backend, BackendError> {
        let timeouts = Timeouts {
            answer,
            drain: answer,
        };
        let needs = Needs {
            queues: QUEUES,
            features: 0,
        };
        Backend::connect(self.peer(), needs, timeouts)
    }

    /// What backend number `index` has seen.
    fn seen(&self, index: usize) -> Arc<Mutex<Seen>> {
        Arc::clone(&self.seen.lock().unwrap()[index])
    }

    /// Ends backend number `index`.
    fn end(&self, index: usize) {
        let streams = self.streams.lock().unwrap();
        streams[index].shutdown(Shutdown::Both).unwrap();
    }

    /// Has backend number `index` send something that nobody asked for.
    fn say(&self, index: usize, bytes: &[u8]) {
        let streams = self.streams.lock().unwrap();
        (&streams[index]).write_all(bytes).unwrap();
    }

    fn lost(&self) -> Vec<String> {
        self.lost.lock().unwrap().clone()
    }
}

impl Peer for Backends {
    fn connect(&self) -> io::Result<UnixStream> {
        let manner = self.manners.lock().unwrap().pop();
        let manner = manner.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = UnixStream::pair()?;
        let seen = Arc::default();
        self.seen.lock().unwrap().push(Arc::clone(&seen));
        self.streams.lock().unwrap().push(theirs.try_clone()?);
        serve(theirs, manner, seen);
        // As a socket comes that was connected without waiting.
        ours.set_nonblocking(true)?;
        Ok(ours)
    }

    fn lost(&self, reason: &str) {
        self.lost.lock().unwrap().push(reason.to_owned());
    }

    fn found(&self) {
        *self.found.lock().unwrap() += 1;
    }
}

/// Memory of `regions` that other processes can map.
pub(crate) fn shared_memory(regions: &[(u64, usize)]) -> Ram {
    let ranges: Vec<_> = regions
        .iter()
        .map(|(base, len)| {
            // SAFETY: the name ends in NUL.
            #[allow(unsafe_code)]
            let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: the descriptor is new.
            #[allow(unsafe_code)]
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(*len as u64).unwrap();
            (GuestAddress(*base), *len, Some(FileOffset::new(file, 0)))
        })
        .collect();
    Ram::from_ranges_with_files(ranges).unwrap()
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A driver and its rings.
struct Rig {
    backends: Arc<Backends>,
    backend: Arc<Backend>,
    rings: Rings,
    memory: GuestRam,
    queues: Vec<Ring>,
    interrupt: Arc<CountingInterrupt>,
}

impl Rig {
    fn new(manner: Manner) -> Self {
        Self::with(vec![manner], SOON * 20)
    }

    fn with(manners: Vec<Manner>, timeout: Duration) -> Self {
        let backends = Backends::new(manners);
        let backend = Arc::new(backends.connect_within(timeout).unwrap());
        let memory = GuestMemoryAtomic::new(shared_memory(&[(0, MEMORY)]));
        Self {
            rings: Rings::new(Arc::clone(&backend)),
            queues: Self::queues(&memory),
            backends,
            backend,
            memory,
            interrupt: Arc::default(),
        }
    }

    fn queues(memory: &GuestRam) -> Vec<Ring> {
        (0..u64::from(QUEUES))
            .map(|index| Ring::new(memory, 0x1000 * (index + 1), SIZE))
            .collect()
    }

    fn start(&mut self) -> Result<(), StartError> {
        let queues: Vec<_> = self.queues.iter().collect();
        let features = 1 << 32;
        let activation = driver::activation(&self.memory, &queues, features, &self.interrupt);
        self.rings.start(activation)
    }

    /// Goes on with queues that came back.
    fn resume(&mut self, queues: Vec<ActiveQueue>) -> Result<(), StartError> {
        let mut activation = driver::activation(&self.memory, &[], 1 << 32, &self.interrupt);
        activation.queues = queues;
        self.rings.start(activation)
    }

    /// Sends `text` through queue `index`, its answer into memory at `address`, and gives what came back.
    fn echo_at(&mut self, index: usize, address: u64, text: &[u8]) -> Vec<u8> {
        let memory = self.memory.memory();
        memory.write_slice(text, GuestAddress(DATA)).unwrap();
        let ring = &mut self.queues[index];
        ring.push(&[
            readable(DATA, text.len() as u32),
            writable(address, text.len() as u32),
        ]);
        ring.kick();
        let used = ring.wait_used(TIMEOUT).expect("the backend answers");
        let mut back = vec![0; used.len as usize];
        memory.read_slice(&mut back, GuestAddress(address)).unwrap();
        back
    }

    fn echo(&mut self, index: usize, text: &[u8]) -> Vec<u8> {
        self.echo_at(index, DATA + 0x1000, text)
    }
}

/// An error and its causes.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}
