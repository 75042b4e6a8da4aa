use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use super::{Fs, FsError, FsSetup, needs};
use crate::state::{Persist, Section, StateError};
use crate::virtio::driver::{self, CountingInterrupt, Ring, readable, writable};
use crate::virtio::vhost_user::tests::{Backends, Manner, TIMEOUT, shared_memory};
use crate::virtio::vhost_user::{Backend, Peer, Timeouts};
use crate::virtio::{StartError, VirtioDevice};

fn setup(tag: &str) -> FsSetup {
    FsSetup {
        name: "virtio-fs".to_owned(),
        tag: tag.to_owned(),
        request_queues: 2,
        queue_size: 64,
    }
}

fn backend() -> Arc<Backend> {
    let peer = Backends::new(vec![Manner::good()]) as Arc<dyn Peer>;
    Arc::new(Backend::connect(peer, needs(2), Timeouts::default()).unwrap())
}

fn device(tag: &str) -> Fs {
    Fs::new(setup(tag), backend()).unwrap()
}

#[test]
fn configuration_is_the_tag_and_the_number_of_request_queues() {
    let fs = device("home");
    assert_eq!(fs.device_id(), 26);
    assert_eq!(fs.queue_sizes(), [64, 64, 64]);
    let mut bytes = [0xaa; 44];
    fs.read_config(0, &mut bytes);
    assert_eq!(&bytes[..4], b"home");
    assert!(bytes[4..36].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[36..40], [2, 0, 0, 0]);
    // Beyond its end nothing is written.
    assert_eq!(bytes[40..], [0xaa; 4]);
}

#[test]
fn tags_fill_their_field_and_no_more() {
    let longest = "t".repeat(36);
    let mut bytes = [0; 36];
    device(&longest).read_config(0, &mut bytes);
    assert_eq!(bytes, [b't'; 36]);
    for tag in ["", "a\0b", &"t".repeat(37)] {
        let error = Fs::new(setup(tag), backend()).unwrap_err();
        assert!(matches!(error, FsError::Tag(_)), "{tag:?}");
    }
    for request_queues in [0, 256] {
        let setup = FsSetup {
            request_queues,
            ..setup("t")
        };
        let error = Fs::new(setup, backend()).unwrap_err();
        assert!(matches!(error, FsError::Queues(_)));
    }
    for queue_size in [0, 3] {
        let setup = FsSetup {
            queue_size,
            ..setup("t")
        };
        let error = Fs::new(setup, backend()).unwrap_err();
        assert!(matches!(error, FsError::QueueSize(_)));
    }
}

proptest! {
    #[test]
    fn any_access_to_the_configuration_stays_in_it(
        offset: u64,
        near in 0_u64..64,
        len in 0_usize..64,
    ) {
        let mut fs = device("home");
        for offset in [offset, near] {
            let mut bytes = vec![0x55; len];
            fs.write_config(offset, &bytes);
            fs.read_config(offset, &mut bytes);
            for (at, byte) in (u128::from(offset)..).zip(bytes) {
                prop_assert_eq!(byte == 0x55, at >= 40);
            }
        }
    }
}

struct Driver {
    memory: crate::memory::GuestRam,
    rings: Vec<Ring>,
    interrupt: Arc<CountingInterrupt>,
}

impl Driver {
    fn new() -> Self {
        let memory = GuestMemoryAtomic::new(shared_memory(&[(0, 1 << 20)]));
        Self {
            rings: (1..4)
                .map(|page| Ring::new(&memory, 0x2000 * page, 64))
                .collect(),
            memory,
            interrupt: Arc::default(),
        }
    }

    fn start(&self, fs: &mut Fs, rings: usize) -> Result<(), StartError> {
        let rings: Vec<_> = self.rings[..rings].iter().collect();
        fs.start(driver::activation(
            &self.memory,
            &rings,
            1 << 32,
            &self.interrupt,
        ))
    }

    fn is_served(&mut self, queue: usize) -> bool {
        let memory = self.memory.memory();
        memory.write_slice(b"FUSE", GuestAddress(0x8000)).unwrap();
        let ring = &mut self.rings[queue];
        ring.push(&[readable(0x8000, 4), writable(0x9000, 4)]);
        ring.kick();
        ring.wait_used(TIMEOUT).is_some_and(|used| used.len == 4)
    }
}

#[test]
fn requests_of_all_queues_reach_the_backend() {
    let (mut fs, mut driver) = (device("home"), Driver::new());
    driver.start(&mut fs, 3).unwrap();
    for queue in 0..3 {
        assert!(driver.is_served(queue), "{queue}");
    }
    assert_eq!(fs.stop().len(), 3);
}

#[test]
fn device_needs_the_queue_for_what_goes_first_and_one_for_requests() {
    let (mut fs, mut driver) = (device("home"), Driver::new());
    for (rings, missing) in [(0, 0), (1, 1)] {
        let error = driver.start(&mut fs, rings).unwrap_err();
        assert!(matches!(error, StartError::QueueMissing(queue) if queue == missing));
    }
    driver.start(&mut fs, 2).unwrap();
    assert!(driver.is_served(1));
}

#[test]
fn restored_device_wants_a_reset_before_it_serves_again() {
    let saved = device("home").save();
    let (mut fs, mut driver) = (device("home"), Driver::new());
    fs.restore(&saved).unwrap();
    // Its backend knows nothing of what the driver had open.
    let error = driver.start(&mut fs, 3).unwrap_err();
    assert!(matches!(error, StartError::Resource { .. }));
    fs.reset();
    driver.start(&mut fs, 3).unwrap();
    assert!(driver.is_served(1));
}

#[test]
fn state_of_another_device_is_refused_by_field() {
    let field = |section: &Section| match device("home").restore(section) {
        Err(StateError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&device("work").save()), "tag");
    let one_queue = FsSetup {
        request_queues: 1,
        ..setup("home")
    };
    let one_queue = Fs::new(one_queue, backend()).unwrap();
    assert_eq!(field(&one_queue.save()), "request_queues");
    let other = Section::new("virtio-rng", 1, &0);
    assert!(device("home").restore(&other).is_err());
}
