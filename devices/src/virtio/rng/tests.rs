use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{MAX_REQUEST_LEN, Rng};
use crate::memory::GuestRam;
use crate::state::{Persist, Section, StateError};
use crate::virtio::driver::{
    self, Buffer, CountingInterrupt, Descriptor, Ring, readable, writable,
};
use crate::virtio::{Activation, VirtioDevice};

const TIMEOUT: Duration = Duration::from_secs(10);
const DATA: u64 = 0x1_0000;
const MEMORY: usize = 4 << 20;
/// Little enough to be compared byte by byte many times.
const SMALL: usize = 256 << 10;
const SIZE: u16 = 16;

struct Rig {
    device: Rng,
    memory: GuestRam,
    ring: Ring,
    interrupt: Arc<CountingInterrupt>,
}

impl Rig {
    fn new(source: File) -> Self {
        Self::with_memory(source, MEMORY)
    }

    fn with_memory(source: File, len: usize) -> Self {
        let memory = driver::memory(&[(0, len)]);
        let mut rig = Self {
            device: Rng::new("virtio-rng", source),
            ring: Ring::new(&memory, 0x1000, SIZE),
            memory,
            interrupt: Arc::default(),
        };
        let activation = driver::activation(&rig.memory, &[&rig.ring], 0, &rig.interrupt);
        rig.device.start(activation).unwrap();
        rig
    }

    fn request(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.ring.push(buffers);
        self.ring.kick();
        let used = self.ring.wait_used(TIMEOUT).expect("the device answers");
        assert_eq!(used.head, head);
        used.len
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn resume(&mut self, queues: Vec<crate::virtio::ActiveQueue>) {
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            features: 0,
            interrupt: self.interrupt.clone(),
        };
        self.device.start(activation).unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.device.stop();
    }
}

fn urandom() -> File {
    File::open("/dev/urandom").unwrap()
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// A source that has nothing until it is fed.
fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let (reader, writer) = (
        File::from(OwnedFd::from(reader)),
        File::from(OwnedFd::from(writer)),
    );
    // Opening anew is the way to a non-blocking end without touching the other one.
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let reader = std::os::unix::fs::OpenOptionsExt::custom_flags(
        File::options().read(true),
        libc::O_NONBLOCK,
    )
    .open(path)
    .unwrap();
    (reader, writer)
}

#[test]
fn buffers_are_filled_from_the_source_in_order() {
    let bytes: Vec<u8> = (0..1000).map(|at| (at % 251) as u8).collect();
    let mut rig = Rig::new(file_of(&bytes));
    let buffers = [
        writable(DATA + 0x1000, 100),
        writable(DATA, 0),
        writable(DATA, 800),
    ];
    assert_eq!(rig.request(&buffers), 900);
    assert_eq!(rig.read(DATA + 0x1000, 100), bytes[..100]);
    assert_eq!(rig.read(DATA, 801), [&bytes[100..900], &[0]].concat());
    // The source ends within this one: what there is is given.
    assert_eq!(rig.request(&[writable(DATA, 200)]), 100);
    let metrics = rig.device.metrics();
    assert_eq!(metrics.requests.load(Ordering::Relaxed), 2);
    assert_eq!(metrics.bytes.load(Ordering::Relaxed), 1000);
}

#[test]
fn driver_is_asked_for_a_kick_after_a_full_ring() {
    let mut rig = Rig::new(urandom());
    for _ in 0..SIZE {
        rig.ring.push(&[writable(DATA, 8)]);
    }
    rig.ring.kick();
    for _ in 0..SIZE {
        assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 8);
    }
    assert!(rig.ring.wait_wants_kick(TIMEOUT));
}

#[test]
fn random_bytes_differ() {
    let mut rig = Rig::new(urandom());
    assert_eq!(rig.request(&[writable(DATA, 64)]), 64);
    let first = rig.read(DATA, 64);
    assert_eq!(rig.request(&[writable(DATA, 64)]), 64);
    assert_ne!(rig.read(DATA, 64), first);
    assert_ne!(first, [0; 64]);
    assert!(rig.interrupt.wait_queue(0, 2, TIMEOUT));
}

#[test]
fn long_request_is_given_a_bounded_part() {
    let mut rig = Rig::new(urandom());
    let len = rig.request(&[writable(DATA, 1 << 20), writable(DATA + (1 << 20), 1 << 20)]);
    assert_eq!(u64::from(len), MAX_REQUEST_LEN);
    let rest = rig.read(DATA + MAX_REQUEST_LEN, (2 << 20) - MAX_REQUEST_LEN as usize);
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn request_waits_for_a_source_that_has_nothing() {
    let (source, mut feed) = pipe();
    let mut rig = Rig::new(source);
    let head = rig.ring.push(&[writable(DATA, 8)]);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(Duration::from_millis(50)), None);
    feed.write_all(&[7; 5]).unwrap();
    let used = rig.ring.wait_used(TIMEOUT).unwrap();
    assert_eq!((used.head, used.len), (head, 5));
    assert_eq!(rig.read(DATA, 6), [7, 7, 7, 7, 7, 0]);
    assert!(rig.device.metrics().waits.load(Ordering::Relaxed) >= 1);
}

