//! The owner's side, and the life of the device.

use super::super::{MAX_BLOCKS, MIN_BLOCK_SIZE, MemError};
use super::*;

#[test]
fn resize_tells_the_driver_once() {
    let mut rig = Rig::new(0);
    assert_eq!(rig.request(PLUG, 0, 1), NACK);
    rig.handle.resize(2 * BLOCK).unwrap();
    assert_eq!(rig.interrupt.config_count(), 1);
    assert_eq!(config(&rig.device)[6], 2 * BLOCK);
    // Nothing changes, nothing is told.
    rig.handle.resize(2 * BLOCK).unwrap();
    assert_eq!(rig.interrupt.config_count(), 1);
    assert_eq!(rig.request(PLUG, 0, 2), ACK);
    rig.handle.resize(SIZE).unwrap();
    rig.handle.resize(0).unwrap();
    assert_eq!(rig.interrupt.config_count(), 3);
    assert_eq!(
        (rig.handle.plugged(), rig.handle.requested()),
        (2 * BLOCK, 0)
    );
}

#[test]
fn handle_knows_the_region() {
    let handle = device(0).handle();
    assert_eq!(
        (handle.address(), handle.region_size(), handle.block_size()),
        (ADDRESS, SIZE, BLOCK)
    );
    // It outlives the device.
    handle.resize(BLOCK).unwrap();
    assert_eq!(handle.requested(), BLOCK);
}

#[test]
fn sizes_that_cannot_be_are_refused_and_nothing_changes() {
    let rig = Rig::new(BLOCK);
    let message = |size| rig.handle.resize(size).unwrap_err().to_string();
    assert_eq!(
        message(BLOCK + 1),
        "requested size is 0x200001, expected a multiple of the block size, 0x200000"
    );
    assert_eq!(
        message(SIZE + BLOCK),
        "requested size is 0xca00000, expected at most the region's 0xc800000 bytes"
    );
    assert!(matches!(
        rig.handle.resize(u64::MAX),
        Err(MemError::Alignment { .. })
    ));
    assert_eq!(rig.handle.requested(), BLOCK);
    assert_eq!(rig.interrupt.config_count(), 0);
}

#[test]
fn resize_of_a_paused_machine_is_told_when_it_resumes() {
    let mut rig = Rig::new(0);
    let queues = rig.device.stop();
    rig.handle.resize(BLOCK).unwrap();
    rig.handle.resize(2 * BLOCK).unwrap();
    assert_eq!(rig.interrupt.config_count(), 0);
    rig.resume(queues);
    assert_eq!(rig.interrupt.config_count(), 1);
    let queues = rig.device.stop();
    rig.resume(queues);
    assert_eq!(rig.interrupt.config_count(), 1);
    assert_eq!(rig.request(PLUG, 0, 2), ACK);
}

#[test]
fn blocks_stay_plugged_over_pause_and_driver_reset() {
    let mut rig = Rig::new(SIZE);
    assert_eq!(rig.request(PLUG, 3, 4), ACK);
    rig.region.take_done();
    let queues = rig.device.stop();
    assert_eq!(queues.len(), 1);
    rig.resume(queues);
    assert_eq!(rig.request(STATE, 3, 4), PLUGGED);
    rig.device.stop();
    rig.device.reset();
    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
    rig.device.start(rig.activation()).unwrap();
    assert_eq!(config(&rig.device)[5], 4 * BLOCK);
    assert_eq!(rig.request(STATE, 3, 4), PLUGGED);
    assert_eq!(rig.region.take_done(), []);
}

#[test]
fn request_made_while_paused_is_answered_after_the_resume() {
    let mut rig = Rig::new(SIZE);
    let queues = rig.device.stop();
    rig.place_request(PLUG, ADDRESS, 1);
    rig.ring
        .push(&[readable(REQUEST, 24), writable(RESPONSE, 10)]);
    rig.ring.kick();
    assert_eq!(rig.ring.pop_used(), None);
    rig.resume(queues);
    assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 10);
    assert_eq!(rig.response(), ACK);
}

#[test]
fn driver_is_asked_for_a_kick_after_a_full_ring() {
    let mut rig = Rig::new(SIZE);
    rig.place_request(STATE, ADDRESS, 1);
    for _ in 0..RING_SIZE / 2 {
        rig.ring
            .push(&[readable(REQUEST, 24), writable(RESPONSE, 10)]);
    }
    rig.ring.kick();
    for _ in 0..RING_SIZE / 2 {
        assert_eq!(rig.ring.wait_used(TIMEOUT).unwrap().len, 10);
    }
    assert!(rig.ring.wait_wants_kick(TIMEOUT));
}

#[test]
fn start_without_the_queue_fails() {
    let memory = driver::memory(&[(0, 1 << 20)]);
    let mut device = device(0);
    let activation = driver::activation(&memory, &[], 0, &Arc::default());
    assert!(device.start(activation).is_err());
    assert!(device.stop().is_empty());
}

#[test]
fn device_that_cannot_be_is_refused_by_name() {
    let refuse = |region: Arc<FakeRegion>, setup| Mem::new(region, setup).unwrap_err();
    for block_size in [0, 3 * MIB, MIN_BLOCK_SIZE / 2] {
        let setup = MemSetup {
            block_size,
            ..setup(0)
        };
        let error = refuse(FakeRegion::new(SIZE), setup);
        assert!(matches!(error, MemError::BlockSize { .. }), "{error}");
    }
    let error = refuse(FakeRegion::of_pages(1 << 30, 1 << 30), setup(0));
    assert!(matches!(error, MemError::BlockSize { .. }), "{error}");

    let odd = MemSetup {
        address: ADDRESS + MIB,
        ..setup(0)
    };
    for (region, setup, field) in [
        (SIZE, odd, "address"),
        (SIZE + MIB, setup(0), "region size"),
        (SIZE, setup(MIB), "requested size"),
    ] {
        let error = refuse(FakeRegion::new(region), setup);
        assert!(error.to_string().starts_with(field), "{error}");
    }

    let high = MemSetup {
        address: u64::MAX - SIZE + 1 + BLOCK,
        ..setup(0)
    };
    for (region, setup) in [
        (0, setup(0)),
        (SIZE, high),
        ((MAX_BLOCKS + 1) * BLOCK, setup(0)),
    ] {
        let error = refuse(FakeRegion::new(region), setup);
        assert!(matches!(error, MemError::Region { .. }), "{error}");
    }

    let error = refuse(FakeRegion::new(SIZE), setup(SIZE + BLOCK));
    assert!(matches!(error, MemError::Requested { .. }), "{error}");

    let region = FakeRegion::new(SIZE);
    region.fails_to_discard.store(true, Ordering::Relaxed);
    assert!(matches!(refuse(region, setup(0)), MemError::Discard(_)));
}

#[test]
fn largest_region_can_be_had() {
    let region = FakeRegion::new(MAX_BLOCKS * BLOCK);
    let device = Mem::new(region, setup(MAX_BLOCKS * BLOCK)).unwrap();
    assert_eq!(device.handle().region_size(), 32 << 40);
}
