use virtio_queue::QueueT;

use super::machine::*;
use crate::pci::MsiMessage;
use crate::state::{Persist, Section, StateError};

#[test]
fn paused_device_goes_on_with_its_queues() {
    let (mut machine, _rings) = Machine::running();
    machine.log().queues[0].queue.set_next_avail(5);
    (0..2).for_each(|index| assert!(machine.take_notification(index)));
    machine.root.pause();
    assert_eq!(machine.log().stops, 1);
    machine.root.pause();
    machine.root.resume();
    assert_eq!(machine.runs(), (2, 1));
    machine.root.resume();
    assert_eq!(machine.log().starts, 2);
    assert_eq!(machine.log().queues[0].queue.next_avail(), 5);
    assert!(
        machine.take_notification(0),
        "work that came meanwhile is looked for"
    );
}

#[test]
fn pause_before_driver_ok_does_nothing() {
    let mut machine = Machine::new();
    machine.negotiate();
    machine.root.pause();
    machine.root.resume();
    assert_eq!(machine.runs(), (0, 0));
    machine.driver_ok();
    assert_eq!(machine.log().starts, 1);
}

#[test]
fn reset_while_paused_forgets_the_queues() {
    let (mut machine, _rings) = Machine::running();
    machine.root.pause();
    machine.write(STATUS, 0);
    machine.root.resume();
    assert_eq!(machine.log().starts, 1);
    assert_eq!(machine.read(STATUS), 0);
}

fn restored(section: &Section) -> Machine {
    let mut fresh = Machine::powered_on();
    fresh.root.restore(section).unwrap();
    fresh
}

#[test]
fn fresh_device_goes_on_from_saved_state() {
    let (mut machine, rings) = Machine::running();
    let message = MsiMessage {
        address: 0xfee0_1000,
        data: 0x41,
    };
    machine.set_msix_control(1 << 15);
    machine.set_vector(1, message, false);
    machine.interrupt().config_changed();
    machine
        .mmio
        .write(machine.bar() + machine.group(4).offset, &[0x77]);
    machine.log().queues[1].queue.set_next_avail(9);
    machine.log().queues[1].queue.set_next_used(8);
    machine.root.pause();
    let saved = machine.root.save();

    let mut fresh = restored(&saved);
    assert_eq!(fresh.root.save(), saved);
    assert_eq!(fresh.bar(), machine.bar());
    for register in [
        STATUS,
        GENERATION,
        CONFIG_VECTOR,
        QUEUE_SELECT,
        QUEUE_SIZE,
        QUEUE_ENABLE,
        QUEUE_VECTOR,
        QUEUE_DESC,
    ] {
        assert_eq!(fresh.read(register), machine.read(register));
    }
    let mut config = [0];
    fresh
        .mmio
        .read(fresh.bar() + fresh.group(4).offset, &mut config);
    assert_eq!(config, [0x77]);
    assert_eq!(fresh.msi.vector(1).0, Some(message));
    assert_eq!(fresh.bindings.addresses(), machine.bindings.addresses());
    assert_eq!(fresh.log().starts, 0, "it runs when the machine resumes");

    fresh.root.resume();
    let log = fresh.log();
    assert_eq!((log.starts, log.features), (1, FEATURES));
    let queue = &log.queues[1].queue;
    assert_eq!((queue.next_avail(), queue.next_used()), (9, 8));
    assert_eq!(queue.desc_table(), rings[1].table_address());
    assert!(queue.event_idx_enabled());
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

#[test]
fn device_that_was_not_started_is_restored_as_such() {
    let machine = Machine::new();
    machine.negotiate();
    let saved = machine.root.save();
    let mut fresh = restored(&saved);
    assert_eq!(fresh.root.save(), saved);
    fresh.root.resume();
    assert_eq!(fresh.log().starts, 0);
    fresh.driver_ok();
    assert_eq!(fresh.log().starts, 1);
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
