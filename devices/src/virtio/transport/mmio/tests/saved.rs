use super::super::state::{KIND, VirtioMmioState};
use super::machine::*;
use crate::state::{Persist, Section, StateError};

#[test]
fn selectors_are_as_they_were() {
    let machine = Machine::new();
    machine.write(QUEUE_SEL, 1);
    machine.write(DEVICE_FEATURES_SEL, 1);
    let saved = machine.save();
    let mut fresh = Machine::new();
    fresh.restore(&saved).unwrap();
    assert_eq!(fresh.read(QUEUE_NUM_MAX), 8);
    assert_eq!(fresh.read(DEVICE_FEATURES), (FEATURES >> 32) as u32);
    assert_eq!(fresh.save(), saved);
}

#[test]
fn other_number_of_devices_is_refused() {
    let machine = Machine::new();
    let mut fresh = Machine::new();
    let (line, _end) = line();
    let device = Box::new(idle());
    let notify = fresh.bindings.clone();
    let added = fresh
        .slots
        .add(device, fresh.memory.clone(), line, notify)
        .unwrap();
    assert_eq!(added, 1);
    let error = fresh.restore(&machine.save()).unwrap_err();
    assert!(error.to_string().contains("expected 2 devices"), "{error}");
}

/// Saves a running device, lets `change` spoil its fields, and restores it into a fresh one.
fn restore_spoilt(change: impl FnOnce(&mut VirtioMmioState)) -> Result<(), StateError> {
    let (mut machine, _rings) = Machine::running();
    machine.pause();
    let section = machine.slots.device(0).unwrap().lock().unwrap().save();
    let mut state = section.decode(KIND, 1).unwrap();
    change(&mut state);

    let fresh = Machine::new();
    let mut device = fresh.slots.device(0).unwrap().lock().unwrap();
    let before = device.save();
    let result = device.restore(&Section::new(KIND, 1, &state));
    assert!(
        result.is_ok() || device.save() == before,
        "a failed restore changes nothing"
    );
    result
}

#[test]
fn state_that_no_device_can_hold_is_refused() {
    assert!(restore_spoilt(|_| {}).is_ok());
    for (field, result) in [
        ("status", restore_spoilt(|state| state.core.status = 0xff)),
        (
            "driver_features",
            restore_spoilt(|state| state.core.driver_features |= 1 << 40),
        ),
        (
            "queues",
            restore_spoilt(|state| state.core.queues.truncate(1)),
        ),
        (
            "queues",
            restore_spoilt(|state| state.core.queues[0].used = 0x80000),
        ),
        ("running", restore_spoilt(|state| state.core.status = 1)),
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, StateError::Field { field: found, .. } if *found == field),
            "{field}: {error}"
        );
    }
}
