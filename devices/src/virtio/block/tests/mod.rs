//! The device under a driver of its own.

mod arbitrary;
pub(super) mod disks;
mod faults;
mod hostile;
mod limits;
mod pool;
mod queues;
mod ranges;
mod requests;
mod resize;
mod state;
mod stop;
mod times;
mod writeback;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{Block, BlockMetrics, BlockSetup, Disk, FileDisk, ID_LEN};
use crate::memory::GuestRam;
use crate::rate_limit::{RateLimiter, RateLimits};
use crate::virtio::VirtioDevice;
use crate::virtio::driver::{self, Buffer, CountingInterrupt, Ring, readable, writable};

pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const RING_SIZE: u16 = 64;

/// A status byte that the device never writes.
pub(super) const UNTOUCHED: u8 = 0xee;

const FLUSH: u64 = super::spec::FEATURE_FLUSH;
const RING: u64 = 0x1000;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x2_0000;
pub(super) const DATA: u64 = 0x10_0000;

/// Two regions of memory with a hole between them.
pub(super) const REGIONS: [(u64, usize); 2] = [(0, 4 << 20), (8 << 20, 4 << 20)];

/// A started device and its driver.
pub(super) struct Rig {
    pub(super) device: Block,
    pub(super) memory: GuestRam,
    pub(super) ring: Ring,
    pub(super) interrupt: Arc<CountingInterrupt>,
    features: u64,
    next: u64,
}

/// A request that was made available.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) head: u16,
    status: u64,
}

pub(super) fn setup() -> BlockSetup {
    BlockSetup {
        name: "virtio-test".to_owned(),
        id: *b"a serial of 20 bytes",
        queues: 1,
        queue_size: RING_SIZE,
        affinity: BTreeMap::new(),
        io_uring: true,
        limiter: Arc::new(RateLimiter::new(RateLimits::default(), Instant::now())),
    }
}

impl Rig {
    pub(super) fn new(disk: impl Disk + 'static) -> Self {
        Self::with_features(disk, FLUSH)
    }

    pub(super) fn with_features(disk: impl Disk + 'static, features: u64) -> Self {
        let mut rig = Self::stopped(disk, features);
        rig.start();
        rig
    }

    /// A rig whose device was not started.
    pub(super) fn stopped(disk: impl Disk + 'static, features: u64) -> Self {
        Self::made_of(disk, setup(), features)
    }

    fn made_of(disk: impl Disk + 'static, setup: BlockSetup, features: u64) -> Self {
        let memory = driver::memory(&REGIONS);
        Self {
            device: Block::new(Arc::new(disk), setup),
            ring: Ring::new(&memory, RING, RING_SIZE),
            memory,
            interrupt: Arc::default(),
            features,
            next: 0,
        }
    }

    pub(super) fn start(&mut self) {
        let activation =
            driver::activation(&self.memory, &[&self.ring], self.features, &self.interrupt);
        self.device.start(activation).unwrap();
    }

    /// Makes a request of `data` available, without a notification.
    pub(super) fn push(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Pending {
        let header = self.place_header(kind, sector);
        let status = self.place_status();
        let mut buffers = vec![readable(header, 16)];
        buffers.extend_from_slice(data);
        buffers.push(writable(status, 1));
        let head = self.ring.push(&buffers);
        Pending { head, status }
    }

    pub(super) fn place_header(&mut self, kind: u32, sector: u64) -> u64 {
        self.next = (self.next + 1) % 1024;
        let address = HEADERS + 16 * self.next;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(address, &header);
        address
    }

    pub(super) fn place_status(&mut self) -> u64 {
        self.next = (self.next + 1) % 1024;
        let address = STATUSES + self.next;
        self.write(address, &[UNTOUCHED]);
        address
    }

    /// Has a request carried out. Returns its status and the length in the used ring.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let pending = self.push(kind, sector, data);
        self.ring.kick();
        self.finish(pending)
    }

    /// Waits for the only request.
    pub(super) fn finish(&mut self, pending: Pending) -> (u8, u32) {
        let used = self.ring.wait_used(TIMEOUT).expect("the device answers");
        assert_eq!(used.head, pending.head);
        (self.status(pending), used.len)
    }

    pub(super) fn status(&self, pending: Pending) -> u8 {
        self.read(pending.status, 1)[0]
    }

    pub(super) fn write_disk(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.write(DATA, bytes);
        self.request(
            VIRTIO_BLK_T_OUT,
            sector,
            &[readable(DATA, bytes.len() as u32)],
        )
        .0
    }

    pub(super) fn read_disk(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        self.write(DATA, &vec![0xaa; len as usize]);
        let (status, _) = self.request(VIRTIO_BLK_T_IN, sector, &[writable(DATA, len)]);
        (status, self.read(DATA, len as usize))
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Waits until `count` requests are on their way.
    pub(super) fn wait_in_flight(&self, count: u64) {
        let end = Instant::now() + TIMEOUT;
        while self.metric(|metrics| &metrics.in_flight) != count {
            assert!(Instant::now() < end, "requests are not begun");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn metric(&self, of: impl Fn(&BlockMetrics) -> &AtomicU64) -> u64 {
        of(&self.device.metrics()).load(Ordering::Relaxed)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.device.stop();
    }
}

/// An image of `len` bytes, each sector of which begins with its number.
pub(super) fn image(len: usize) -> (File, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pattern(len)).unwrap();
    (file.reopen().unwrap(), file)
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        sector[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    bytes
}

pub(super) fn file_disk(len: usize) -> (FileDisk, tempfile::NamedTempFile) {
    let (_, file) = image(len);
    let writable = File::options()
        .read(true)
        .write(true)
        .open(file.path())
        .unwrap();
    (FileDisk::new(writable, false).unwrap(), file)
}

const _: () = assert!(ID_LEN == 20);
