//! A driver that keeps a block device busy, and does nothing else: no guest, no allocation, one wait for each batch.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::Instant;

use devices::memory::GuestRam;
use devices::rate_limit::{RateLimiter, RateLimits};
use devices::virtio::block::{Block, BlockSetup, EngineKind, FileDisk, ID_LEN};
use devices::virtio::driver::{self, Descriptor, Ring};
use devices::virtio::{Activation, Interrupt, VirtioDevice};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

const RING_SIZE: u16 = 128;
const RING: u64 = 0x1000;
const HEADERS: u64 = 0x1_0000;
const STATUSES: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;

/// Bytes that each request moves.
const REQUEST: u64 = 4096;

const DISK: u64 = 16 << 20;

/// The guest's side of the interrupt: an eventfd that is waited on, as a CPU that halts.
struct Line(EventFd);

impl Interrupt for Line {
    fn queue(&self, _index: u16) {
        self.0.write(1).expect("the counter is not full");
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        panic!("the ring is sound");
    }
}

/// A device that runs on a file in memory, and as many requests as are on their way at a time.
pub(crate) struct Load {
    device: Block,
    memory: GuestRam,
    ring: Ring,
    line: Arc<Line>,
    depth: u16,
    used: u16,
    seed: u64,
}

impl Load {
    /// `depth` requests of `kind` (VIRTIO_BLK_T_*) at a time, by io_uring or by threads.
    pub(crate) fn new(kind: u32, depth: u16, engine: EngineKind) -> Self {
        let memory = driver::memory(&[(0, 16 << 20)]);
        let ring = Ring::new(&memory, RING, RING_SIZE);
        let disk = FileDisk::new(memory_file(), false).expect("a file in memory is a disk");
        let setup = BlockSetup {
            name: "load".to_owned(),
            id: [0; ID_LEN],
            queues: 1,
            queue_size: RING_SIZE,
            affinity: std::collections::BTreeMap::new(),
            io_uring: engine == EngineKind::IoUring,
            limiter: Arc::new(RateLimiter::new(RateLimits::default(), Instant::now())),
        };
        let mut device = Block::new(Arc::new(disk), setup);
        let line = Arc::new(Line(EventFd::new(0).expect("an eventfd can be had")));
        let activation = Activation {
            memory: memory.clone(),
            queues: vec![ring.active(0, 0)],
            features: 1 << VIRTIO_BLK_F_FLUSH,
            interrupt: line.clone(),
        };
        device.start(activation).expect("the device starts");
        assert_eq!(device.watch().engine(), Some(engine));
        let load = Self {
            device,
            memory,
            ring,
            line,
            depth,
            used: 0,
            seed: 1,
        };
        load.describe(kind);
        load
    }

    /// Writes the chains, each of a header, data and a status, once for all.
    fn describe(&self, kind: u32) {
        let (next, write) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16);
        let data = if kind == virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN {
            next | write
        } else {
            next
        };
        for at in 0..self.depth {
            let place = u64::from(at);
            let parts = [
                (HEADERS + 16 * place, 16, next),
                (DATA + REQUEST * place, REQUEST as u32, data),
                (STATUSES + place, 1, write),
            ];
            for (part, (address, len, flags)) in (0..).zip(parts) {
                let index = 3 * at + part;
                let descriptor = Descriptor {
                    address,
                    len,
                    flags,
                    next: index + 1,
                };
                self.ring.set_descriptor(index, descriptor);
            }
            self.memory
                .memory()
                .write_obj(kind, GuestAddress(HEADERS + 16 * place))
                .expect("there is memory");
        }
    }

    /// Has all requests carried out once, each somewhere on the disk.
    pub(crate) fn round(&mut self) {
        let memory = self.memory.memory();
        for at in 0..self.depth {
            // xorshift64: any places will do.
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            let sector = self.seed % (DISK / REQUEST) * (REQUEST / 512);
            let header = GuestAddress(HEADERS + 16 * u64::from(at) + 8);
            memory.write_obj(sector, header).expect("there is memory");
            self.ring.offer(3 * at);
        }
        self.ring.kick();
        self.used = self.used.wrapping_add(self.depth);
        while self.ring.device_used_index() != self.used {
            self.line.0.read().expect("the device interrupts");
        }
        drop(memory);
        let mut statuses = [0xff; RING_SIZE as usize];
        let statuses = &mut statuses[..usize::from(self.depth)];
        self.memory
            .memory()
            .read_slice(statuses, GuestAddress(STATUSES))
            .expect("there is memory");
        assert!(statuses.iter().all(|status| *status == 0), "{statuses:?}");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.device.stop();
    }
}

/// An anonymous file (memfd_create(2)) all of which is in memory.
fn memory_file() -> File {
    // SAFETY: the name is a string that ends, and outlives the call.
    #[allow(unsafe_code)]
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the call returned this descriptor, and nobody else has it.
    #[allow(unsafe_code)]
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(&vec![1; DISK as usize])
        .expect("there is memory");
    file
}
