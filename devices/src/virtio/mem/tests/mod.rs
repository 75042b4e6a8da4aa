//! The device under a driver of its own.

mod arbitrary;
mod hostile;
mod memory;
mod owner;
mod requests;
mod state;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{Mem, MemHandle, MemMetrics, MemRegion, MemSetup};
use crate::memory::GuestRam;
use crate::virtio::driver::{self, Buffer, CountingInterrupt, Ring, readable, writable};
use crate::virtio::{Activation, ActiveQueue, VirtioDevice};

pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const RING_SIZE: u16 = 64;
const RING: u64 = 0x1000;
pub(super) const REQUEST: u64 = 0x1_0000;
pub(super) const RESPONSE: u64 = 0x1_1000;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const BLOCK: u64 = 2 * MIB;
pub(super) const ADDRESS: u64 = 4 << 30;
/// Blocks of the region.
pub(super) const BLOCKS: u64 = 100;
pub(super) const SIZE: u64 = BLOCKS * BLOCK;

/// Request types.
pub(super) const PLUG: u16 = 0;
pub(super) const UNPLUG: u16 = 1;
pub(super) const UNPLUG_ALL: u16 = 2;
pub(super) const STATE: u16 = 3;

/// What a response says: its type, and for an acknowledged STATE request the state.
pub(super) const ACK: (u16, u16) = (0, 0);
pub(super) const NACK: (u16, u16) = (1, 0);
pub(super) const BUSY: (u16, u16) = (2, 0);
pub(super) const ERROR: (u16, u16) = (3, 0);
pub(super) const PLUGGED: (u16, u16) = (0, 0);
pub(super) const UNPLUGGED: (u16, u16) = (0, 1);
pub(super) const MIXED: (u16, u16) = (0, 2);

/// What was done to a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Populated(Range<u64>),
    Discarded(Range<u64>),
}

/// A region without memory, which notes what is done to it.
#[derive(Debug)]
pub(super) struct FakeRegion {
    size: u64,
    page_size: u64,
    done: Mutex<Vec<Done>>,
    pub(super) fails_to_populate: AtomicBool,
    pub(super) fails_to_discard: AtomicBool,
}

impl FakeRegion {
    pub(super) fn new(size: u64) -> Arc<Self> {
        Self::of_pages(size, 4096)
    }

    pub(super) fn of_pages(size: u64, page_size: u64) -> Arc<Self> {
        Arc::new(Self {
            size,
            page_size,
            done: Mutex::default(),
            fails_to_populate: AtomicBool::new(false),
            fails_to_discard: AtomicBool::new(false),
        })
    }

    /// What was done since the last call.
    pub(super) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.done.lock().unwrap())
    }

    fn note(&self, done: Done, fails: &AtomicBool) -> io::Result<()> {
        self.done.lock().unwrap().push(done);
        if fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }
}

impl MemRegion for FakeRegion {
    fn size(&self) -> u64 {
        self.size
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn populate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(
            Done::Populated(offset..offset.checked_add(len).unwrap()),
            &self.fails_to_populate,
        )
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(
            Done::Discarded(offset..offset.checked_add(len).unwrap()),
            &self.fails_to_discard,
        )
    }
}

pub(super) fn setup(requested: u64) -> MemSetup {
    MemSetup {
        name: "virtio-mem".to_owned(),
        address: ADDRESS,
        block_size: BLOCK,
        requested,
    }
}

/// A device that was not started.
pub(super) fn device(requested: u64) -> Mem {
    Mem::new(FakeRegion::new(SIZE), setup(requested)).unwrap()
}

/// A started device and its driver.
pub(super) struct Rig {
    pub(super) device: Mem,
    pub(super) handle: MemHandle,
    pub(super) region: Arc<FakeRegion>,
    pub(super) memory: GuestRam,
    pub(super) ring: Ring,
    pub(super) interrupt: Arc<CountingInterrupt>,
}

impl Rig {
    /// A running device of [`BLOCKS`] blocks, `requested` bytes of which are requested.
    pub(super) fn new(requested: u64) -> Self {
        let region = FakeRegion::new(SIZE);
        let device = Mem::new(region.clone(), setup(requested)).unwrap();
        region.take_done();
        let memory = driver::memory(&[(0, 1 << 20)]);
        let mut rig = Self {
            handle: device.handle(),
            device,
            region,
            ring: Ring::new(&memory, RING, RING_SIZE),
            memory,
            interrupt: Arc::default(),
        };
        rig.device.start(rig.activation()).unwrap();
        rig
    }

    pub(super) fn activation(&self) -> Activation {
        driver::activation(&self.memory, &[&self.ring], 0, &self.interrupt)
    }

    pub(super) fn resume(&mut self, queues: Vec<ActiveQueue>) {
        let activation = Activation {
            queues,
            ..self.activation()
        };
        self.device.start(activation).unwrap();
    }

    /// Has a request carried out for `count` blocks from block number `block` on.
    pub(super) fn request(&mut self, kind: u16, block: u64, count: u16) -> (u16, u16) {
        self.request_at(kind, ADDRESS + block * BLOCK, count)
    }

    /// Has a request carried out for any address.
    pub(super) fn request_at(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        self.place_request(kind, address, count);
        let buffers = [readable(REQUEST, 24), writable(RESPONSE, 10)];
        assert_eq!(self.exchange(&buffers), 10);
        self.response()
    }

    pub(super) fn place_request(&self, kind: u16, address: u64, count: u16) {
        // The device ignores what is in the padding.
        let mut bytes = [0xa5; 24];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        self.write(REQUEST, &bytes);
        self.write(RESPONSE, &[0xee; 16]);
    }

    /// Offers a chain, and returns the length in the used ring.
    pub(super) fn exchange(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.ring.push(buffers);
        self.ring.kick();
        let used = self.ring.wait_used(TIMEOUT).expect("the device answers");
        assert_eq!(used.head, head);
        used.len
    }

    /// Type and state in the response, behind which nothing was written.
    pub(super) fn response(&self) -> (u16, u16) {
        let bytes = self.read(RESPONSE, 16);
        assert_eq!(bytes[2..8], [0; 6]);
        assert_eq!(bytes[10..], [0xee; 6]);
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (field(0), field(8))
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

    pub(super) fn metric(&self, of: impl Fn(&MemMetrics) -> &AtomicU64) -> u64 {
        of(&self.device.metrics()).load(Ordering::Relaxed)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.device.stop();
    }
}

/// Configuration space, field by field: block_size, node_id, addr, region_size, usable_region_size, plugged_size,
/// requested_size.
pub(super) fn config(device: &Mem) -> [u64; 7] {
    let mut bytes = [0xff; 60];
    device.read_config(0, &mut bytes);
    assert_eq!(bytes[56..], [0xff; 4]);
    let mut fields = [0; 7];
    for (field, bytes) in fields.iter_mut().zip(bytes.chunks_exact(8)) {
        *field = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    fields
}
