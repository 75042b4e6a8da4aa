//! Disks whose size changes.

use std::io::Write;
use std::process::Command;
use std::thread;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::super::resize::Capacity;
use super::super::{BlockResizer, FileDisk, ResizeError};
use super::disks::{Elsewhere, HeldDisk, ScriptDisk, Step, WithoutUring};
use super::faults::slow_disk;
use super::*;
use crate::state::Persist;
use crate::virtio::Activation;

const OK: u8 = 0;
const IOERR: u8 = 1;
const MIB: u64 = 1 << 20;

/// What the driver reads as the size of the disk, in bytes.
fn capacity(device: &Block) -> u64 {
    let mut sectors = [0; 8];
    device.read_config(0, &mut sectors);
    u64::from_le_bytes(sectors) * 512
}

fn len(file: &tempfile::NamedTempFile) -> u64 {
    file.as_file().metadata().unwrap().len()
}

fn resume(rig: &mut Rig, queues: Vec<crate::virtio::ActiveQueue>) {
    let activation = Activation {
        memory: rig.memory.clone(),
        queues,
        features: FLUSH,
        interrupt: rig.interrupt.clone(),
    };
    rig.device.start(activation).unwrap();
}

/// Runs `test` with io_uring and with threads.
fn with_each_engine(test: impl Fn(Rig, BlockResizer, &tempfile::NamedTempFile)) {
    let (disk, file) = file_disk(MIB as usize);
    let rig = Rig::new(disk);
    let resizer = rig.device.resizer();
    test(rig, resizer, &file);
    let (disk, file) = file_disk(MIB as usize);
    let rig = Rig::new(WithoutUring {
        disk,
        refused: None,
    });
    let resizer = rig.device.resizer();
    test(rig, resizer, &file);
}

/// Waits until queues are kept off the disk.
fn wait_closed(capacity: &Capacity) {
    let end = Instant::now() + TIMEOUT;
    while !capacity.gate.is_closed() {
        assert!(Instant::now() < end, "requests are not waited for");
        thread::yield_now();
    }
}

#[test]
fn larger_disk_is_told_to_the_driver_and_used_by_it() {
    with_each_engine(|mut rig, resizer, file| {
        assert_eq!(rig.read_disk(2048, 512).0, IOERR);
        resizer.resize(2 * MIB).unwrap();
        assert_eq!(rig.interrupt.config_count(), 1);
        assert_eq!(capacity(&rig.device), 2 * MIB);
        assert_eq!((resizer.size(), len(file)), (2 * MIB, 2 * MIB));
        assert_eq!(rig.read_disk(2048, 512), (OK, vec![0; 512]));
        assert_eq!(rig.write_disk(4095, &[7; 512]), OK);
        assert_eq!(rig.read_disk(4095, 512), (OK, vec![7; 512]));
        assert_eq!(rig.read_disk(4095, 1024).0, IOERR);
        let mut expected = pattern(MIB as usize);
        expected.resize(2 * MIB as usize - 512, 0);
        expected.extend([7; 512]);
        assert!(std::fs::read(file.path()).unwrap() == expected);
    });
}

#[test]
fn smaller_disk_refuses_the_lost_part_and_keeps_its_size() {
    with_each_engine(|mut rig, resizer, file| {
        resizer.resize(1024).unwrap();
        assert_eq!(rig.interrupt.config_count(), 1);
        assert_eq!(capacity(&rig.device), 1024);
        for sector in [1, 2, 2047] {
            assert_eq!(rig.write_disk(sector, &[7; 1024]), IOERR);
            assert_eq!(rig.read_disk(sector, 1024).0, IOERR);
        }
        assert_eq!(rig.read_disk(1, 512), (OK, pattern(1024)[512..].to_vec()));
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
        assert_eq!(len(file), 1024);
        resizer.resize(2048).unwrap();
        assert_eq!(rig.interrupt.config_count(), 2);
        assert_eq!(rig.read_disk(2, 1024), (OK, vec![0; 1024]));
    });
}

#[test]
fn size_that_is_there_already_is_no_change() {
    with_each_engine(|mut rig, resizer, file| {
        resizer.resize(MIB).unwrap();
        assert_eq!(rig.interrupt.config_count(), 0);
        assert_eq!((capacity(&rig.device), len(file)), (MIB, MIB));
        assert_eq!(rig.read_disk(2047, 512).0, OK);
    });
}

