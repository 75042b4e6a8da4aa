use super::machine::*;
use crate::pci::MsiMessage;
use crate::state::{Persist, Section, StateError};

fn restored(section: &Section) -> Machine {
    let mut fresh = Machine::powered_on();
    fresh.root.restore(section).unwrap();
    fresh
}

#[test]
fn vectors_selectors_and_bars_are_as_they_were() {
    let (mut machine, _rings) = Machine::running();
    let message = MsiMessage {
        address: 0xfee0_1000,
        data: 0x41,
    };
    machine.set_msix_control(1 << 15);
    machine.set_vector(1, message, false);
    machine.root.pause();
    let saved = machine.root.save();

    let fresh = restored(&saved);
    assert_eq!(fresh.root.save(), saved);
    assert_eq!(fresh.bar(), machine.bar());
    for register in [
        CONFIG_VECTOR,
        QUEUE_SELECT,
        QUEUE_SIZE,
        QUEUE_VECTOR,
        QUEUE_DESC,
    ] {
        assert_eq!(fresh.read(register), machine.read(register));
    }
    assert_eq!(fresh.msi.vector(1).0, Some(message));
    assert_eq!(fresh.bound(), machine.bound());
}

#[test]
fn pending_interrupt_survives() {
    let (mut machine, _rings) = Machine::running();
    machine.set_msix_control(1 << 15);
    machine.interrupt().queue(1);
    assert_eq!(machine.pending(), 0b10);
    machine.root.pause();
    let fresh = restored(&machine.root.save());
    assert_eq!(fresh.pending(), 0b10);
    fresh.set_vector(1, MsiMessage::default(), false);
    assert_eq!(fresh.msi.vector(1).1, 1);
}

/// Saves a running device, lets `change` spoil its fields, and restores it into a fresh one.
fn restore_spoilt(
    change: impl FnOnce(&mut super::super::state::VirtioPciState),
) -> Result<(), StateError> {
    let (mut machine, _rings) = Machine::running();
    machine.root.pause();
    let function = machine.root.function(1).unwrap();
    let section = function.lock().unwrap().save();
    let mut state = section.decode("virtio-pci", 1).unwrap();
    change(&mut state);

    let fresh = Machine::powered_on();
    let function = fresh.root.function(1).unwrap();
    let mut function = function.lock().unwrap();
    let before = function.save();
    let result = function.restore(&Section::new("virtio-pci", 1, &state));
    assert!(
        result.is_ok() || function.save() == before,
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
        (
            "msix",
            restore_spoilt(|state| state.msix = Default::default()),
        ),
        (
            "config_space",
            restore_spoilt(|state| state.config.bytes[0] ^= 1),
        ),
        (
            "config_space",
            restore_spoilt(|state| state.config.bytes.truncate(64)),
        ),
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, StateError::Field { field: found, .. } if *found == field),
            "{field}: {error}"
        );
    }
}
