//! Errors of the host that stop the machine.

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::QueueT;

use super::super::{StopOn, StopOnWrite};
use super::disks::{HeldDisk, ScriptDisk, Step, UringDisk};
use super::*;
use crate::platform::{Platform, PlatformEvent};
use crate::state::{Persist, StateError};
use crate::virtio::driver::Descriptor;

const OK: u8 = 0;
const IOERR: u8 = 1;

const STOP: StopOn = StopOn {
    reads: true,
    writes: StopOnWrite::Any,
};

/// Counts how often the machine is to be stopped.
#[derive(Debug, Default)]
struct Owner(Mutex<u32>);

impl Platform for Owner {
    fn raise(&self, event: PlatformEvent) {
        assert_eq!(event, PlatformEvent::DiskStopped);
        *self.0.lock().unwrap() += 1;
    }
}

impl Owner {
    /// Waits until the machine was to be stopped `count` times.
    fn wait(&self, count: u32) {
        let end = Instant::now() + TIMEOUT;
        while *self.0.lock().unwrap() < count {
            assert!(Instant::now() < end, "the machine is not stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn rig(disk: impl Disk + 'static, on: StopOn) -> (Rig, Arc<Owner>) {
    let owner = Arc::new(Owner::default());
    let mut rig = Rig::stopped(disk, FLUSH);
    let other = Block::new(Arc::new(ScriptDisk::new(512)), setup());
    let device = std::mem::replace(&mut rig.device, other);
    rig.device = device.stopping(on, owner.clone());
    rig.start();
    (rig, owner)
}

fn fail(disk: &ScriptDisk, errno: i32, times: usize) {
    let mut script = disk.0.lock().unwrap();
    script.steps.extend(vec![Step::Fail(errno); times]);
}

/// Pauses and resumes the device, as the machine's owner does.
fn pause_and_resume(rig: &mut Rig) {
    let queues = rig.device.stop();
    resume(rig, queues);
}

fn resume(rig: &mut Rig, queues: Vec<crate::virtio::ActiveQueue>) {
    for queue in &queues {
        queue.notify.write(1).unwrap();
    }
    let mut activation =
        driver::activation(&rig.memory, &[&rig.ring], rig.features, &rig.interrupt);
    activation.queues = queues;
    rig.device.start(activation).unwrap();
}

#[test]
fn request_that_failed_is_begun_again_after_the_machine_stood_still() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EFBIG] {
        let disk = ScriptDisk::new(1 << 20);
        let (mut rig, owner) = rig(disk.clone(), STOP);
        fail(&disk, errno, 1);
        rig.write(DATA, &[7; 1024]);
        let pending = rig.push(VIRTIO_BLK_T_OUT, 3, &[readable(DATA, 1024)]);
        rig.ring.kick();
        owner.wait(1);
        let cause = rig.device.watch().take_stop_cause().unwrap();
        assert_eq!(cause.operation, "write");
        assert_eq!(cause.error.raw_os_error(), Some(errno));
        assert!(rig.device.watch().take_stop_cause().is_none());
        let queues = rig.device.stop();
        assert_eq!(rig.ring.device_used_index(), 0);
        assert_eq!(rig.status(pending), UNTOUCHED);
        assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
        resume(&mut rig, queues);
        assert_eq!(rig.finish(pending), (OK, 1));
        assert_eq!(disk.0.lock().unwrap().data[3 * 512..][..1024], [7; 1024]);
        assert_eq!(rig.metric(|metrics| &metrics.stops), 1);
        assert_eq!(rig.read_disk(3, 512), (OK, vec![7; 512]));
        assert_eq!(rig.ring.device_used_index(), 2);
    }
}

#[test]
fn error_that_comes_again_stops_the_machine_again() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    fail(&disk, libc::ENOSPC, 3);
    let pending = rig.push(VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]);
    rig.ring.kick();
    for round in 1..=3 {
        owner.wait(round);
        assert!(rig.device.watch().take_stop_cause().is_some());
        pause_and_resume(&mut rig);
    }
    assert_eq!(rig.finish(pending), (OK, 1));
}

