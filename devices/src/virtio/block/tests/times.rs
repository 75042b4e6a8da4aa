//! The time that requests take.

use std::io::Write;
use std::sync::mpsc::Sender;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::disks::{HeldDisk, Step};
use super::faults::slow_disk;
use super::*;

const OK: u8 = 0;
const IOERR: u8 = 1;

/// Nanoseconds of reads, writes and flushes.
fn times(rig: &Rig) -> [u64; 3] {
    let metrics = rig.device.metrics();
    [
        &metrics.read_nanoseconds,
        &metrics.write_nanoseconds,
        &metrics.flush_nanoseconds,
    ]
    .map(|time| time.load(Ordering::Relaxed))
}

/// Has a request carried out that is held on its way for as long as `hold` takes, and returns its status and the time
/// that it certainly took, in nanoseconds.
fn held(rig: &mut Rig, go: &Sender<()>, kind: u32, data: &[Buffer]) -> (u8, u64) {
    let pending = rig.push(kind, 0, data);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let start = Instant::now();
    while start.elapsed().is_zero() {}
    let least = start.elapsed().as_nanos() as u64;
    go.send(()).unwrap();
    (rig.finish(pending).0, least)
}

#[test]
fn time_is_that_of_its_kind_of_request_alone() {
    let (disk, _, go) = HeldDisk::new(1 << 20);
    let mut rig = Rig::new(disk);
    assert_eq!(times(&rig), [0; 3]);
    let kinds = [
        (0, VIRTIO_BLK_T_IN, vec![writable(DATA, 512)]),
        (1, VIRTIO_BLK_T_OUT, vec![readable(DATA, 512)]),
        (2, VIRTIO_BLK_T_FLUSH, vec![]),
    ];
    for (at, kind, data) in kinds.iter().chain(&kinds) {
        let before = times(&rig);
        let (status, least) = held(&mut rig, &go, *kind, data);
        let after = times(&rig);
        assert_eq!(status, OK);
        for other in 0..3 {
            let grown = after[other] - before[other];
            assert!(
                if other == *at {
                    grown >= least
                } else {
                    grown == 0
                },
                "{before:?} {after:?}"
            );
        }
    }
}

#[test]
fn request_that_fails_takes_no_time() {
    let (disk, script, go) = HeldDisk::new(1 << 20);
    let mut rig = Rig::new(disk);
    script.0.lock().unwrap().always = Some(Step::Fail(libc::EIO));
    let (read, write) = ([writable(DATA, 512)], [readable(DATA, 512)]);
    assert_eq!(held(&mut rig, &go, VIRTIO_BLK_T_IN, &read).0, IOERR);
    assert_eq!(held(&mut rig, &go, VIRTIO_BLK_T_OUT, &write).0, IOERR);
    assert_eq!(held(&mut rig, &go, VIRTIO_BLK_T_FLUSH, &[]).0, IOERR);
    // These never get to the disk.
    assert_eq!(rig.read_disk(2048, 512).0, IOERR);
    rig.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 20)]);
    assert_eq!(times(&rig), [0; 3]);
}

#[test]
fn durable_write_takes_the_time_of_its_flush_too() {
    let (disk, _, go) = HeldDisk::new(1 << 20);
    let mut rig = Rig::stopped(disk, 0);
    rig.start();
    go.send(()).unwrap();
    let (status, least) = held(&mut rig, &go, VIRTIO_BLK_T_OUT, &[readable(DATA, 512)]);
    assert_eq!(status, OK);
    let [reads, writes, flushes] = times(&rig);
    assert!(writes >= least);
    assert_eq!([reads, flushes], [0, 0]);
}

/// Lets time pass that another request is not to be charged with. A device that does not is right however long it takes.
fn hold() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn request_of_a_thread_takes_no_time_after_its_own_end() {
    let (disk, _, go) = HeldDisk::new(1 << 20);
    let mut rig = Rig::new(disk);
    let start = Instant::now();
    let both = [
        rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]),
        rig.push(VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]),
    ];
    rig.ring.kick();
    rig.wait_in_flight(2);
    go.send(()).unwrap();
    let first = rig.ring.wait_used(TIMEOUT).unwrap();
    let first_has_ended = start.elapsed().as_nanos() as u64;
    let held = Instant::now();
    hold();
    let held = held.elapsed().as_nanos() as u64;
    go.send(()).unwrap();
    rig.ring.wait_used(TIMEOUT).unwrap();
    let both_have_ended = start.elapsed().as_nanos() as u64;
    assert_eq!(both.map(|pending| rig.status(pending)), [OK, OK]);
    let [reads, writes, _] = times(&rig);
    let (first, second) = if first.head == both[0].head {
        (reads, writes)
    } else {
        (writes, reads)
    };
    assert!(
        0 < first && first <= first_has_ended,
        "{first} {first_has_ended}"
    );
    assert!(
        held <= second && second <= both_have_ended,
        "{held} {second} {both_have_ended}"
    );
}

#[test]
fn requests_of_io_uring_take_the_time_until_they_end() {
    let (disk, mut feed) = slow_disk();
    let mut rig = Rig::new(disk);
    let pending = [0, 1].map(|at| rig.push(VIRTIO_BLK_T_IN, at, &[writable(DATA + 512 * at, 512)]));
    rig.ring.kick();
    rig.wait_in_flight(2);
    assert_eq!(times(&rig), [0; 3]);
    // Both are on their way, so that each takes the time until here at least.
    let start = Instant::now();
    while start.elapsed().is_zero() {}
    let least = start.elapsed().as_nanos() as u64;
    feed.write_all(&[1; 1024]).unwrap();
    for _ in 0..2 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    assert_eq!(pending.map(|pending| rig.status(pending)), [OK, OK]);
    let [reads, writes, flushes] = times(&rig);
    assert!(reads >= 2 * least, "{reads} {least}");
    assert_eq!([writes, flushes], [0, 0]);
}
