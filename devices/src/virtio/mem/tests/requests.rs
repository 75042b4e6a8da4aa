//! What a driver is answered.

use super::*;

fn bytes(blocks: Range<u64>) -> Range<u64> {
    blocks.start * BLOCK..blocks.end * BLOCK
}

#[test]
fn fresh_device_offers_its_region_with_nothing_plugged() {
    let device = device(3 * BLOCK);
    assert_eq!(
        config(&device),
        [BLOCK, 0, ADDRESS, SIZE, SIZE, 0, 3 * BLOCK]
    );
    // VERSION_1, EVENT_IDX, INDIRECT_DESC, UNPLUGGED_INACCESSIBLE, and no ACPI_PXM.
    assert_eq!(device.features(), 1 << 32 | 1 << 29 | 1 << 28 | 1 << 1);
    assert_eq!((device.device_id(), device.queue_sizes().len()), (24, 1));
}

#[test]
fn configuration_is_read_only() {
    let mut device = device(BLOCK);
    let before = config(&device);
    for offset in [0, 8, 16, 24, 40, 48, 56, u64::MAX] {
        device.write_config(offset, &[0xff; 8]);
    }
    assert_eq!(config(&device), before);
}

#[test]
fn fresh_device_discards_what_the_region_held() {
    let region = FakeRegion::new(SIZE);
    Mem::new(region.clone(), setup(0)).unwrap();
    assert_eq!(region.take_done(), [Done::Discarded(0..SIZE)]);
}

#[test]
fn plugged_blocks_are_populated_and_counted() {
    let mut rig = Rig::new(10 * BLOCK);
    assert_eq!(rig.request(PLUG, 5, 4), ACK);
    assert_eq!(rig.region.take_done(), [Done::Populated(bytes(5..9))]);
    assert_eq!(rig.handle.plugged(), 4 * BLOCK);
    assert_eq!(config(&rig.device)[5], 4 * BLOCK);
    assert_eq!(rig.request(PLUG, 0, 5), ACK);
    assert_eq!(rig.handle.plugged_ranges(), [bytes(0..9)]);
    assert_eq!(rig.metric(|metrics| &metrics.plugs), 2);
    // The driver is not told of what it did itself (5.15.4.2).
    assert_eq!(rig.interrupt.config_count(), 0);
    assert!(rig.interrupt.wait_queue(0, 2, TIMEOUT));
}

#[test]
fn unplugged_blocks_are_discarded() {
    let mut rig = Rig::new(SIZE);
    assert_eq!(rig.request(PLUG, 0, 100), ACK);
    rig.region.take_done();
    assert_eq!(rig.request(UNPLUG, 60, 10), ACK);
    assert_eq!(rig.region.take_done(), [Done::Discarded(bytes(60..70))]);
    assert_eq!(rig.handle.plugged_ranges(), [bytes(0..60), bytes(70..100)]);
    assert_eq!(rig.handle.plugged(), 90 * BLOCK);
    assert_eq!(rig.metric(|metrics| &metrics.unplugs), 1);
}

#[test]
fn unplug_all_discards_the_region_in_one_go() {
    let mut rig = Rig::new(SIZE);
    for block in [1, 3, 5, 99] {
        assert_eq!(rig.request(PLUG, block, 1), ACK);
    }
    rig.region.take_done();
    // Address and count mean nothing here.
    assert_eq!(rig.request_at(UNPLUG_ALL, u64::MAX, 0), ACK);
    assert_eq!(rig.region.take_done(), [Done::Discarded(0..SIZE)]);
    assert_eq!((rig.handle.plugged(), rig.handle.requested()), (0, SIZE));
    assert_eq!(rig.request(STATE, 0, 100), UNPLUGGED);
    assert_eq!(rig.metric(|metrics| &metrics.unplug_alls), 1);
    assert_eq!(rig.request(UNPLUG_ALL, 0, 0), ACK);
}

#[test]
fn state_tells_plugged_unplugged_and_mixed() {
    let mut rig = Rig::new(SIZE);
    assert_eq!(rig.request(PLUG, 10, 80), ACK);
    for (block, count, state) in [
        (10, 80, PLUGGED),
        (10, 1, PLUGGED),
        (89, 1, PLUGGED),
        (0, 10, UNPLUGGED),
        (90, 10, UNPLUGGED),
        (9, 2, MIXED),
        (89, 2, MIXED),
        (0, 100, MIXED),
    ] {
        assert_eq!(rig.request(STATE, block, count), state, "{block} {count}");
    }
    rig.region.take_done();
    assert_eq!(rig.metric(|metrics| &metrics.states), 8);
}