#[test]
fn nothing_is_begun_between_the_error_and_the_stop() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    fail(&disk, libc::EIO, 1);
    let first = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    rig.ring.kick();
    owner.wait(1);
    let later: Vec<_> = (1..5)
        .map(|at| rig.push(VIRTIO_BLK_T_IN, at, &[writable(DATA + 512 * at, 512)]))
        .collect();
    rig.ring.kick();
    let queues = rig.device.stop();
    // What the driver added since is still in the ring.
    assert_eq!(queues[0].queue.next_avail(), 1);
    assert_eq!(rig.ring.device_used_index(), 0);
    resume(&mut rig, queues);
    for _ in 0..5 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    for pending in later.into_iter().chain([first]) {
        assert_eq!(rig.status(pending), OK);
    }
}

#[test]
fn each_of_many_requests_that_failed_together_is_answered_once() {
    let (disk, script, go) = HeldDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk, STOP);
    fail(&script, libc::ENOSPC, 21);
    let pending: Vec<_> = (0..21)
        .map(|at| rig.push(VIRTIO_BLK_T_OUT, at, &[readable(DATA, 512)]))
        .collect();
    rig.ring.kick();
    rig.wait_in_flight(21);
    for _ in 0..21 {
        go.send(()).unwrap();
    }
    owner.wait(21);
    let queues = rig.device.stop();
    assert_eq!(rig.ring.device_used_index(), 0);
    assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
    for _ in 0..21 {
        go.send(()).unwrap();
    }
    resume(&mut rig, queues);
    for _ in 0..21 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    for pending in pending {
        assert_eq!(rig.status(pending), OK);
    }
    assert!(rig.ring.wait_used(Duration::from_millis(20)).is_none());
}

#[test]
fn error_of_what_ends_during_the_stop_is_kept_as_well() {
    let (disk, script, go) = HeldDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk, STOP);
    fail(&script, libc::EIO, 1);
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        go.send(()).unwrap();
        go
    });
    let queues = rig.device.stop();
    owner.wait(1);
    assert_eq!(rig.ring.device_used_index(), 0);
    opener.join().unwrap().send(()).unwrap();
    resume(&mut rig, queues);
    assert_eq!(rig.finish(pending), (OK, 513));
}

#[test]
fn errors_that_do_not_stop_reach_the_driver() {
    let only_full = StopOn {
        reads: false,
        writes: StopOnWrite::NoSpace,
    };
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), only_full);
    fail(&disk, libc::EIO, 3);
    assert_eq!(rig.write_disk(0, &[1; 512]), IOERR);
    assert_eq!(rig.read_disk(0, 512).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, IOERR);
    fail(&disk, libc::ENOSPC, 1);
    assert_eq!(rig.read_disk(0, 512).0, IOERR);
    assert_eq!(*owner.0.lock().unwrap(), 0);
    for (round, errno) in [(1, libc::ENOSPC), (2, libc::EDQUOT)] {
        fail(&disk, errno, 1);
        let pending = rig.push(VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]);
        rig.ring.kick();
        owner.wait(round);
        pause_and_resume(&mut rig);
        assert_eq!(rig.finish(pending).0, OK);
    }
}

#[test]
fn flush_that_failed_is_never_tried_again() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    fail(&disk, libc::EIO, 1);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, IOERR);
    assert_eq!(*owner.0.lock().unwrap(), 0);
}

#[test]
fn write_that_must_be_durable_is_written_again_when_its_flush_failed() {
    let disk = ScriptDisk::new(1 << 20);
    let owner = Arc::new(Owner::default());
    let mut rig = Rig::stopped(disk.clone(), 0);
    let other = Block::new(Arc::new(ScriptDisk::new(512)), setup());
    let device = std::mem::replace(&mut rig.device, other);
    rig.device = device.stopping(STOP, owner.clone());
    rig.start();
    let steps = [Step::Short(usize::MAX), Step::Fail(libc::EIO)];
    disk.0.lock().unwrap().steps.extend(steps);
    rig.write(DATA, &[5; 512]);
    let pending = rig.push(VIRTIO_BLK_T_OUT, 1, &[readable(DATA, 512)]);
    rig.ring.kick();
    owner.wait(1);
    // As the host does with pages that it could not write.
    disk.0.lock().unwrap().data[512..1024].fill(0);
    pause_and_resume(&mut rig);
    assert_eq!(rig.finish(pending).0, OK);
    assert_eq!(disk.0.lock().unwrap().durable[512..1024], [5; 512]);
}

