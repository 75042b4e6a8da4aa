//! What a well-behaved driver gets.

use std::os::unix::fs::OpenOptionsExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::super::{Disk, EngineKind, FileDisk};
use super::disks::{ScriptDisk, UringDisk, WithoutUring};
use super::*;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Runs `test` with io_uring and with threads.
pub(super) fn with_each_engine(len: usize, test: impl Fn(Rig, &tempfile::NamedTempFile)) {
    let (disk, file) = file_disk(len);
    let rig = Rig::new(disk);
    assert_eq!(
        rig.device.watch().engine(),
        Some(EngineKind::IoUring),
        "io_uring is forbidden here; `sysctl kernel.io_uring_disabled=0` allows it"
    );
    test(rig, &file);
    let (disk, file) = file_disk(len);
    let rig = Rig::new(WithoutUring {
        disk,
        refused: None,
    });
    assert_eq!(rig.device.watch().engine(), Some(EngineKind::Threads));
    test(rig, &file);
}

#[test]
fn written_data_are_in_the_file_and_read_back() {
    with_each_engine(1 << 20, |mut rig, file| {
        let bytes: Vec<u8> = (0..4096).map(|at| (at * 7 % 253) as u8).collect();
        assert_eq!(rig.write_disk(8, &bytes), OK);
        let mut expected = pattern(1 << 20);
        expected[4096..8192].copy_from_slice(&bytes);
        assert!(std::fs::read(file.path()).unwrap() == expected);
        assert_eq!(rig.read_disk(8, 4096), (OK, bytes));
        assert_eq!(rig.metric(|metrics| &metrics.write_bytes), 4096);
        assert_eq!(rig.metric(|metrics| &metrics.read_bytes), 4096);
        assert_eq!(rig.metric(|metrics| &metrics.reads), 1);
        assert_eq!(rig.metric(|metrics| &metrics.writes), 1);
    });
}

#[test]
fn threads_serve_where_io_uring_refuses() {
    let (disk, file) = file_disk(1 << 20);
    // A descriptor that is only a place in the tree cannot be registered.
    let refused = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(file.path())
        .unwrap();
    let mut rig = Rig::new(WithoutUring {
        disk,
        refused: Some(refused),
    });
    assert_eq!(rig.device.watch().engine(), Some(EngineKind::Threads));
    assert_eq!(rig.write_disk(1, &[5; 512]), OK);
    assert_eq!(rig.read_disk(1, 512), (OK, vec![5; 512]));
}

#[test]
fn scattered_buffers_are_filled_in_order() {
    with_each_engine(1 << 20, |mut rig, _file| {
        let lens = [1_u32, 511, 100, 3996, 4096, 512];
        let mut buffers = Vec::new();
        for (at, len) in lens.iter().enumerate() {
            buffers.push(writable(DATA + 0x2000 * (lens.len() - at) as u64, *len));
        }
        let total: u32 = lens.iter().sum();
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 3, &buffers), (OK, total + 1));
        let read: Vec<u8> = buffers
            .iter()
            .flat_map(|buffer| rig.read(buffer.address, buffer.len as usize))
            .collect();
        assert!(read == pattern(1 << 20)[1536..][..total as usize]);
    });
}

#[test]
fn header_over_several_descriptors_is_accepted() {
    with_each_engine(1 << 20, |mut rig, _file| {
        let header = rig.place_header(VIRTIO_BLK_T_IN, 5);
        let status = rig.place_status();
        let head = rig.ring.push(&[
            readable(header, 3),
            readable(header + 3, 12),
            readable(header + 15, 1),
            // Data and status in one descriptor.
            writable(DATA, 513),
        ]);
        rig.ring.kick();
        let used = rig.ring.wait_used(TIMEOUT).unwrap();
        assert_eq!((used.head, used.len), (head, 513));
        assert_eq!(rig.read(DATA + 512, 1), [OK]);
        assert_eq!(rig.read(status, 1), [UNTOUCHED]);
        assert_eq!(rig.read(DATA, 8), 5_u64.to_le_bytes());
    });
}

#[test]
fn header_and_data_in_one_descriptor_are_written() {
    with_each_engine(1 << 20, |mut rig, file| {
        let header = rig.place_header(VIRTIO_BLK_T_OUT, 9);
        let header = rig.read(header, 16);
        rig.write(DATA, &[&header[..], &[0x5a; 512]].concat());
        let status = rig.place_status();
        rig.ring.push(&[readable(DATA, 528), writable(status, 1)]);
        rig.ring.kick();
        assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 1);
        assert_eq!(rig.read(status, 1), [OK]);
        assert!(std::fs::read(file.path()).unwrap()[9 * 512..10 * 512] == [0x5a; 512]);
    });
}

