//! Saved state.

use super::*;
use crate::state::{Persist, Section, StateError};

/// The fields of the saved state, as they are written.
#[derive(Clone, serde::Serialize)]
struct Raw {
    address: u64,
    region_size: u64,
    block_size: u64,
    requested: u64,
    plugged: Vec<u8>,
    untold: bool,
}

fn raw() -> Raw {
    Raw {
        address: ADDRESS,
        region_size: SIZE,
        block_size: BLOCK,
        requested: 5 * BLOCK,
        plugged: vec![0; 13],
        untold: false,
    }
}

/// The field that a fresh device refuses in `raw`.
fn refused(raw: &Raw) -> Option<&'static str> {
    let mut device = device(BLOCK);
    let before = device.save();
    match device.restore(&Section::new("virtio-mem", 1, raw)) {
        Ok(()) => None,
        Err(StateError::Field { field, .. }) => {
            assert_eq!(device.save(), before);
            Some(field)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn state_restored_into_a_fresh_device_is_equal() {
    let mut rig = Rig::new(SIZE);
    for (block, count) in [(0, 1), (60, 10), (99, 1)] {
        assert_eq!(rig.request(PLUG, block, count), ACK);
    }
    rig.handle.resize(3 * BLOCK).unwrap();
    let queues = rig.device.stop();
    let section = rig.device.save();
    rig.device = device(0);
    rig.device.restore(&section).unwrap();
    assert_eq!(rig.device.save(), section);
    assert_eq!(
        config(&rig.device),
        [BLOCK, 0, ADDRESS, SIZE, SIZE, 12 * BLOCK, 3 * BLOCK]
    );
    rig.resume(queues);
    assert_eq!(rig.request(STATE, 60, 10), PLUGGED);
    assert_eq!(rig.request(STATE, 59, 11), MIXED);
    assert_eq!(rig.request(PLUG, 1, 1), NACK);
    assert_eq!(rig.request(UNPLUG, 60, 10), ACK);
    assert_eq!(rig.request(PLUG, 1, 1), ACK);
}

#[test]
fn resize_of_a_paused_machine_is_told_after_a_restore() {
    let mut rig = Rig::new(0);
    let queues = rig.device.stop();
    rig.handle.resize(BLOCK).unwrap();
    let section = rig.device.save();
    rig.device = device(0);
    rig.device.restore(&section).unwrap();
    rig.resume(queues);
    assert_eq!(rig.interrupt.config_count(), 1);
}

#[test]
fn state_of_another_geometry_is_refused_by_the_field() {
    assert_eq!(refused(&raw()), None);
    for (raw, field) in [
        (
            Raw {
                address: ADDRESS + SIZE,
                ..raw()
            },
            "address",
        ),
        (
            Raw {
                region_size: SIZE - BLOCK,
                ..raw()
            },
            "region_size",
        ),
        (
            Raw {
                block_size: 2 * BLOCK,
                ..raw()
            },
            "block_size",
        ),
    ] {
        assert_eq!(refused(&raw), Some(field));
    }
}

#[test]
fn state_that_no_device_can_have_is_refused_by_the_field() {
    for requested in [1, SIZE + BLOCK, u64::MAX] {
        let raw = Raw { requested, ..raw() };
        assert_eq!(refused(&raw), Some("requested"));
    }
    let beyond_the_end = [vec![0; 12], vec![0x10]].concat();
    for plugged in [vec![], vec![0; 12], vec![0; 14], beyond_the_end] {
        let raw = Raw { plugged, ..raw() };
        assert_eq!(refused(&raw), Some("plugged"));
    }
    let last = [vec![0; 12], vec![8]].concat();
    assert_eq!(
        refused(&Raw {
            plugged: last,
            ..raw()
        }),
        None
    );
}

#[test]
fn state_of_another_kind_or_version_is_refused() {
    let mut device = device(0);
    let other = Section::new("virtio-rng", 1, &raw());
    assert!(matches!(
        device.restore(&other),
        Err(StateError::Kind { .. })
    ));
    let newer = Section::new("virtio-mem", 2, &raw());
    assert!(matches!(
        device.restore(&newer),
        Err(StateError::Version { .. })
    ));
    let garbage = Section::new("virtio-mem", 1, &[1, 2, 3]);
    assert!(matches!(
        device.restore(&garbage),
        Err(StateError::Decode { .. })
    ));
}
