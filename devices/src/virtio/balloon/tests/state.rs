//! Saved state, and sizes while nothing runs.

use super::super::BalloonError;
use super::*;
use crate::state::{Persist, Section, StateError};

#[test]
fn size_is_told_to_a_driver_that_runs_and_to_one_that_resumes() {
    let mut rig = Rig::new();
    rig.handle.resize(3 * PAGE).unwrap();
    rig.handle.resize(3 * PAGE).unwrap();
    assert_eq!(rig.interrupt.config_count(), 1);
    assert_eq!(config(&rig.device)[0], 3);
    let queues = rig.device.stop();
    rig.handle.resize(0).unwrap();
    assert_eq!(rig.interrupt.config_count(), 1);
    rig.resume(queues);
    assert_eq!(rig.interrupt.config_count(), 2);
    assert_eq!(rig.handle.target(), 0);
}

#[test]
fn size_that_is_no_number_of_pages_is_refused() {
    let rig = Rig::new();
    for size in [1, PAGE + 1, 1 << 44, u64::MAX] {
        let refused = rig.handle.resize(size);
        assert!(matches!(refused, Err(BalloonError::Size(found)) if found == size));
    }
    rig.handle.resize((1 << 44) - PAGE).unwrap();
}

#[test]
fn driver_that_goes_takes_its_pages_along() {
    let mut rig = Rig::new();
    rig.handle.resize(2 * PAGE).unwrap();
    rig.device.write_config(4, &2_u32.to_le_bytes());
    rig.device.write_config(12, &5_u32.to_le_bytes());
    assert_eq!(rig.handle.actual(), 2 * PAGE);
    rig.device.stop();
    rig.device.reset();
    assert_eq!(config(&rig.device), [2, 0, 0, 0]);
}

#[test]
fn features_are_those_that_were_asked_for() {
    let of = |deflate_on_oom, free_page_reporting| {
        let setup = BalloonSetup {
            deflate_on_oom,
            free_page_reporting,
            ..setup()
        };
        let device = Balloon::new(setup).unwrap();
        (device.features() & 0x3f, device.queue_sizes().len())
    };
    assert_eq!(of(false, false), (0x02, 3));
    assert_eq!(of(true, false), (0x06, 3));
    assert_eq!(of(false, true), (0x32, 5));
}

#[test]
fn state_restored_into_a_fresh_device_is_equal() {
    let mut rig = Rig::new();
    rig.device.write_config(4, &2_u32.to_le_bytes());
    rig.device.write_config(12, &5_u32.to_le_bytes());
    let queues = rig.device.stop();
    rig.handle.resize(9 * PAGE).unwrap();
    let section = rig.device.save();
    rig.device = Balloon::new(setup()).unwrap();
    rig.device.restore(&section).unwrap();
    assert_eq!(rig.device.save(), section);
    assert_eq!(config(&rig.device), [9, 2, 0, 5]);
    rig.resume(queues);
    assert_eq!(rig.interrupt.config_count(), 1);
    rig.fill(FREE);
    rig.send(INFLATE, &[number(FREE)]);
    assert!(rig.is_gone(FREE));
}

#[test]
fn state_of_another_kind_or_version_is_refused() {
    let mut device = Balloon::new(setup()).unwrap();
    let other = Section::new("virtio-rng", 1, &());
    assert!(matches!(
        device.restore(&other),
        Err(StateError::Kind { .. })
    ));
    let newer = Section::new("virtio-balloon", 2, &());
    assert!(matches!(
        device.restore(&newer),
        Err(StateError::Version { .. })
    ));
}
