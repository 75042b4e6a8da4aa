//! Errors of the host.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::thread;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::disks::{ScriptDisk, Step, UringDisk};
use super::*;
use crate::virtio::Interrupt;
use crate::virtio::block::spec::FEATURE_FLUSH;
use crate::virtio::transport::core::{Ring as Part, Signals, Status, TransportCore};

const OK: u8 = 0;
const IOERR: u8 = 1;

#[test]
fn host_errors_reach_the_status_byte() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EBADF] {
        let disk = ScriptDisk::new(1 << 20);
        let mut rig = Rig::new(disk.clone());
        disk.0.lock().unwrap().steps.extend([Step::Fail(errno); 3]);
        assert_eq!(rig.write_disk(0, &[1; 512]), IOERR);
        assert_eq!(rig.read_disk(0, 512), (IOERR, vec![0xaa; 512]));
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (IOERR, 1));
        assert_eq!(rig.metric(|metrics| &metrics.host_errors), 3);
        assert_eq!(rig.write_disk(0, &[1; 512]), OK);
        assert_eq!(rig.interrupt.needs_reset_count(), 0);
    }
}

#[test]
fn failed_flush_fails_the_write_that_must_be_durable() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::stopped(disk.clone(), 0);
    rig.start();
    disk.0
        .lock()
        .unwrap()
        .steps
        .extend([Step::Short(usize::MAX), Step::Fail(libc::EIO)]);
    assert_eq!(rig.write_disk(0, &[1; 512]), IOERR);
}

#[test]
fn full_disk_is_reported_through_io_uring() {
    let mut rig = Rig::new(UringDisk::open("/dev/full"));
    assert_eq!(rig.write_disk(0, &[1; 512]), IOERR);
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 1);
}

#[test]
fn read_error_is_reported_through_io_uring() {
    // Nothing is mapped at address 0, and reading it fails with EIO.
    let mut rig = Rig::new(UringDisk::open("/proc/self/mem"));
    assert_eq!(rig.read_disk(0, 512).0, IOERR);
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 1);
}

#[test]
fn short_transfers_go_on_where_they_stopped() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::new(disk.clone());
    let bytes: Vec<u8> = (0..8192).map(|at| (at % 241) as u8).collect();
    rig.write(DATA, &bytes);
    let lens = [1, 700, 1, 2000, 5490];
    let mut from = DATA;
    let mut write = Vec::new();
    let mut read = Vec::new();
    for len in lens {
        write.push(readable(from, len));
        read.push(writable(from + 0x8000, len));
        from += u64::from(len);
    }
    let shorts = [1, 3, 697, 1, 512, 2000, 4000, 1].map(Step::Short);
    disk.0.lock().unwrap().steps.extend(shorts);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 2, &write), (OK, 1));
    assert!(disk.0.lock().unwrap().data[1024..][..8192] == bytes);
    disk.0.lock().unwrap().steps.extend(shorts);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 2, &read), (OK, 8193));
    assert!(rig.read(DATA + 0x8000, 8192) == bytes);
}

#[test]
fn read_that_fails_half_way_tells_what_was_written() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::new(disk.clone());
    disk.0
        .lock()
        .unwrap()
        .steps
        .extend([Step::Short(100), Step::Fail(libc::EIO)]);
    let answer = rig.request(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    assert_eq!(answer, (IOERR, 100));
}

#[test]
fn interrupted_transfer_is_tried_again_but_not_for_ever() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::new(disk.clone());
    let again = [Step::Fail(libc::EINTR), Step::Fail(libc::EAGAIN)];
    disk.0.lock().unwrap().steps.extend(again);
    assert_eq!(rig.read_disk(0, 512).0, OK);
    disk.0.lock().unwrap().always = Some(Step::Fail(libc::EINTR));
    assert_eq!(rig.read_disk(0, 512).0, IOERR);
    disk.0.lock().unwrap().always = Some(Step::Short(0));
    assert_eq!(rig.write_disk(0, &[0; 512]), IOERR);
}

#[test]
fn image_that_was_made_smaller_fails_reads_of_the_lost_part() {
    let (disk, file) = file_disk(1 << 20);
    let mut rig = Rig::new(disk);
    file.as_file().set_len(1024).unwrap();
    assert_eq!(rig.read_disk(2, 512).0, IOERR);
    let answer = rig.request(VIRTIO_BLK_T_IN, 1, &[writable(DATA, 1024)]);
    assert_eq!(answer, (IOERR, 512));
    assert_eq!(rig.read_disk(1, 512).0, OK);
}

/// A disk that answers a read when bytes are put into the pipe.
pub(super) fn slow_disk() -> (UringDisk, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let disk = UringDisk::new(File::from(OwnedFd::from(reader)));
    (disk, File::from(OwnedFd::from(writer)))
}

