//! What a hostile driver gets.

use virtio_queue::QueueT;

use super::super::handler::QueueHandler;
use super::*;
use crate::log_lines::lines_of;
use crate::throttle::Throttle;
use crate::virtio::chain::Buffers;
use crate::virtio::driver::Descriptor;

/// The device still answers, and did nothing before.
fn assert_alive_and_untouched(rig: &mut Rig) {
    assert_eq!(rig.region.take_done(), []);
    assert_eq!(rig.handle.plugged(), 0);
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
    assert_eq!(rig.request(STATE, 0, 100), UNPLUGGED);
}

#[test]
fn ranges_that_are_not_in_the_region_are_an_error() {
    let mut rig = Rig::new(SIZE);
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, count) in [
            (ADDRESS, 0),
            (ADDRESS, 101),
            (ADDRESS, u16::MAX),
            (ADDRESS + 1, 1),
            (ADDRESS + BLOCK / 2, 1),
            (ADDRESS - BLOCK, 1),
            (ADDRESS - BLOCK, 2),
            (ADDRESS + SIZE - BLOCK, 2),
            (ADDRESS + SIZE, 1),
            (0, 1),
            (0, u16::MAX),
            (u64::MAX, 1),
            (u64::MAX, u16::MAX),
            (0_u64.wrapping_sub(BLOCK), 1),
            (0_u64.wrapping_sub(BLOCK), u16::MAX),
        ] {
            let response = rig.request_at(kind, address, count);
            assert_eq!(response, ERROR, "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(rig.metric(|metrics| &metrics.refused), 45);
    assert_alive_and_untouched(&mut rig);
}

#[test]
fn types_that_do_not_exist_are_an_error() {
    let mut rig = Rig::new(SIZE);
    for kind in [4, 5, 0x100, u16::MAX] {
        assert_eq!(rig.request(kind, 0, 1), ERROR);
    }
    assert_alive_and_untouched(&mut rig);
}

#[test]
fn requests_that_cannot_be_answered_are_not_carried_out() {
    let mut rig = Rig::new(SIZE);
    let end = 1 << 20;
    rig.place_request(PLUG, ADDRESS, 1);
    let request = readable(REQUEST, 24);
    let response = writable(RESPONSE, 10);
    for buffers in [
        &[request][..],
        &[response],
        &[readable(REQUEST, 23), response],
        &[readable(REQUEST, 0), response],
        &[readable(REQUEST, 8), response],
        &[request, writable(RESPONSE, 9)],
        &[request, writable(RESPONSE, 8)],
        &[request, writable(RESPONSE, 0)],
        &[request, readable(RESPONSE, 10)],
        &[writable(REQUEST, 24), response],
        &[request, writable(RESPONSE, 8), readable(RESPONSE, 2)],
        &[response, request],
        &[readable(end - 23, 24), response],
        &[request, writable(end - 9, 10)],
        &[request, writable(u64::MAX - 4, 10)],
        &[readable(u64::MAX, 24), response],
        &[readable(0, u32::MAX), response],
    ] {
        assert_eq!(rig.exchange(buffers), 0, "{buffers:?}");
    }
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 17);
    assert_alive_and_untouched(&mut rig);
}

#[test]
fn response_may_overwrite_the_request() {
    let mut rig = Rig::new(SIZE);
    rig.place_request(PLUG, ADDRESS, 3);
    // The request was read as a whole before.
    let buffers = [readable(REQUEST, 24), writable(REQUEST, 24)];
    assert_eq!(rig.exchange(&buffers), 10);
    assert_eq!(rig.read(REQUEST, 10), [0; 10]);
    assert_eq!(rig.handle.plugged(), 3 * BLOCK);
}

#[test]
fn loops_and_bad_indirect_tables_are_malformed() {
    let mut rig = Rig::new(SIZE);
    let looped = Descriptor {
        address: REQUEST,
        len: 24,
        flags: 1,
        next: 0,
    };
    let table = |address, len| Descriptor {
        address,
        len,
        flags: 4,
        next: 0,
    };
    // A table that holds itself.
    rig.ring.write_descriptor(0x2_0000, 0, table(0x2_0000, 16));
    for descriptor in [
        looped,
        table(0x2_0000, 16),
        table(0x2_0000, 0),
        table(0x2_0000, 17),
        table(1 << 20, 32),
        table(u64::MAX - 8, 32),
    ] {
        rig.ring.set_descriptor(0, descriptor);
        rig.ring.offer(0);
        rig.ring.kick();
        assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 0);
    }
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 6);
    assert_eq!(rig.handle.plugged(), 0);
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
}