#[test]
fn waiting_request_is_handed_back_and_answered_after_a_resume() {
    let (source, mut feed) = pipe();
    let mut rig = Rig::new(source);
    let head = rig.ring.push(&[writable(DATA, 8)]);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(Duration::from_millis(50)), None);
    let queues = rig.device.stop();
    assert_eq!(queues[0].queue.next_avail(), 0);
    feed.write_all(&[7; 8]).unwrap();
    rig.ring.kick();
    rig.resume(queues);
    let used = rig.ring.wait_used(TIMEOUT).unwrap();
    assert_eq!((used.head, used.len), (head, 8));
}

#[test]
fn source_that_ends_needs_a_reset() {
    let mut rig = Rig::new(file_of(&[]));
    rig.ring.push(&[writable(DATA, 8)]);
    rig.ring.kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(Duration::from_millis(50)), None);
    assert_eq!(rig.interrupt.needs_reset_count(), 1);
    assert_eq!(
        rig.device.metrics().source_errors.load(Ordering::Relaxed),
        1
    );
}

#[test]
fn chains_that_are_no_request_are_returned_empty() {
    let mut rig = Rig::new(urandom());
    for buffers in [
        &[readable(DATA, 64)][..],
        &[writable(DATA, 0)],
        &[writable(MEMORY as u64, 64)],
        &[writable(MEMORY as u64 - 1, 64)],
        &[writable(DATA, 64), writable(u64::MAX - 8, 64)],
        &[writable(0, u32::MAX)],
        &[writable(DATA, 64), readable(DATA, 64)],
    ] {
        assert_eq!(rig.request(buffers), 0);
    }
    assert_eq!(rig.read(DATA, 64), [0; 64]);
    assert_eq!(rig.device.metrics().malformed.load(Ordering::Relaxed), 7);
    let looped = Descriptor {
        address: DATA,
        len: 8,
        flags: 3,
        next: 0,
    };
    rig.ring.set_descriptor(0, looped);
    rig.ring.offer(0);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
}

#[test]
fn broken_rings_need_a_reset() {
    let mut rig = Rig::new(urandom());
    rig.ring.offer(SIZE);
    rig.ring.kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.device.stop().len(), 1);

    let rig = Rig::new(urandom());
    rig.ring.set_available_index(SIZE + 1);
    rig.ring.kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
}

#[test]
fn used_ring_outside_memory_needs_a_reset() {
    let mut rig = Rig::new(urandom());
    let mut queues = rig.device.stop();
    queues[0]
        .queue
        .set_used_ring_address(Some(MEMORY as u32), Some(0));
    rig.ring.push(&[writable(DATA, 8)]);
    rig.ring.kick();
    rig.resume(queues);
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
}

#[test]
fn start_without_the_queue_fails() {
    let memory = driver::memory(&[(0, MEMORY)]);
    let mut device = Rng::new("virtio-rng", urandom());
    let activation = driver::activation(&memory, &[], 0, &Arc::default());
    assert!(device.start(activation).is_err());
    assert!(device.stop().is_empty());
}

#[test]
fn state_restored_into_a_fresh_device_is_equal() {
    let mut rig = Rig::new(urandom());
    rig.request(&[writable(DATA, 8)]);
    rig.device.stop();
    let section = rig.device.save();
    let mut fresh = Rng::new("virtio-rng", urandom());
    fresh.restore(&section).unwrap();
    assert_eq!(fresh.save(), section);
    let other = Section::new("virtio-block", 1, &0_u8);
    assert!(matches!(
        fresh.restore(&other),
        Err(StateError::Kind { .. })
    ));
}

#[test]
fn source_is_read_and_not_stored() {
    // A request of the guest takes exactly what it is given from the source.
    let mut source = file_of(&[1; 100]);
    let mut rig = Rig::new(source.try_clone().unwrap());
    assert_eq!(rig.request(&[writable(DATA, 60)]), 60);
    let mut rest = Vec::new();
    source.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 40);
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![8 => DATA..0x2_0000_u64, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0_u32..256, 2 => 0_u32..0x1_0000, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 2_u16..4, 4 => 0_u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| Descriptor {
        address,
        len,
        flags,
        next,
    })
}

proptest! {
    #[test]
    fn any_chain_is_answered_and_changes_nothing_but_its_buffers(
        table in prop::collection::vec(descriptor(), usize::from(SIZE)),
        heads in prop::collection::vec(0..SIZE, 1..8),
    ) {
        let mut rig = Rig::with_memory(urandom(), SMALL);
        for (at, descriptor) in (0..).zip(&table) {
            rig.ring.set_descriptor(at, *descriptor);
        }
        for head in &heads {
            rig.ring.offer(*head);
        }
        rig.ring.kick();
        for _ in &heads {
            let used = rig.ring.wait_used(TIMEOUT);
            prop_assert!(used.is_some_and(|used| heads.contains(&used.head)));
        }
        rig.device.stop();
        prop_assert_eq!(rig.interrupt.needs_reset_count(), 0);
        let mut allowed = vec![false; SMALL];
        for descriptor in &table {
            if descriptor.flags & 2 != 0 {
                let end = descriptor.address.saturating_add(u64::from(descriptor.len));
                let from = descriptor.address.min(SMALL as u64) as usize;
                allowed[from..end.min(SMALL as u64) as usize].fill(true);
            }
        }
        let after = rig.read(DATA, SMALL - DATA as usize);
        let changed = after.iter().zip(&allowed[DATA as usize..]).any(|(byte, allowed)| *byte != 0 && !allowed);
        prop_assert!(!changed);
    }
}