#[test]
fn size_that_is_none_is_refused_by_name() {
    with_each_engine(|rig, resizer, file| {
        for (size, expected) in [
            (0, "at least one sector"),
            (
                1000,
                "desired_size 1000 is not a multiple of 512, expected for example 1024",
            ),
            (u64::MAX, "expected for example 18446744073709551104"),
            (
                1 << 63,
                "desired_size 9223372036854775808 is refused by the host",
            ),
        ] {
            let error = resizer.resize(size).unwrap_err().to_string();
            assert!(
                error.contains("desired_size") && error.contains(expected),
                "{error}"
            );
        }
        assert_eq!(rig.interrupt.config_count(), 0);
        assert_eq!((capacity(&rig.device), len(file)), (MIB, MIB));
    });
}

#[test]
fn read_only_disk_keeps_its_size() {
    let (_, file) = image(MIB as usize);
    let mut rig = Rig::new(FileDisk::new(file.reopen().unwrap(), true).unwrap());
    for size in [512, MIB, 2 * MIB] {
        let error = rig.device.resizer().resize(size).unwrap_err();
        assert!(matches!(error, ResizeError::ReadOnly { desired_size } if desired_size == size));
    }
    assert_eq!(rig.interrupt.config_count(), 0);
    assert_eq!((capacity(&rig.device), len(&file)), (MIB, MIB));
    assert_eq!(rig.read_disk(2047, 512).0, OK);
}

#[test]
fn refusal_of_the_host_changes_nothing() {
    let disk = ScriptDisk::new(MIB as usize);
    let mut rig = Rig::new(disk.clone());
    let resizer = rig.device.resizer();
    for (size, errno) in [
        (2 * MIB, libc::EFBIG),
        (512, libc::ENOSPC),
        (MIB, libc::EPERM),
    ] {
        disk.0.lock().unwrap().steps.push_back(Step::Fail(errno));
        let error = resizer.resize(size).unwrap_err();
        assert!(
            matches!(&error, ResizeError::Host { desired_size, source }
                if *desired_size == size && source.raw_os_error() == Some(errno)),
            "{error}"
        );
        assert_eq!(rig.interrupt.config_count(), 0);
        assert_eq!((capacity(&rig.device), disk.size()), (MIB, MIB));
        assert_eq!(rig.read_disk(2047, 512).0, OK);
        assert_eq!(rig.read_disk(2048, 512).0, IOERR);
    }
}

/// Set in the process that may not make files longer than 1024 bytes.
const LIMITED: &str = "PODVISOR_TEST_FILE_LIMIT";

#[test]
fn file_limit_of_the_process_is_an_error_and_no_signal() {
    if std::env::var_os(LIMITED).is_some() {
        let (disk, file) = file_disk(512);
        assert!(matches!(
            disk.resize(MIB).unwrap_err(),
            ResizeError::Host { source, .. } if source.raw_os_error() == Some(libc::EFBIG)
        ));
        assert_eq!((disk.size(), len(&file)), (512, 512));
        return;
    }
    let name = "virtio::block::tests::resize::file_limit_of_the_process_is_an_error_and_no_signal";
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 1 && exec \"$0\" --exact \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(LIMITED, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
}

#[test]
fn block_device_takes_only_the_size_that_the_host_gave_it() {
    let mut rig = Rig::new(Elsewhere {
        disk: ScriptDisk::new(MIB as usize),
    });
    let resizer = rig.device.resizer();
    for size in [512, MIB, 4 * MIB] {
        let error = resizer.resize(size).unwrap_err().to_string();
        assert!(
            error.contains("expected the 2097152 that it has"),
            "{error}"
        );
        assert_eq!(
            (rig.interrupt.config_count(), capacity(&rig.device)),
            (0, MIB)
        );
    }
    assert_eq!(rig.read_disk(2047, 512).0, OK);
    resizer.resize(2 * MIB).unwrap();
    assert_eq!(
        (rig.interrupt.config_count(), capacity(&rig.device)),
        (1, 2 * MIB)
    );
    assert_eq!(rig.read_disk(4095, 512).0, OK);
}

