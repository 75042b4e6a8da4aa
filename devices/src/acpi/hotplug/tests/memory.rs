use std::ops::Range;

use serde::Serialize;

use super::super::memory::{BASE_HIGH, BASE_LOW, LEN_HIGH, LEN_LOW};
use super::super::units::{NEXT, SELECT, STATUS, Status};
use super::*;
use crate::state::{Persist, Section, StateError};

const GIB: u64 = 1 << 30;

fn range(slots: &mut MemorySlots, slot: u32) -> Range<u64> {
    write(slots, SELECT, slot);
    let [base_low, base_high, len_low, len_high] =
        [BASE_LOW, BASE_HIGH, LEN_LOW, LEN_HIGH].map(|offset| u64::from(read(slots, offset)));
    let base = base_high << 32 | base_low;
    base..base + (len_high << 32 | len_low)
}

fn status(slots: &mut MemorySlots, slot: u32) -> Status {
    write(slots, SELECT, slot);
    Status::from_bits_retain(read(slots, STATUS))
}

#[test]
fn plugged_memory_interrupts_and_shows_its_range() {
    let machine = Machine::new();
    let mut slots = machine.memory(8);
    let owner = slots.clone();
    let memory = [4 * GIB..9 * GIB + 0x1000, 16 * GIB..17 * GIB];
    for (slot, memory) in (0..).zip(&memory) {
        assert_eq!(owner.plug(memory.clone()).unwrap(), slot);
        assert_eq!(machine.interrupted(), Some(1 << Event::Memory.bit()));
    }
    for (slot, memory) in (0..).zip(&memory) {
        assert_eq!(read(&mut slots, NEXT), slot);
        let inserting = Status::ENABLED | Status::INSERTING;
        assert_eq!(status(&mut slots, slot), inserting);
        assert_eq!(range(&mut slots, slot), *memory);
        write(&mut slots, STATUS, Status::INSERTING.bits());
    }
    assert_eq!(read(&mut slots, NEXT), u32::MAX);
    assert_eq!(range(&mut slots, 2), 0..0);
}

#[test]
fn ejected_memory_is_absent_at_once_and_its_slot_free_once_the_owner_took_notice() {
    let machine = Machine::new();
    let mut slots = machine.memory(1);
    slots.plug(4 * GIB..5 * GIB).unwrap();
    write(&mut slots, STATUS, Status::INSERTING.bits());
    slots.request_unplug(0).unwrap();
    assert_eq!(status(&mut slots, 0), Status::ENABLED | Status::REMOVING);
    write(&mut slots, STATUS, Status::EJECT.bits());
    assert_eq!(
        (status(&mut slots, 0), machine.wakes()),
        (Status::empty(), 1)
    );
    assert_eq!(slots.plugged(), []);

    let error = slots.plug(8 * GIB..9 * GIB).unwrap_err();
    assert_eq!(error.to_string(), "all 1 memory slots are taken");
    assert_eq!(slots.take_ejected(), [(0, 4 * GIB..5 * GIB)]);
    assert_eq!(slots.take_ejected(), []);
    assert_eq!(slots.plug(8 * GIB..9 * GIB).unwrap(), 0);
    assert_eq!(slots.plugged(), [(0, 8 * GIB..9 * GIB)]);
}

#[test]
fn registers_of_a_range_are_read_only() {
    let machine = Machine::new();
    let mut slots = machine.memory(2);
    slots.plug(4 * GIB..5 * GIB).unwrap();
    for offset in [BASE_LOW, BASE_HIGH, LEN_LOW, LEN_HIGH] {
        write(&mut slots, offset, u32::MAX);
    }
    assert_eq!(range(&mut slots, 0), 4 * GIB..5 * GIB);
}

#[test]
fn slot_numbers_beyond_the_last_select_nothing() {
    let machine = Machine::new();
    let mut slots = machine.memory(2);
    slots.plug(4 * GIB..5 * GIB).unwrap();
    for slot in [2, u32::MAX] {
        assert_eq!(status(&mut slots, slot), Status::empty());
        assert_eq!(range(&mut slots, slot), 0..0);
        write(&mut slots, STATUS, Status::EJECT.bits());
    }
    assert_eq!((machine.wakes(), slots.take_ejected()), (0, vec![]));
}

#[test]
fn owner_asks_only_for_what_is_possible() {
    let machine = Machine::new();
    let slots = machine.memory(2);
    for (start, end) in [(GIB, GIB), (2 * GIB, GIB)] {
        let error = slots.plug(start..end);
        assert!(matches!(error, Err(HotplugError::EmptyRange { .. })));
    }
    for error in [slots.request_unplug(0), slots.withdraw(1)] {
        assert!(matches!(error, Err(HotplugError::Empty { .. })));
    }
    for error in [slots.request_unplug(2), slots.withdraw(2)] {
        assert!(matches!(error, Err(HotplugError::NoPlace { .. })));
    }
    assert_eq!((machine.interrupted(), slots.plugged()), (None, vec![]));
}

#[test]
fn withdrawn_memory_leaves_a_free_slot() {
    let machine = Machine::new();
    let slots = machine.memory(1);
    let slot = slots.plug(4 * GIB..5 * GIB).unwrap();
    slots.withdraw(slot).unwrap();
    assert_eq!((slots.plugged(), slots.take_ejected()), (vec![], vec![]));
    assert_eq!(slots.plug(GIB..2 * GIB).unwrap(), slot);
}

#[test]
fn restored_memory_is_that_which_was_saved_and_wakes_the_owner() {
    let machine = Machine::new();
    let mut slots = machine.memory(3);
    slots.plug(4 * GIB..5 * GIB).unwrap();
    slots.plug(5 * GIB..8 * GIB).unwrap();
    write(&mut slots, SELECT, 1);
    write(&mut slots, STATUS, Status::EJECT.bits());
    let section = slots.save();

    let fresh = Machine::new();
    let mut restored = fresh.memory(3);
    restored.restore(&section).unwrap();
    assert_eq!(restored.save(), section);
    assert_eq!(read(&mut restored, SELECT), 1);
    for slot in 0..3 {
        assert_eq!(status(&mut restored, slot), status(&mut slots, slot));
        assert_eq!(range(&mut restored, slot), range(&mut slots, slot));
    }
    assert_eq!(restored.plugged(), [(0, 4 * GIB..5 * GIB)]);
    assert_eq!(fresh.wakes(), 1);
    assert_eq!(restored.take_ejected(), [(1, 5 * GIB..8 * GIB)]);
}

#[derive(Serialize)]
struct State {
    units: Units,
    ranges: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct Units {
    selected: u32,
    units: Vec<u32>,
}

#[test]
fn impossible_state_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let mut slots = machine.memory(2);
    slots.plug(GIB..2 * GIB).unwrap();
    let before = slots.save();
    for (units, ranges) in [
        (vec![1, 0], vec![(0, 1)]),            // too few ranges
        (vec![1], vec![(0, 1), (0, 0)]),       // too few slots
        (vec![1, 0], vec![(2, 1), (0, 0)]),    // a range that ends before it starts
        (vec![1, 0], vec![(0, 0), (0, 0)]),    // memory without an address
        (vec![1, 0x20], vec![(0, 1), (0, 0)]), // an unknown bit
    ] {
        let units = Units { selected: 0, units };
        let state = State { units, ranges };
        let error = slots.restore(&Section::new("acpi-memory", 1, &state));
        assert!(matches!(error, Err(StateError::Field { .. })));
        assert_eq!((slots.save(), machine.wakes()), (before.clone(), 0));
    }
}