#[test]
fn plugging_beyond_the_requested_size_is_not_acknowledged() {
    let mut rig = Rig::new(4 * BLOCK);
    assert_eq!(rig.request(PLUG, 0, 5), NACK);
    assert_eq!(rig.request(PLUG, 0, 4), ACK);
    assert_eq!(rig.request(PLUG, 50, 1), NACK);
    assert_eq!(rig.metric(|metrics| &metrics.beyond_requested), 2);
    assert_eq!(rig.region.take_done(), [Done::Populated(bytes(0..4))]);
    // What is plugged stays when less is requested, and the driver may go below it.
    rig.handle.resize(BLOCK).unwrap();
    assert_eq!(rig.handle.plugged(), 4 * BLOCK);
    assert_eq!(rig.request(UNPLUG, 0, 4), ACK);
    assert_eq!(rig.request(PLUG, 99, 1), ACK);
}

#[test]
fn blocks_in_another_state_are_an_error() {
    let mut rig = Rig::new(SIZE);
    assert_eq!(rig.request(PLUG, 10, 10), ACK);
    rig.region.take_done();
    for (kind, block, count) in [
        (PLUG, 10, 1),
        (PLUG, 9, 2),
        (PLUG, 19, 2),
        (PLUG, 0, 100),
        (UNPLUG, 0, 1),
        (UNPLUG, 9, 2),
        (UNPLUG, 19, 2),
        (UNPLUG, 0, 100),
    ] {
        assert_eq!(
            rig.request(kind, block, count),
            ERROR,
            "{kind} {block} {count}"
        );
    }
    assert_eq!(rig.handle.plugged_ranges(), [bytes(10..20)]);
    assert_eq!(rig.region.take_done(), []);
    assert_eq!(rig.metric(|metrics| &metrics.refused), 8);
}

#[test]
fn host_without_memory_is_busy_and_nothing_is_kept() {
    let mut rig = Rig::new(SIZE);
    rig.region.fails_to_populate.store(true, Ordering::Relaxed);
    assert_eq!(rig.request(PLUG, 2, 3), BUSY);
    assert_eq!(
        rig.region.take_done(),
        [Done::Populated(bytes(2..5)), Done::Discarded(bytes(2..5))]
    );
    assert_eq!(rig.request(STATE, 2, 3), UNPLUGGED);
    rig.region.fails_to_populate.store(false, Ordering::Relaxed);
    assert_eq!(rig.request(PLUG, 2, 3), ACK);
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 1);
}

#[test]
fn host_that_does_not_take_memory_back_is_busy() {
    let mut rig = Rig::new(SIZE);
    assert_eq!(rig.request(PLUG, 2, 3), ACK);
    rig.region.fails_to_discard.store(true, Ordering::Relaxed);
    assert_eq!(rig.request(UNPLUG, 2, 3), BUSY);
    assert_eq!(rig.request(UNPLUG_ALL, 0, 0), BUSY);
    assert_eq!(rig.request(STATE, 2, 3), PLUGGED);
    assert_eq!(rig.handle.plugged(), 3 * BLOCK);
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 2);
}

#[test]
fn request_and_response_may_be_divided() {
    let mut rig = Rig::new(SIZE);
    rig.place_request(STATE, ADDRESS, 1);
    let buffers = [
        readable(REQUEST, 1),
        readable(REQUEST + 1, 9),
        readable(REQUEST + 10, 14),
        writable(RESPONSE, 9),
        writable(RESPONSE + 9, 7),
    ];
    assert_eq!(rig.exchange(&buffers), 10);
    assert_eq!(rig.response(), UNPLUGGED);
}

#[test]
fn request_by_an_indirect_table_is_answered() {
    let mut rig = Rig::new(SIZE);
    rig.place_request(PLUG, ADDRESS, 7);
    let buffers = [readable(REQUEST, 24), writable(RESPONSE, 10)];
    rig.ring.push_indirect(0x2_0000, &buffers);
    rig.ring.kick();
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 10);
    assert_eq!(rig.response(), ACK);
    assert_eq!(rig.handle.plugged(), 7 * BLOCK);
}
