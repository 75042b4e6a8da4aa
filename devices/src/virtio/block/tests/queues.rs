//! Several queues of one device.

use std::os::unix::fs::FileExt;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_MQ, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::disks::HeldDisk;
use super::*;
use crate::host_cpus::HostCpus;

const OK: u8 = 0;

/// A device of several queues that runs.
struct Many {
    device: Block,
    memory: GuestRam,
    rings: Vec<Ring>,
    interrupt: Arc<CountingInterrupt>,
}

impl Many {
    fn new(disk: impl Disk + 'static, setup: BlockSetup) -> Self {
        let memory = driver::memory(&REGIONS);
        let rings: Vec<Ring> = (0..u64::from(setup.queues))
            .map(|at| Ring::new(&memory, RING + 0x2000 * at, RING_SIZE))
            .collect();
        let interrupt = Arc::default();
        let mut device = Block::new(Arc::new(disk), setup);
        let all: Vec<&Ring> = rings.iter().collect();
        device
            .start(driver::activation(&memory, &all, FLUSH, &interrupt))
            .unwrap();
        Self {
            device,
            memory,
            rings,
            interrupt,
        }
    }

    /// Asks queue `at` to move a sector, the number of which is that of the queue.
    fn push(&mut self, at: usize, kind: u32) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&(at as u64).to_le_bytes());
        let base = DATA + 0x1000 * at as u64;
        let guest = self.memory.memory();
        guest.write_slice(&header, GuestAddress(base)).unwrap();
        let data = GuestAddress(base + 16);
        guest.write_slice(&[at as u8 + 1; 512], data).unwrap();
        let data = match kind {
            VIRTIO_BLK_T_IN => writable(base + 16, 512),
            _ => readable(base + 16, 512),
        };
        let ring = &mut self.rings[at];
        ring.push(&[readable(base, 16), data, writable(base + 0x800, 1)]);
        ring.kick();
    }

    /// The status of what was asked of queue `at`.
    fn finish(&mut self, at: usize) -> u8 {
        self.rings[at].wait_used(TIMEOUT).unwrap();
        let status = GuestAddress(DATA + 0x1000 * at as u64 + 0x800);
        self.memory.memory().read_obj(status).unwrap()
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        self.device.stop();
    }
}

fn queues(queues: u16) -> BlockSetup {
    BlockSetup { queues, ..setup() }
}

#[test]
fn several_queues_have_a_worker_each() {
    let (disk, file) = file_disk(1 << 20);
    let mut many = Many::new(disk, queues(4));
    assert_ne!(many.device.features() & 1 << VIRTIO_BLK_F_MQ, 0);
    let mut num_queues = [0; 2];
    many.device.read_config(34, &mut num_queues);
    assert_eq!(num_queues, [4, 0]);
    for at in 0..4 {
        many.push(at, VIRTIO_BLK_T_OUT);
    }
    for at in 0..4 {
        assert_eq!(many.finish(at), OK);
        assert!(many.interrupt.wait_queue(at as u16, 1, TIMEOUT));
    }
    assert_eq!(many.device.stop().len(), 4);
    let mut sectors = [0; 2048];
    file.as_file().read_exact_at(&mut sectors, 0).unwrap();
    for (at, sector) in sectors.chunks(512).enumerate() {
        assert!(sector.iter().all(|byte| *byte == at as u8 + 1));
    }
}

#[test]
fn queue_that_waits_for_the_disk_keeps_no_other_waiting() {
    let (disk, _, go) = HeldDisk::new(1 << 20);
    let mut many = Many::new(disk, queues(2));
    for at in 0..2 {
        many.push(at, VIRTIO_BLK_T_IN);
    }
    let end = Instant::now() + TIMEOUT;
    while many.device.metrics().in_flight.load(Ordering::Relaxed) < 2 {
        assert!(Instant::now() < end, "both queues begin");
        std::thread::yield_now();
    }
    for _ in 0..2 {
        go.send(()).unwrap();
    }
    assert_eq!((many.finish(0), many.finish(1)), (OK, OK));
}

#[test]
fn driver_may_use_the_first_queues_alone() {
    let (disk, _file) = file_disk(1 << 20);
    let memory = driver::memory(&REGIONS);
    let mut ring = Ring::new(&memory, RING, RING_SIZE);
    let interrupt = Arc::default();
    let mut device = Block::new(Arc::new(disk), queues(4));
    device
        .start(driver::activation(&memory, &[&ring], FLUSH, &interrupt))
        .unwrap();
    memory
        .memory()
        .write_obj(0_u128, GuestAddress(DATA))
        .unwrap();
    ring.push(&[readable(DATA, 16), writable(DATA + 16, 513)]);
    ring.kick();
    assert_eq!(ring.wait_used(TIMEOUT).unwrap().len, 513);
    assert_eq!(device.stop().len(), 1);
}

/// What the kernel says of the thread `name` of this process.
fn allowed_cpus(name: &str) -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let statuses = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")));
    let of_thread = |status: &String| status.starts_with(&format!("Name:\t{name}\n"));
    let status = statuses.flatten().find(of_thread).expect("the thread runs");
    let line = |line: &str| line.strip_prefix("Cpus_allowed_list:\t").map(str::to_owned);
    status.lines().find_map(line).unwrap()
}

#[test]
fn worker_of_a_queue_is_kept_on_its_cpus() {
    let (disk, _file) = file_disk(1 << 20);
    let setup = BlockSetup {
        name: "pinned".to_owned(),
        affinity: BTreeMap::from([(1, HostCpus::new(&[0]).unwrap())]),
        ..queues(2)
    };
    let mut many = Many::new(disk, setup);
    for at in 0..2 {
        many.push(at, VIRTIO_BLK_T_OUT);
        assert_eq!(many.finish(at), OK);
    }
    assert_eq!(allowed_cpus("pinned-q1"), "0");
    let here = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let free = allowed_cpus("pinned-q0");
    assert!(here.contains(&format!("Cpus_allowed_list:\t{free}\n")));
}
