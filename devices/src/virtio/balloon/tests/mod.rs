//! The device under a driver of its own.

mod hostile;
mod pages;
mod state;
mod statistics;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{Balloon, BalloonHandle, BalloonMetrics, BalloonSetup};
use crate::memory::GuestRam;
use crate::virtio::driver::{self, CountingInterrupt, Ring, readable};
use crate::virtio::{Activation, ActiveQueue, VirtioDevice};

pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const RING_SIZE: u16 = 64;
pub(super) const REQUEST: u64 = 0x2_0000;
pub(super) const PAGE: u64 = 4096;
pub(super) const MIB: u64 = 1 << 20;
/// Two regions with a hole between them.
pub(super) const LOW_LEN: u64 = 8 * MIB;
pub(super) const HIGH: u64 = 16 * MIB;
pub(super) const HIGH_LEN: u64 = 8 * MIB;
/// Pages from here on are used for nothing else.
pub(super) const FREE: u64 = MIB;

/// Indexes of the rings.
pub(super) const INFLATE: usize = 0;
pub(super) const DEFLATE: usize = 1;
pub(super) const STATS: usize = 2;
/// Where Linux has it.
pub(super) const REPORTING: usize = 3;

/// What a driver like Linux accepts.
pub(super) const STATS_VQ: u64 = 1 << 1;
pub(super) const PAGE_POISON: u64 = 1 << 4;
pub(super) const PAGE_REPORTING: u64 = 1 << 5;
pub(super) const ALL: u64 = STATS_VQ | PAGE_POISON | PAGE_REPORTING;

pub(super) fn setup() -> BalloonSetup {
    BalloonSetup {
        name: "virtio-balloon".to_owned(),
        size: 0,
        deflate_on_oom: false,
        free_page_reporting: true,
        statistics_interval: None,
        page_size: PAGE,
        mem: None,
    }
}

/// A started device and its driver.
pub(super) struct Rig {
    pub(super) device: Balloon,
    pub(super) handle: BalloonHandle,
    pub(super) memory: GuestRam,
    pub(super) rings: Vec<Ring>,
    pub(super) features: u64,
    pub(super) interrupt: Arc<CountingInterrupt>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(setup(), ALL, 4)
    }

    /// A running device whose driver accepted `features` and enabled the first `rings` queues.
    pub(super) fn with(setup: BalloonSetup, features: u64, rings: u64) -> Self {
        let device = Balloon::new(setup).unwrap();
        let memory = driver::memory(&[(0, LOW_LEN as usize), (HIGH, HIGH_LEN as usize)]);
        let rings = (0..rings)
            .map(|index| Ring::new(&memory, 0x1000 + index * 0x2000, RING_SIZE))
            .collect();
        let mut rig = Self {
            handle: device.handle(),
            device,
            memory,
            rings,
            features,
            interrupt: Arc::default(),
        };
        rig.device.start(rig.activation()).unwrap();
        rig
    }

    pub(super) fn activation(&self) -> Activation {
        let rings: Vec<&Ring> = self.rings.iter().collect();
        driver::activation(&self.memory, &rings, self.features, &self.interrupt)
    }

    pub(super) fn resume(&mut self, queues: Vec<ActiveQueue>) {
        let activation = Activation {
            queues,
            ..self.activation()
        };
        self.device.start(activation).unwrap();
    }

    /// Sends a request for pages of these numbers.
    pub(super) fn send(&mut self, ring: usize, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        self.write(REQUEST, &bytes);
        self.exchange(ring, &[readable(REQUEST, bytes.len() as u32)]);
    }

    /// Offers a chain, and waits until it is back, with nothing written.
    pub(super) fn exchange(&mut self, ring: usize, buffers: &[driver::Buffer]) {
        let head = self.rings[ring].push(buffers);
        self.rings[ring].kick();
        let used = self.rings[ring]
            .wait_used(TIMEOUT)
            .expect("the device answers");
        assert_eq!((used.head, used.len), (head, 0));
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        let memory = self.memory.memory();
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Fills the page at `address`.
    pub(super) fn fill(&self, address: u64) {
        self.write(address, &[0xa5; PAGE as usize]);
    }

    /// Whether the page at `address` is zeros; otherwise it is as it was filled.
    pub(super) fn is_gone(&self, address: u64) -> bool {
        let mut bytes = [0; PAGE as usize];
        let memory = self.memory.memory();
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        let gone = bytes == [0; PAGE as usize];
        assert!(gone || bytes == [0xa5; PAGE as usize]);
        gone
    }

    pub(super) fn metric(&self, of: impl Fn(&BalloonMetrics) -> &AtomicU64) -> u64 {
        of(&self.device.metrics()).load(Ordering::Relaxed)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.device.stop();
    }
}

pub(super) fn number(address: u64) -> u32 {
    (address / PAGE) as u32
}

/// Configuration space: num_pages, actual, free_page_hint_cmd_id, poison_val.
pub(super) fn config(device: &Balloon) -> [u32; 4] {
    let mut bytes = [0xff; 20];
    device.read_config(0, &mut bytes);
    assert_eq!(bytes[16..], [0xff; 4]);
    let mut fields = [0; 4];
    for (field, bytes) in fields.iter_mut().zip(bytes.chunks_exact(4)) {
        *field = u32::from_le_bytes(bytes.try_into().unwrap());
    }
    fields
}