#[test]
fn indirect_chain_of_many_buffers_is_written() {
    with_each_engine(1 << 20, |mut rig, file| {
        let header = rig.place_header(VIRTIO_BLK_T_OUT, 0);
        let status = rig.place_status();
        let mut buffers = vec![readable(header, 16)];
        for at in 0..1000 {
            rig.write(DATA + at * 600, &vec![at as u8; 512]);
            buffers.push(readable(DATA + at * 600, 512));
        }
        buffers.push(writable(status, 1));
        rig.ring.push_indirect(0x30_0000, &buffers);
        rig.ring.kick();
        assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 1);
        assert_eq!(rig.read(status, 1), [OK]);
        let written = std::fs::read(file.path()).unwrap();
        for (at, sector) in written.chunks(512).take(1000).enumerate() {
            assert!(sector.iter().all(|byte| *byte == at as u8));
        }
    });
}

#[test]
fn identification_is_told() {
    with_each_engine(1 << 20, |mut rig, _file| {
        let answer = rig.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 20)]);
        assert_eq!(answer, (OK, 21));
        assert_eq!(rig.read(DATA, 20), b"a serial of 20 bytes");
        assert_eq!(rig.metric(|metrics| &metrics.identifications), 1);
    });
}

#[test]
fn unknown_type_is_unsupported() {
    with_each_engine(1 << 20, |mut rig, _file| {
        for kind in [VIRTIO_BLK_T_DISCARD, 2, 99, u32::MAX] {
            assert_eq!(rig.request(kind, 0, &[readable(DATA, 512)]), (UNSUPP, 1));
        }
        assert_eq!(rig.metric(|metrics| &metrics.unsupported), 4);
    });
}

#[test]
fn request_beyond_the_end_fails_and_the_next_works() {
    with_each_engine(1 << 20, |mut rig, _file| {
        for sector in [2048, 2047, u64::MAX, 1 << 55] {
            let answer = rig.request(VIRTIO_BLK_T_IN, sector, &[writable(DATA, 1024)]);
            assert_eq!(answer, (IOERR, 0));
            let answer = rig.request(VIRTIO_BLK_T_OUT, sector, &[readable(DATA, 1024)]);
            assert_eq!(answer, (IOERR, 1));
        }
        assert_eq!(rig.metric(|metrics| &metrics.refused), 8);
        assert_eq!(rig.read_disk(2047, 512).0, OK);
    });
}

#[test]
fn write_to_read_only_disk_fails() {
    let (_, file) = image(1 << 20);
    let disk = FileDisk::new(file.reopen().unwrap(), true).unwrap();
    let mut rig = Rig::new(disk);
    assert_ne!(rig.device.features() & (1 << 5), 0);
    assert_eq!(rig.write_disk(0, &[1; 512]), IOERR);
    assert!(std::fs::read(file.path()).unwrap() == pattern(1 << 20));
    assert_eq!(rig.read_disk(1, 512), (OK, pattern(1024)[512..].to_vec()));
}

#[test]
fn flush_makes_completed_writes_durable() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::new(disk.clone());
    assert_eq!(rig.write_disk(4, &[9; 512]), OK);
    assert_eq!(disk.0.lock().unwrap().flushes, 0);
    assert!(disk.0.lock().unwrap().durable == pattern(1 << 20));
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let script = disk.0.lock().unwrap();
    assert_eq!(script.flushes, 1);
    assert!(script.durable[2048..2560] == [9; 512]);
}

#[test]
fn write_is_durable_at_once_for_a_driver_that_does_not_flush() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::stopped(disk.clone(), 0);
    rig.start();
    assert_eq!(rig.write_disk(4, &[9; 512]), OK);
    let script = disk.0.lock().unwrap();
    assert_eq!(script.flushes, 1);
    assert!(script.durable[2048..2560] == [9; 512]);
}

#[test]
fn flush_by_io_uring_reaches_the_descriptor() {
    // A file that can be synced says so, one that cannot fails: both answers are the descriptor's.
    let (disk, _file) = file_disk(1 << 20);
    assert_eq!(Rig::new(disk).request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let mut rig = Rig::new(UringDisk::open("/dev/full"));
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (IOERR, 1));
}