#[test]
fn discard_stops_as_a_write_does() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    rig.device.stop();
    rig.features = FLUSH | super::super::spec::FEATURE_DISCARD;
    rig.start();
    fail(&disk, libc::EIO, 1);
    let mut segment = [0; 16];
    segment[8..12].copy_from_slice(&8_u32.to_le_bytes());
    rig.write(DATA, &segment);
    let pending = rig.push(VIRTIO_BLK_T_DISCARD, 0, &[readable(DATA, 16)]);
    rig.ring.kick();
    owner.wait(1);
    let cause = rig.device.watch().take_stop_cause().unwrap();
    assert_eq!(cause.operation, "discard");
    pause_and_resume(&mut rig);
    assert_eq!(rig.finish(pending).0, OK);
}

#[test]
fn error_of_io_uring_stops_as_well() {
    let (mut rig, owner) = rig(UringDisk::open("/dev/full"), STOP);
    let pending = rig.push(VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]);
    rig.ring.kick();
    owner.wait(1);
    pause_and_resume(&mut rig);
    owner.wait(2);
    rig.device.stop();
    assert_eq!(rig.status(pending), UNTOUCHED);
    assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
}

#[test]
fn reset_forgets_what_was_not_answered() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    fail(&disk, libc::EIO, 1);
    let pending = rig.push(VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]);
    rig.ring.kick();
    owner.wait(1);
    rig.device.stop();
    rig.device.reset();
    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
    rig.start();
    assert_eq!(rig.read_disk(0, 512).0, OK);
    assert_eq!(rig.ring.device_used_index(), 1);
    assert_eq!(rig.status(pending), UNTOUCHED);
}

#[test]
fn what_was_not_answered_is_begun_by_the_device_that_is_restored() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    fail(&disk, libc::ENOSPC, 1);
    rig.write(DATA, &[6; 512]);
    let pending = rig.push(VIRTIO_BLK_T_OUT, 2, &[readable(DATA, 512)]);
    rig.ring.kick();
    owner.wait(1);
    let queues = rig.device.stop();
    let section = rig.device.save();
    rig.device = Block::new(Arc::new(disk.clone()), setup());
    rig.device.restore(&section).unwrap();
    assert_eq!(rig.device.save(), section);
    resume(&mut rig, queues);
    assert_eq!(rig.finish(pending), (OK, 1));
    assert_eq!(disk.0.lock().unwrap().data[1024..1536], [6; 512]);
}

#[test]
fn saved_heads_that_no_queue_can_have_are_refused() {
    let fresh = || Block::new(Arc::new(ScriptDisk::new(1 << 20)), setup());
    for kept in [
        vec![],
        vec![vec![], vec![]],
        vec![vec![RING_SIZE]],
        vec![vec![0; usize::from(RING_SIZE) + 1]],
    ] {
        let mut other = fresh();
        other.kept = kept;
        let mut device = fresh();
        let before = device.save();
        let error = device.restore(&other.save()).unwrap_err();
        assert!(
            matches!(error, StateError::Field { field: "kept", .. }),
            "{error}"
        );
        assert_eq!(device.save(), before);
    }
}

#[test]
fn disk_becomes_smaller_although_a_request_waits_which_fails_then() {
    let disk = ScriptDisk::new(1 << 20);
    let (mut rig, owner) = rig(disk.clone(), STOP);
    fail(&disk, libc::EIO, 1);
    let pending = rig.push(VIRTIO_BLK_T_IN, 2000, &[writable(DATA, 512)]);
    rig.ring.kick();
    owner.wait(1);
    rig.device.resizer().resize(1 << 19).unwrap();
    pause_and_resume(&mut rig);
    assert_eq!(rig.finish(pending).0, IOERR);
    assert_eq!(rig.metric(|metrics| &metrics.refused), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A driver that writes to descriptors that are not its own any more gets what such a chain deserves.
    #[test]
    fn chain_that_was_changed_meanwhile_harms_nobody(
        address in any::<u64>(), len in any::<u32>(), flags in 0_u16..8, next in 0..RING_SIZE, which in 0_u16..3,
    ) {
        let disk = ScriptDisk::new(1 << 20);
        let (mut rig, owner) = rig(disk.clone(), STOP);
        fail(&disk, libc::EIO, 1);
        rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
        rig.ring.kick();
        owner.wait(1);
        let queues = rig.device.stop();
        rig.ring.set_descriptor(which, Descriptor { address, len, flags, next });
        resume(&mut rig, queues);
        rig.ring.wait_used(TIMEOUT).unwrap();
        prop_assert_eq!(rig.read_disk(0, 512).0, OK);
    }
}
