//! What a hostile driver gets.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::virtio::driver::Descriptor;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const IOERR: u8 = 1;

fn rig() -> (Rig, tempfile::NamedTempFile) {
    let (disk, file) = file_disk(1 << 20);
    (Rig::new(disk), file)
}

/// Offers `table` from its first descriptor on and returns the length in the used ring.
fn offer(rig: &mut Rig, table: &[Descriptor]) -> u32 {
    for (at, descriptor) in table.iter().enumerate() {
        rig.ring.set_descriptor(at as u16, *descriptor);
    }
    rig.ring.offer(0);
    rig.ring.kick();
    let used = rig.ring.wait_used(TIMEOUT).expect("the device answers");
    assert_eq!(used.head, 0);
    used.len
}

/// The device still serves a proper request, on descriptors that no test above used.
fn assert_alive(rig: &mut Rig) {
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
    let header = rig.place_header(VIRTIO_BLK_T_IN, 7);
    let status = rig.place_status();
    for (at, (address, len, flags)) in [
        (header, 16, NEXT),
        (DATA, 512, NEXT | WRITE),
        (status, 1, WRITE),
    ]
    .into_iter()
    .enumerate()
    {
        let next = 51 + at as u16;
        rig.ring.set_descriptor(
            50 + at as u16,
            Descriptor {
                address,
                len,
                flags,
                next,
            },
        );
    }
    rig.ring.offer(50);
    rig.ring.kick();
    let used = rig.ring.wait_used(TIMEOUT).expect("the device is alive");
    assert_eq!((used.head, used.len), (50, 513));
    assert_eq!(rig.read(status, 1), [0]);
    assert_eq!(rig.read(DATA, 8), 7_u64.to_le_bytes());
}

#[test]
fn loop_of_descriptors_ends() {
    let (mut rig, _file) = rig();
    let header = rig.place_header(VIRTIO_BLK_T_IN, 0);
    let one = Descriptor {
        address: header,
        len: 16,
        flags: NEXT,
        next: 0,
    };
    assert_eq!(offer(&mut rig, &[one]), 0);
    let two = Descriptor { next: 1, ..one };
    let back = Descriptor {
        address: DATA,
        len: 512,
        flags: NEXT | WRITE,
        next: 0,
    };
    assert_eq!(offer(&mut rig, &[two, back]), 0);
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 2);
    assert_alive(&mut rig);
}

#[test]
fn next_beyond_the_table_is_malformed() {
    let (mut rig, _file) = rig();
    let header = rig.place_header(VIRTIO_BLK_T_IN, 0);
    for next in [RING_SIZE, u16::MAX] {
        let descriptor = Descriptor {
            address: header,
            len: 16,
            flags: NEXT,
            next,
        };
        assert_eq!(offer(&mut rig, &[descriptor]), 0);
    }
    assert_alive(&mut rig);
}

#[test]
fn addresses_outside_memory_fail_with_a_status() {
    let (mut rig, file) = rig();
    for address in [
        4 << 20,
        (4 << 20) - 511,
        (8 << 20) - 1,
        12 << 20,
        1 << 40,
        u64::MAX - 100,
        u64::MAX,
    ] {
        for (kind, buffer) in [
            (VIRTIO_BLK_T_IN, writable(address, 512)),
            (VIRTIO_BLK_T_OUT, readable(address, 512)),
        ] {
            let (status, len) = rig.request(kind, 0, &[buffer]);
            assert_eq!((status, len), (IOERR, 0), "{address:#x}");
        }
    }
    assert!(std::fs::read(file.path()).unwrap() == pattern(1 << 20));
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 14);
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
}

#[test]
fn header_and_status_outside_memory_are_malformed() {
    let (mut rig, _file) = rig();
    let status = rig.place_status();
    rig.ring.push(&[
        readable(5 << 20, 16),
        writable(DATA, 512),
        writable(status, 1),
    ]);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    assert_eq!(rig.read(status, 1), [IOERR]);
    let header = rig.place_header(VIRTIO_BLK_T_IN, 0);
    rig.ring.push(&[
        readable(header, 16),
        writable(DATA, 512),
        writable(5 << 20, 1),
    ]);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    assert_alive(&mut rig);
}