#[test]
fn many_requests_in_one_go_are_all_answered() {
    with_each_engine(1 << 20, |mut rig, _file| {
        for round in 0..20_u64 {
            let mut pending = Vec::new();
            for at in 0..21_u64 {
                let sector = round * 21 + at;
                let buffer = writable(DATA + at * 512, 512);
                pending.push((sector, at, rig.push(VIRTIO_BLK_T_IN, sector, &[buffer])));
            }
            rig.ring.kick();
            for _ in 0..21 {
                assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 513);
            }
            for (sector, at, request) in pending {
                assert_eq!(rig.status(request), OK);
                assert_eq!(rig.read(DATA + at * 512, 8), sector.to_le_bytes());
            }
        }
    });
}

#[test]
fn driver_is_asked_for_a_kick_after_a_full_ring() {
    with_each_engine(1 << 20, |mut rig, _file| {
        let table = DATA + 0x1_0000;
        for at in 0..u64::from(RING_SIZE) {
            let header = rig.place_header(VIRTIO_BLK_T_IN, at);
            let status = rig.place_status();
            let buffers = [
                readable(header, 16),
                writable(DATA + 512 * at, 512),
                writable(status, 1),
            ];
            rig.ring.push_indirect(table + 48 * at, &buffers);
        }
        rig.ring.kick();
        for _ in 0..RING_SIZE {
            assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 513);
        }
        assert!(rig.ring.wait_wants_kick(TIMEOUT));
    });
}

#[test]
fn one_interrupt_tells_of_a_batch() {
    let mut rig = Rig::stopped(ScriptDisk::new(1 << 20), FLUSH);
    for at in 0..16 {
        rig.push(VIRTIO_BLK_T_IN, at, &[writable(DATA, 512)]);
    }
    rig.start();
    for _ in 0..16 {
        rig.ring.wait_used(TIMEOUT).unwrap();
    }
    assert!(rig.interrupt.wait_queue(0, 1, TIMEOUT));
    rig.device.stop();
    assert_eq!(rig.interrupt.queue_count(0), 1);
}

#[test]
fn event_index_holds_interrupts_back() {
    let mut rig = Rig::stopped(
        ScriptDisk::new(1 << 20),
        FLUSH | 1 << VIRTIO_RING_F_EVENT_IDX,
    );
    rig.ring.set_used_event(4);
    rig.start();
    for at in 0..4 {
        assert_eq!(rig.read_disk(at, 512).0, OK);
    }
    assert_eq!(rig.interrupt.queue_count(0), 0);
    assert_eq!(rig.read_disk(4, 512).0, OK);
    assert!(rig.interrupt.wait_queue(0, 1, TIMEOUT));
}

#[test]
fn configuration_space_describes_the_disk() {
    let (disk, _file) = file_disk(1 << 20);
    let physical = disk.block_sizes().physical;
    let rig = Rig::new(disk);
    let mut config = [0xff; 64];
    rig.device.read_config(0, &mut config);
    assert_eq!(config[..8], 2048_u64.to_le_bytes());
    assert_eq!(config[12..16], 62_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(512 << config[24], physical);
    assert_eq!(config[34..36], 1_u16.to_le_bytes());
    assert_eq!(config[60..], [0xff; 4]);
    let mut beyond = [0x77; 4];
    rig.device.read_config(60, &mut beyond);
    rig.device.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0x77; 4]);
    rig.device.read_config(58, &mut beyond);
    assert_eq!(beyond, [0, 0, 0x77, 0x77]);
}

#[test]
fn pause_and_resume_go_on_where_they_stopped() {
    with_each_engine(1 << 20, |mut rig, _file| {
        for round in 0..10 {
            assert_eq!(rig.read_disk(round, 512).1[..8], round.to_le_bytes());
            let queues = rig.device.stop();
            assert_eq!(queues.len(), 1);
            assert!(rig.device.stop().is_empty());
            let pending = rig.push(VIRTIO_BLK_T_IN, round, &[writable(DATA, 512)]);
            rig.ring.kick();
            rig.device
                .start(crate::virtio::Activation {
                    memory: rig.memory.clone(),
                    queues,
                    features: FLUSH,
                    interrupt: rig.interrupt.clone(),
                })
                .unwrap();
            assert_eq!(rig.finish(pending), (OK, 513));
        }
    });
}

#[test]
fn start_without_the_first_queue_fails() {
    let (disk, _file) = file_disk(1 << 20);
    let mut rig = Rig::stopped(disk, FLUSH);
    let activation = driver::activation(&rig.memory, &[], FLUSH, &rig.interrupt);
    let error = rig.device.start(activation).unwrap_err();
    assert!(matches!(error, crate::virtio::StartError::QueueMissing(0)));
}