#[test]
fn stop_waits_for_what_is_in_flight() {
    let (disk, mut feed) = slow_disk();
    let mut rig = Rig::new(disk);
    // Three descriptors each, so 21 fill the ring of 64; indirect tables make room for 64.
    let mut pending = Vec::new();
    for at in 0..64 {
        let header = rig.place_header(VIRTIO_BLK_T_IN, 0);
        let status = rig.place_status();
        let buffers = [
            readable(header, 16),
            writable(DATA + 512 * at, 512),
            writable(status, 1),
        ];
        rig.ring.push_indirect(0x30_0000 + 48 * at, &buffers);
        pending.push(status);
    }
    rig.ring.kick();
    rig.wait_in_flight(64);
    assert_eq!(rig.ring.device_used_index(), 0);
    let feeder = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        feed.write_all(&[0x33; 64 * 512]).unwrap();
        feed
    });
    let queues = rig.device.stop();
    assert_eq!(rig.ring.device_used_index(), 64);
    assert_eq!(virtio_queue::QueueT::next_used(&queues[0].queue), 64);
    assert!(rig.interrupt.queue_count(0) > 0);
    for status in pending {
        assert_eq!(rig.read(status, 1), [OK]);
    }
    assert!(rig.read(DATA, 64 * 512) == [0x33; 64 * 512]);
    assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
    drop(feeder.join().unwrap());
}

#[test]
fn same_head_twice_in_flight_is_answered_twice() {
    let (disk, mut feed) = slow_disk();
    let mut rig = Rig::new(disk);
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    for _ in 1..64 {
        rig.ring.offer(pending.head);
    }
    rig.ring.kick();
    feed.write_all(&[1; 64 * 512]).unwrap();
    for _ in 0..64 {
        let used = rig.ring.wait_used(TIMEOUT).unwrap();
        assert_eq!((used.head, used.len), (pending.head, 513));
    }
    assert_eq!(rig.status(pending), OK);
}

#[test]
fn memory_in_flight_outlives_its_map() {
    let (disk, mut feed) = slow_disk();
    let mut rig = Rig::new(disk);
    // The data are in the second region, which goes away while the request is on its way.
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(8 << 20, 512)]);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let old = rig.memory.memory().into_inner();
    let (smaller, _) = old.remove_region(GuestAddress(8 << 20), 4 << 20).unwrap();
    rig.memory.lock().unwrap().replace(smaller);
    let weak = Arc::downgrade(&old);
    drop(old);
    assert!(weak.upgrade().is_some(), "the request holds the old map");
    feed.write_all(&[7; 512]).unwrap();
    assert_eq!(rig.finish(pending), (OK, 513));
    rig.device.stop();
    assert!(
        weak.upgrade().is_none(),
        "nobody holds the old map after a stop"
    );
}

/// Brings a device behind registers to DRIVER_OK, with `ring` as its queue.
fn drive(core: &mut TransportCore, ring: &Ring) {
    let mut status = 0;
    for step in [Status::ACKNOWLEDGE, Status::DRIVER] {
        status |= step.bits();
        core.set_status(status);
    }
    let features = 1 << VIRTIO_F_VERSION_1 | FEATURE_FLUSH;
    core.set_driver_features(0, features as u32);
    core.set_driver_features(1, (features >> 32) as u32);
    status |= Status::FEATURES_OK.bits();
    core.set_status(status);
    let queue = core.queue_mut(0).unwrap();
    queue.set_size(ring.size());
    queue.set_address(Part::Descriptors, ring.table_address());
    queue.set_address(Part::Available, ring.available_address());
    queue.set_address(Part::Used, ring.used_address());
    queue.enable();
    status |= Status::DRIVER_OK.bits();
    core.set_status(status);
    assert_eq!(core.status().bits(), status);
}

#[test]
fn reset_waits_for_what_is_in_flight_and_the_next_driver_starts_afresh() {
    let (disk, mut feed) = slow_disk();
    let mut rig = Rig::stopped(disk, 0);
    let other = Block::new(Arc::new(ScriptDisk::new(512)), setup());
    let device = std::mem::replace(&mut rig.device, other);
    let metrics = device.metrics();
    let interrupt = Arc::clone(&rig.interrupt) as Arc<dyn Interrupt>;
    let signals = Arc::new(Signals::default());
    let mut core =
        TransportCore::new(Box::new(device), rig.memory.clone(), signals, interrupt).unwrap();

    drive(&mut core, &rig.ring);
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    core.notify(0);
    let end = Instant::now() + TIMEOUT;
    while metrics.in_flight.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < end, "the request is not begun");
        thread::sleep(Duration::from_millis(1));
    }
    let feeder = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        feed.write_all(&[0x44; 1024]).unwrap();
        feed
    });
    core.set_status(0);
    // The driver may use its memory for something else from here on.
    assert_eq!(core.status(), Status::empty());
    assert_eq!(metrics.in_flight.load(Ordering::Relaxed), 0);
    assert_eq!(rig.finish(pending), (OK, 513));

    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
    drive(&mut core, &rig.ring);
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA + 512, 512)]);
    core.notify(0);
    assert_eq!(rig.finish(pending), (OK, 513));
    assert!(rig.read(DATA, 1024) == [0x44; 1024]);
    drop(feeder.join().unwrap());
}
