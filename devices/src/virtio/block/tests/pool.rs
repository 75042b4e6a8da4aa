//! Operations on threads.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Condvar, Mutex};
use std::thread;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::super::{BlockSizes, EngineKind, Pieces, ResizeError};
use super::disks::{HeldDisk, ScriptDisk};
use super::*;

const OK: u8 = 0;

/// A disk whose transfers of some sectors take until they are let go.
#[derive(Clone, Debug)]
struct SlowPlaces {
    disk: ScriptDisk,
    slow: Arc<(Mutex<BTreeSet<u64>>, Condvar)>,
}

impl SlowPlaces {
    fn new(sectors: impl IntoIterator<Item = u64>) -> Self {
        Self {
            disk: ScriptDisk::new(1 << 20),
            slow: Arc::new((Mutex::new(sectors.into_iter().collect()), Condvar::new())),
        }
    }

    fn wait(&self, offset: u64) {
        let (slow, changed) = &*self.slow;
        let slow = slow.lock().unwrap();
        let (slow, result) = changed
            .wait_timeout_while(slow, TIMEOUT, |slow| slow.contains(&(offset / 512)))
            .unwrap();
        drop(slow);
        assert!(!result.timed_out(), "the transfer is let go");
    }

    fn let_go(&self) {
        self.slow.0.lock().unwrap().clear();
        self.slow.1.notify_all();
    }
}

impl Disk for SlowPlaces {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        self.disk.resize(desired_size)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        self.disk.block_sizes()
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> std::io::Result<usize> {
        self.wait(offset);
        self.disk.read_at(pieces, offset)
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> std::io::Result<usize> {
        self.wait(offset);
        self.disk.write_at(pieces, offset)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.disk.flush()
    }
}

/// A rig whose threads have a name of their own.
fn named(disk: impl Disk + 'static, name: &str) -> Rig {
    let setup = BlockSetup {
        name: name.to_owned(),
        ..setup()
    };
    let mut rig = Rig::made_of(disk, setup, FLUSH);
    rig.start();
    rig
}

/// Threads of this process that have this name.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}

fn wait_for_threads(name: &str, count: usize) {
    let end = Instant::now() + TIMEOUT;
    while threads(name) != count {
        assert!(Instant::now() < end, "{} threads", threads(name));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn operation_that_takes_long_keeps_no_other_waiting() {
    let disk = SlowPlaces::new([0]);
    let mut rig = Rig::new(disk.clone());
    assert_eq!(rig.device.watch().engine(), Some(EngineKind::Threads));
    let slow = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA + 512, 512)]);
    rig.ring.kick();
    rig.wait_in_flight(1);
    for sector in 1..20 {
        let (status, bytes) = rig.read_disk(sector, 512);
        assert_eq!(status, OK);
        assert_eq!(bytes[..8], sector.to_le_bytes());
    }
    assert_eq!(rig.status(slow), UNTOUCHED);
    disk.let_go();
    assert_eq!(rig.finish(slow), (OK, 513));
}

#[test]
fn threads_are_started_for_what_there_is_to_do_and_end_with_the_device() {
    let name = "pool-grows";
    let (disk, _, go) = HeldDisk::new(1 << 20);
    let mut rig = named(disk, name);
    wait_for_threads(name, 1);
    for at in 0..21 {
        let address = DATA + 512 * at;
        rig.push(VIRTIO_BLK_T_IN, at, &[writable(address, 512)]);
        if at == 1 {
            rig.ring.kick();
            rig.wait_in_flight(2);
            // The queue's own, and one for each request.
            wait_for_threads(name, 3);
        }
    }
    rig.ring.kick();
    rig.wait_in_flight(21);
    wait_for_threads(name, 9);
    for _ in 0..21 {
        go.send(()).unwrap();
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    assert_eq!(threads(name), 9);
    rig.device.stop();
    assert_eq!(threads(name), 0);
}

#[test]
fn threads_are_few_for_each_of_many_queues() {
    use super::super::engine::threads_for;
    assert_eq!([1, 2, 4, 8, 256].map(threads_for), [8, 8, 4, 2, 2]);
}

#[test]
fn flush_makes_durable_what_was_answered_before_it() {
    let disk = SlowPlaces::new([]);
    let mut rig = Rig::new(disk.clone());
    for round in 1..=50_u8 {
        let bytes = [round; 512];
        rig.write(DATA, &bytes);
        let writes =
            [3, 4, 5, 6].map(|sector| rig.push(VIRTIO_BLK_T_OUT, sector, &[readable(DATA, 512)]));
        rig.ring.kick();
        for _ in writes {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
        let script = disk.disk.0.lock().unwrap();
        assert!(
            script.durable[3 * 512..7 * 512]
                .iter()
                .all(|byte| *byte == round)
        );
    }
}

#[test]
fn stop_and_reset_wait_for_what_threads_have_begun() {
    let disk = SlowPlaces::new(0..12);
    let mut rig = Rig::new(disk.clone());
    let pending: Vec<_> = (0..12)
        .map(|at| rig.push(VIRTIO_BLK_T_IN, at, &[writable(DATA + 512 * at, 512)]))
        .collect();
    rig.ring.kick();
    rig.wait_in_flight(12);
    let opener = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        disk.let_go();
    });
    rig.device.stop();
    rig.device.reset();
    assert_eq!(rig.ring.device_used_index(), 12);
    for pending in pending {
        assert_eq!(rig.status(pending), OK);
    }
    assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
    opener.join().unwrap();
}

#[test]
fn io_uring_that_is_not_wanted_is_not_used() {
    let (disk, _file) = file_disk(1 << 20);
    let setup = BlockSetup {
        io_uring: false,
        ..setup()
    };
    let mut rig = Rig::made_of(disk, setup, FLUSH);
    rig.start();
    assert_eq!(rig.device.watch().engine(), Some(EngineKind::Threads));
    assert_eq!(rig.write_disk(7, &[9; 4096]), OK);
    assert_eq!(rig.read_disk(7, 4096), (OK, vec![9; 4096]));
}
