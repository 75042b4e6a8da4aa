use serde::Serialize;

use super::super::pci::{EJECT, INSERTED, PRESENT, REMOVING};
use super::*;
use crate::state::{Persist, Section, StateError};

fn registers(slots: &mut PciSlots) -> [u32; 3] {
    [INSERTED, REMOVING, PRESENT].map(|offset| read(slots, offset))
}

#[test]
fn inserted_slot_interrupts_and_shows_until_it_is_acknowledged() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    let owner = slots.clone();
    owner.insert(3).unwrap();
    assert_eq!(machine.interrupted(), Some(1 << Event::Pci.bit()));
    assert_eq!(registers(&mut slots), [1 << 3, 0, 1 << 3]);
    owner.insert(31).unwrap();
    write(&mut slots, INSERTED, 1 << 3);
    assert_eq!(registers(&mut slots), [1 << 31, 0, 1 << 31 | 1 << 3]);
}

#[test]
fn slot_occupied_at_boot_is_present_without_an_event() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.occupy(1).unwrap();
    assert_eq!(machine.interrupted(), None);
    assert_eq!(registers(&mut slots), [0, 0, 1 << 1]);
}

#[test]
fn ejected_slot_is_absent_at_once_and_free_once_the_owner_took_notice() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.occupy(4).unwrap();
    slots.request_removal(4).unwrap();
    assert_eq!(machine.interrupted(), Some(1 << Event::Pci.bit()));
    assert_eq!(registers(&mut slots), [0, 1 << 4, 1 << 4]);
    write(&mut slots, REMOVING, 1 << 4);
    assert_eq!(
        (registers(&mut slots), machine.wakes()),
        ([0, 0, 1 << 4], 0)
    );

    write(&mut slots, EJECT, 1 << 4);
    assert_eq!((registers(&mut slots), machine.wakes()), ([0, 0, 0], 1));
    assert!(matches!(
        slots.insert(4),
        Err(HotplugError::Taken { index: 4, .. })
    ));
    assert_eq!(slots.take_ejected(), 1 << 4);
    assert_eq!(slots.take_ejected(), 0);
    slots.insert(4).unwrap();
}

#[test]
fn ejected_function_is_hidden_until_the_owner_puts_one_into_its_slot() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.occupy(1).unwrap();
    slots.occupy(2).unwrap();
    write(&mut slots, EJECT, 1 << 1 | 1 << 5);
    let open = || [1, 2, 5].map(|slot| machine.gate.is_open(slot));
    assert_eq!(open(), [false, true, true]);
    slots.take_ejected();
    assert_eq!(open(), [false, true, true]);
    slots.insert(1).unwrap();
    assert_eq!(open(), [true; 3]);
}

#[test]
fn guest_may_eject_a_slot_that_nobody_asked_for() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.insert(7).unwrap();
    write(&mut slots, EJECT, 1 << 7);
    assert_eq!((machine.wakes(), slots.take_ejected()), (1, 1 << 7));
    assert_eq!(registers(&mut slots), [0, 0, 0]);
}

#[test]
fn ejecting_empty_slots_and_the_host_bridge_does_nothing() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.occupy(2).unwrap();
    write(&mut slots, EJECT, !(1 << 2));
    assert_eq!((machine.wakes(), slots.take_ejected()), (0, 0));
    write(&mut slots, EJECT, u32::MAX);
    write(&mut slots, EJECT, u32::MAX);
    assert_eq!((machine.wakes(), slots.take_ejected()), (1, 1 << 2));
}

#[test]
fn withdrawn_slot_is_free_without_an_eject() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.insert(5).unwrap();
    slots.withdraw(5).unwrap();
    assert_eq!(registers(&mut slots), [0, 0, 0]);
    assert_eq!((machine.wakes(), slots.take_ejected()), (0, 0));
    slots.insert(5).unwrap();
}

#[test]
fn owner_asks_only_for_what_is_possible() {
    let machine = Machine::new();
    let slots = machine.pci();
    slots.insert(1).unwrap();
    machine.interrupted();
    for slot in [0, 32, 255] {
        let errors = [
            slots.occupy(slot),
            slots.insert(slot),
            slots.request_removal(slot),
            slots.withdraw(slot),
        ];
        for error in errors {
            assert!(matches!(error, Err(HotplugError::NoPlace { .. })));
        }
    }
    assert!(matches!(slots.insert(1), Err(HotplugError::Taken { .. })));
    for error in [slots.request_removal(2), slots.withdraw(2)] {
        assert!(matches!(error, Err(HotplugError::Empty { index: 2, .. })));
    }
    assert_eq!(machine.interrupted(), None);
}

#[test]
fn restored_slots_are_those_that_were_saved_and_wake_the_owner() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    for slot in 1..5 {
        slots.occupy(slot).unwrap();
    }
    slots.insert(9).unwrap();
    slots.request_removal(2).unwrap();
    write(&mut slots, EJECT, 1 << 3);
    let section = slots.save();

    let fresh = Machine::new();
    let mut restored = fresh.pci();
    restored.restore(&section).unwrap();
    assert_eq!(restored.save(), section);
    assert_eq!(registers(&mut restored), registers(&mut slots));
    assert!(fresh.gate.is_open(2) && !fresh.gate.is_open(3));
    assert_eq!((fresh.wakes(), restored.take_ejected()), (1, 1 << 3));
}

#[derive(Serialize)]
struct Bitmaps {
    present: u32,
    inserted: u32,
    removing: u32,
    ejected: u32,
}

#[test]
fn impossible_state_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let mut slots = machine.pci();
    slots.occupy(1).unwrap();
    let before = slots.save();
    for (name, [present, inserted, removing, ejected]) in [
        ("present", [1, 0, 0, 0]),
        ("inserted", [2, 4, 0, 0]),
        ("removing", [2, 0, 4, 0]),
        ("ejected", [2, 0, 0, 2]),
        ("ejected", [0, 0, 0, 1]),
    ] {
        let state = Bitmaps {
            present,
            inserted,
            removing,
            ejected,
        };
        let error = slots.restore(&Section::new("acpi-pci-slots", 1, &state));
        assert!(matches!(error, Err(StateError::Field { field, .. }) if field == name));
        assert_eq!((slots.save(), machine.wakes()), (before.clone(), 0));
    }
}