#[test]
fn broken_rings_need_a_reset_and_keep_what_is_plugged() {
    for break_ring in [
        (|ring| ring.offer(RING_SIZE)) as fn(&mut Ring),
        |ring| ring.offer(u16::MAX),
        |ring| ring.set_available_index(RING_SIZE + 2),
    ] {
        let mut rig = Rig::new(SIZE);
        assert_eq!(rig.request(PLUG, 0, 5), ACK);
        break_ring(&mut rig.ring);
        rig.ring.kick();
        assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
        assert_eq!(rig.metric(|metrics| &metrics.broken_rings), 1);
        // The next driver finds the device as this one left it.
        assert_eq!(rig.device.stop().len(), 1);
        rig.device.reset();
        rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
        rig.device.start(rig.activation()).unwrap();
        assert_eq!(rig.request(STATE, 0, 5), PLUGGED);
        assert_eq!(rig.interrupt.needs_reset_count(), 1);
    }
}

#[test]
fn used_ring_outside_memory_needs_a_reset() {
    let mut rig = Rig::new(SIZE);
    let mut queues = rig.device.stop();
    queues[0]
        .queue
        .set_used_ring_address(Some(1 << 20), Some(0));
    rig.place_request(STATE, ADDRESS, 1);
    rig.ring
        .push(&[readable(REQUEST, 24), writable(RESPONSE, 10)]);
    rig.ring.kick();
    rig.resume(queues);
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.device.stop().len(), 1);
}

/// The worker's work on this thread, where log lines can be counted.
fn handler(rig: &mut Rig) -> QueueHandler {
    let queue = rig.device.stop().pop().unwrap();
    QueueHandler {
        memory: rig.memory.clone(),
        interrupt: rig.interrupt.clone(),
        queue,
        region: rig.region.clone(),
        shared: rig.handle.0.clone(),
        metrics: rig.device.metrics(),
        buffers: Buffers::new(),
        broken: false,
        throttle: Arc::new(Throttle::per_minute(10)),
    }
}

#[test]
fn storms_of_bad_requests_log_little() {
    let mut rig = Rig::new(SIZE);
    rig.region.fails_to_populate.store(true, Ordering::Relaxed);
    rig.region.fails_to_discard.store(true, Ordering::Relaxed);
    let mut handler = handler(&mut rig);
    let lines = lines_of(|| {
        for round in 0..3000 {
            let kind = [PLUG, UNPLUG, UNPLUG_ALL, STATE, 9][round % 5];
            rig.place_request(kind, ADDRESS, 1);
            let room = if round % 2 == 0 { 10 } else { 5 };
            rig.ring
                .push(&[readable(REQUEST, 24), writable(RESPONSE, room)]);
            handler.run();
            assert!(rig.ring.pop_used().is_some());
        }
    });
    assert_eq!(lines, 10);
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 1500);
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 600);
}

#[test]
fn storm_of_large_requests_lets_the_worker_look_up() {
    // 8 GiB in blocks of 128 MiB: ten requests plug 1.25 GiB.
    let region = FakeRegion::new(8 << 30);
    let setup = MemSetup {
        block_size: 128 * MIB,
        ..setup(8 << 30)
    };
    let mut rig = Rig::new(0);
    rig.device.stop();
    rig.device = Mem::new(region.clone(), setup).unwrap();
    rig.region = region;
    rig.handle = rig.device.handle();
    rig.device.start(rig.activation()).unwrap();
    let mut handler = handler(&mut rig);
    let _ = handler.queue.notify.read();
    for block in 0..10 {
        let request = 0x4_0000 + 0x100 * block;
        rig.place_request(PLUG, ADDRESS + block * 128 * MIB, 1);
        let bytes = rig.read(REQUEST, 24);
        rig.write(request, &bytes);
        rig.ring
            .push(&[readable(request, 24), writable(RESPONSE, 10)]);
    }
    handler.run();
    assert_eq!(rig.handle.plugged(), 1 << 30);
    // It wakes itself for the rest.
    assert_eq!(handler.queue.notify.read().unwrap(), 1);
    handler.run();
    assert_eq!(rig.handle.plugged(), 10 * 128 * MIB);
    assert!(handler.queue.notify.read().is_err());
}