#[test]
fn zero_length_buffers_are_passed_over() {
    let (mut rig, _file) = rig();
    let data = [writable(DATA, 0), writable(DATA, 512), writable(1 << 50, 0)];
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 2, &data), (0, 513));
    assert_eq!(rig.read(DATA, 8), 2_u64.to_le_bytes());
    // Nothing but empty buffers is no data.
    assert_eq!(
        rig.request(VIRTIO_BLK_T_IN, 2, &[writable(DATA, 0)]),
        (IOERR, 1)
    );
}

#[test]
fn lengths_of_4_gib_are_malformed() {
    let (mut rig, _file) = rig();
    for len in [u32::MAX - 17, u32::MAX - 511, 1 << 31] {
        let (status, len) = rig.request(VIRTIO_BLK_T_IN, 0, &[writable(0, len)]);
        assert_eq!((status, len), (IOERR, 0));
    }
    // The sum is more than a chain may have: its end is not found, and nor is the status.
    let pending = rig.push(
        VIRTIO_BLK_T_IN,
        0,
        &[writable(DATA, 512), writable(0, u32::MAX)],
    );
    rig.ring.kick();
    assert_eq!(rig.finish(pending), (UNTOUCHED, 0));
    assert_alive(&mut rig);
}

#[test]
fn long_request_of_the_same_memory_again_and_again_is_beyond_the_disk() {
    let (mut rig, _file) = rig();
    let header = rig.place_header(VIRTIO_BLK_T_IN, 0);
    let status = rig.place_status();
    let mut buffers = vec![readable(header, 16)];
    buffers.resize(1000, writable(DATA, 1 << 20));
    buffers.push(writable(status, 1));
    rig.ring.push_indirect(0x30_0000, &buffers);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    assert_eq!(rig.read(status, 1), [IOERR]);
}

#[test]
fn indirect_table_inside_an_indirect_table_is_malformed() {
    let (mut rig, _file) = rig();
    let inner = Descriptor {
        address: 0x30_1000,
        len: 48,
        flags: INDIRECT,
        next: 0,
    };
    rig.ring.write_descriptor(0x30_0000, 0, inner);
    let outer = Descriptor {
        address: 0x30_0000,
        len: 16,
        flags: INDIRECT,
        next: 0,
    };
    assert_eq!(offer(&mut rig, &[outer]), 0);
    // A table that holds itself.
    rig.ring.write_descriptor(0x30_0000, 0, outer);
    assert_eq!(offer(&mut rig, &[outer]), 0);
    assert_alive(&mut rig);
}

#[test]
fn odd_indirect_tables_are_malformed() {
    let (mut rig, _file) = rig();
    for (address, len) in [
        (0x30_0000, 0),
        (0x30_0000, 15),
        (0x30_0000, 17),
        (0x30_0000, u32::MAX),
        (0x30_0000, !15),
        (5 << 20, 48),
        (u64::MAX - 8, 48),
    ] {
        let outer = Descriptor {
            address,
            len,
            flags: INDIRECT,
            next: 0,
        };
        assert_eq!(offer(&mut rig, &[outer]), 0);
    }
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 7);
    assert_alive(&mut rig);
}

#[test]
fn head_beyond_the_queue_breaks_the_ring() {
    for head in [RING_SIZE, u16::MAX] {
        let (mut rig, _file) = rig();
        rig.ring.offer(head);
        rig.ring.kick();
        assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
        // Nothing more is done for this driver, and once is enough.
        rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
        rig.ring.kick();
        assert!(rig.ring.wait_used(Duration::from_millis(50)).is_none());
        assert_eq!(rig.interrupt.needs_reset_count(), 1);
        assert_eq!(rig.metric(|metrics| &metrics.broken_rings), 1);
        assert_eq!(rig.device.stop().len(), 1);
    }
}

#[test]
fn available_index_that_runs_ahead_breaks_the_ring() {
    let (mut rig, _file) = rig();
    rig.ring.set_available_index(RING_SIZE + 1);
    rig.ring.kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.device.stop().len(), 1);
}