#[test]
fn write_in_flight_ends_before_its_part_is_lost() {
    let (held, disk, go) = HeldDisk::new(MIB as usize);
    let mut rig = Rig::new(held);
    let shared = rig.device.resizer().capacity;
    let resizer = rig.device.resizer();
    let data = [readable(DATA, 512)];
    let begun = rig.push(VIRTIO_BLK_T_OUT, 2047, &data);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let resizing = thread::spawn(move || resizer.resize(1024));
    wait_closed(&shared);
    let late = rig.push(VIRTIO_BLK_T_OUT, 2046, &data);
    let kept = rig.push(VIRTIO_BLK_T_OUT, 1, &data);
    rig.ring.kick();
    assert_eq!((disk.size(), rig.interrupt.config_count()), (MIB, 0));
    // One for the write in flight, one for that to the part that is kept.
    go.send(()).unwrap();
    go.send(()).unwrap();
    resizing.join().unwrap().unwrap();
    for _ in 0..3 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    let statuses = [begun, late, kept].map(|pending| rig.status(pending));
    assert_eq!(statuses, [OK, IOERR, OK]);
    assert_eq!((disk.size(), rig.interrupt.config_count()), (1024, 1));
}

#[test]
fn requests_of_io_uring_are_waited_for() {
    let (disk, mut feed) = slow_disk();
    let size = Arc::clone(&disk.size);
    let mut rig = Rig::new(disk);
    let shared = rig.device.resizer().capacity;
    let resizer = rig.device.resizer();
    let begun = [0, 2047].map(|sector| {
        rig.push(
            VIRTIO_BLK_T_IN,
            sector,
            &[writable(DATA + sector * 512, 512)],
        )
    });
    rig.ring.kick();
    rig.wait_in_flight(2);
    let resizing = thread::spawn(move || resizer.resize(1024));
    wait_closed(&shared);
    let late = rig.push(VIRTIO_BLK_T_IN, 2047, &[writable(DATA, 512)]);
    rig.ring.kick();
    feed.write_all(&[3; 512]).unwrap();
    rig.ring.wait_used(TIMEOUT).unwrap();
    // One of the two is still on its way.
    assert_eq!(
        (size.load(Ordering::Relaxed), rig.interrupt.config_count()),
        (MIB, 0)
    );
    feed.write_all(&[3; 512]).unwrap();
    resizing.join().unwrap().unwrap();
    for _ in 0..2 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    assert_eq!(begun.map(|pending| rig.status(pending)), [OK, OK]);
    assert_eq!(rig.status(late), IOERR);
    assert_eq!(
        (size.load(Ordering::Relaxed), capacity(&rig.device)),
        (1024, 1024)
    );
}

#[test]
fn request_that_does_not_end_keeps_the_disk_from_becoming_smaller() {
    let (disk, mut feed) = slow_disk();
    let size = Arc::clone(&disk.size);
    let mut rig = Rig::new(disk);
    let begun = rig.push(VIRTIO_BLK_T_IN, 2047, &[writable(DATA, 512)]);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let resizer = rig.device.resizer();
    let error = resizer.resize_within(1024, Duration::ZERO).unwrap_err();
    assert!(
        matches!(error, ResizeError::Busy { desired_size: 1024 }),
        "{error}"
    );
    assert_eq!(
        (size.load(Ordering::Relaxed), capacity(&rig.device)),
        (MIB, MIB)
    );
    // What came meanwhile is begun without a notification of its own, and growing waits for nothing.
    let next = rig.push(VIRTIO_BLK_T_IN, 2047, &[writable(DATA + 512, 512)]);
    let _ = resizer.resize_within(1024, Duration::ZERO).unwrap_err();
    rig.wait_in_flight(2);
    resizer.resize(2 * MIB).unwrap();
    assert_eq!(rig.interrupt.config_count(), 1);
    feed.write_all(&[3; 1024]).unwrap();
    for _ in 0..2 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    assert_eq!([begun, next].map(|pending| rig.status(pending)), [OK, OK]);
    resizer.resize(1024).unwrap();
    assert_eq!(capacity(&rig.device), 1024);
}

#[test]
fn device_that_stops_is_not_waited_for() {
    let (disk, mut feed) = slow_disk();
    let mut rig = Rig::new(disk);
    let shared = rig.device.resizer().capacity;
    let resizer = rig.device.resizer();
    rig.push(VIRTIO_BLK_T_IN, 2047, &[writable(DATA, 512)]);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let resizing = thread::spawn(move || resizer.resize(1024));
    wait_closed(&shared);
    let feeder = thread::spawn(move || {
        feed.write_all(&[3; 512]).unwrap();
        feed
    });
    let queues = rig.device.stop();
    resizing.join().unwrap().unwrap();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 513);
    resume(&mut rig, queues);
    assert_eq!(rig.read_disk(2, 512).0, IOERR);
    drop(feeder.join().unwrap());
}