#[test]
fn used_ring_in_a_hole_breaks_the_ring() {
    use virtio_queue::QueueT;
    let (disk, _file) = file_disk(1 << 20);
    let mut rig = Rig::stopped(disk, FLUSH);
    rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    let mut activation = driver::activation(&rig.memory, &[&rig.ring], FLUSH, &rig.interrupt);
    activation.queues[0]
        .queue
        .set_used_ring_address(Some(5 << 20), Some(0));
    rig.device.start(activation).unwrap();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.device.stop().len(), 1);
}

#[test]
fn used_ring_that_vanishes_with_a_request_in_flight_breaks_the_ring() {
    let (disk, _file) = file_disk(1 << 20);
    let mut rig = Rig::stopped(disk, FLUSH);
    // All rings in the second region, and then no second region.
    rig.ring = Ring::new(&rig.memory, 8 << 20, RING_SIZE);
    rig.start();
    rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    let (smaller, _) = rig
        .memory
        .memory()
        .remove_region(GuestAddress(8 << 20), 4 << 20)
        .unwrap();
    rig.memory.lock().unwrap().replace(smaller);
    rig.ring.kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.device.stop().len(), 1);
}

#[test]
fn short_header_fails_with_a_status() {
    let (mut rig, _file) = rig();
    let header = rig.place_header(VIRTIO_BLK_T_IN, 0);
    for len in [0, 1, 15] {
        let status = rig.place_status();
        rig.ring.push(&[
            readable(header, len),
            writable(DATA, 512),
            writable(status, 1),
        ]);
        rig.ring.kick();
        assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
        assert_eq!(rig.read(status, 1), [IOERR]);
    }
    // The byte before the status is data, and stays as it was.
    rig.write(DATA, &[UNTOUCHED; 8]);
    rig.ring.push(&[readable(header, 4), writable(DATA, 8)]);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    assert_eq!(
        rig.read(DATA, 8),
        [
            UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED, IOERR
        ]
    );
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 4);
    assert_alive(&mut rig);
}

#[test]
fn status_that_is_not_writable_is_malformed() {
    let (mut rig, file) = rig();
    let header = rig.place_header(VIRTIO_BLK_T_OUT, 0);
    let status = rig.place_status();
    rig.ring.push(&[
        readable(header, 16),
        readable(DATA, 512),
        readable(status, 1),
    ]);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    assert_eq!(rig.read(status, 1), [UNTOUCHED]);
    assert!(std::fs::read(file.path()).unwrap() == pattern(1 << 20));
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 1);
    assert_alive(&mut rig);
}

#[test]
fn readable_buffer_after_a_writable_one_is_malformed() {
    let (mut rig, _file) = rig();
    let data = [writable(DATA, 512), readable(DATA + 512, 512)];
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &data), (IOERR, 0));
}

#[test]
fn data_of_the_wrong_direction_fail() {
    let (mut rig, file) = rig();
    assert_eq!(
        rig.request(VIRTIO_BLK_T_OUT, 0, &[writable(DATA, 512)]),
        (IOERR, 0)
    );
    assert_eq!(
        rig.request(VIRTIO_BLK_T_IN, 0, &[readable(DATA, 512)]),
        (IOERR, 1)
    );
    assert!(std::fs::read(file.path()).unwrap() == pattern(1 << 20));
    assert_eq!(rig.metric(|metrics| &metrics.refused), 2);
}

#[test]
fn stop_is_prompt_while_the_driver_never_stops_adding() {
    let (mut rig, _file) = rig();
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        let ring = &mut rig.ring;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            // As many as the ring holds, beyond what the device has used.
            while stopped.try_recv().is_err() {
                if ring
                    .available_index()
                    .wrapping_sub(ring.device_used_index())
                    < RING_SIZE
                {
                    ring.offer(pending.head);
                    ring.kick();
                }
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(rig.device.stop().len(), 1);
        stop.send(()).unwrap();
    });
    assert!(start.elapsed() < TIMEOUT);
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
}