#[test]
fn file_stays_as_small_as_it_became_under_load() {
    let (disk, file) = file_disk(MIB as usize);
    let mut rig = Rig::new(disk);
    let resizer = rig.device.resizer();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ends = Arc::clone(&done);
    let path = file.path().to_owned();
    let resizing = thread::spawn(move || {
        for round in 0..50 {
            resizer.resize(512 * (1 + round)).unwrap();
            for _ in 0..20 {
                assert_eq!(std::fs::metadata(&path).unwrap().len(), resizer.size());
                thread::yield_now();
            }
            resizer.resize(MIB).unwrap();
        }
        ends.store(true, Ordering::Release);
    });
    let mut answers = [0; 2];
    while !done.load(Ordering::Acquire) && !resizing.is_finished() {
        let pending: Vec<_> = (2028..2048)
            .map(|sector| rig.push(VIRTIO_BLK_T_OUT, sector, &[readable(DATA, 512)]))
            .collect();
        rig.ring.kick();
        for _ in &pending {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        for request in pending {
            answers[usize::from(rig.status(request))] += 1;
        }
    }
    resizing.join().unwrap();
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 0);
    assert_eq!(answers[1], rig.metric(|metrics| &metrics.refused));
    assert_eq!((len(&file), rig.interrupt.config_count()), (MIB, 100));
}

#[test]
fn change_during_a_pause_is_told_at_resume() {
    with_each_engine(|mut rig, resizer, file| {
        let queues = rig.device.stop();
        resizer.resize(2 * MIB).unwrap();
        assert_eq!((rig.interrupt.config_count(), len(file)), (0, 2 * MIB));
        assert_eq!(capacity(&rig.device), 2 * MIB);
        resume(&mut rig, queues);
        assert_eq!(rig.interrupt.config_count(), 1);
        assert_eq!(rig.read_disk(4095, 512), (OK, vec![0; 512]));
        let queues = rig.device.stop();
        resume(&mut rig, queues);
        assert_eq!(rig.interrupt.config_count(), 1);
    });
}

#[test]
fn driver_that_begins_afresh_is_told_of_no_change() {
    let (disk, _file) = file_disk(MIB as usize);
    let mut rig = Rig::stopped(disk, FLUSH);
    rig.device.resizer().resize(512).unwrap();
    rig.device.reset();
    rig.start();
    assert_eq!(
        (rig.interrupt.config_count(), capacity(&rig.device)),
        (0, 512)
    );
    assert_eq!(rig.read_disk(1, 512).0, IOERR);
    // Between its reset and its start, a driver may have read the old size.
    rig.device.stop();
    rig.device.reset();
    rig.device.resizer().resize(MIB).unwrap();
    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
    rig.start();
    assert_eq!(rig.interrupt.config_count(), 1);
}

#[test]
fn next_device_of_the_same_disk_has_its_new_size() {
    let (disk, _file) = file_disk(MIB as usize);
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let first = Block::new(Arc::clone(&disk), setup());
    first.resizer().resize(2 * MIB).unwrap();
    assert_eq!(disk.size(), 2 * MIB);
    drop(first);
    assert_eq!(capacity(&Block::new(disk, setup())), 2 * MIB);
}

#[test]
fn saved_state_has_the_new_size_and_whether_the_driver_knows_it() {
    let (disk, _file) = file_disk(MIB as usize);
    let mut rig = Rig::new(disk);
    rig.device.resizer().resize(2 * MIB).unwrap();
    rig.device.stop();
    let told = rig.device.save();
    rig.device.resizer().resize(3 * MIB).unwrap();
    let untold = rig.device.save();
    for (section, size, interrupts) in [(told, 2 * MIB, 0), (untold, 3 * MIB, 1)] {
        let (disk, file) = file_disk(4 * MIB as usize);
        let mut rig = Rig::stopped(disk, FLUSH);
        rig.device.restore(&section).unwrap();
        assert_eq!(rig.device.save(), section);
        rig.start();
        assert_eq!(
            (capacity(&rig.device), rig.interrupt.config_count()),
            (size, interrupts)
        );
        // The guest's disk becomes larger, the file smaller.
        rig.device.resizer().resize(size + 512).unwrap();
        assert_eq!(
            (capacity(&rig.device), len(&file)),
            (size + 512, size + 512)
        );
        assert_eq!(rig.interrupt.config_count(), interrupts + 1);
    }
}
