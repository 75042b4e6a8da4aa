use serde::Serialize;

use super::super::units::{NEXT, SELECT, STATUS, Status};
use super::*;
use crate::state::{Persist, Section, StateError};

fn status(cpus: &mut CpuSlots, index: u32) -> Status {
    write(cpus, SELECT, index);
    Status::from_bits_retain(read(cpus, STATUS))
}

fn command(cpus: &mut CpuSlots, index: u32, command: Status) {
    write(cpus, SELECT, index);
    write(cpus, STATUS, command.bits());
}

#[test]
fn vcpus_that_boot_are_enabled_and_no_news() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(2, 254);
    assert_eq!(status(&mut cpus, 1), Status::ENABLED);
    assert_eq!(status(&mut cpus, 2), Status::empty());
    assert_eq!(read(&mut cpus, NEXT), u32::MAX);
}

#[test]
fn plugged_vcpu_interrupts_and_is_news_until_it_is_acknowledged() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(1, 254);
    let owner = cpus.clone();
    owner.plug(253).unwrap();
    owner.plug(7).unwrap();
    assert_eq!(machine.interrupted(), Some(1 << Event::Cpu.bit()));
    for index in [7, 253] {
        assert_eq!(read(&mut cpus, NEXT), index);
        let inserting = Status::ENABLED | Status::INSERTING;
        assert_eq!(status(&mut cpus, index), inserting);
        command(&mut cpus, index, Status::INSERTING);
        assert_eq!(status(&mut cpus, index), Status::ENABLED);
    }
    assert_eq!(read(&mut cpus, NEXT), u32::MAX);
}

#[test]
fn ejected_vcpu_is_absent_at_once_and_free_once_the_owner_took_notice() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(4, 4);
    cpus.request_unplug(3).unwrap();
    assert_eq!(machine.interrupted(), Some(1 << Event::Cpu.bit()));
    assert_eq!(read(&mut cpus, NEXT), 3);
    assert_eq!(status(&mut cpus, 3), Status::ENABLED | Status::REMOVING);
    command(&mut cpus, 3, Status::REMOVING);
    assert_eq!((read(&mut cpus, NEXT), machine.wakes()), (u32::MAX, 0));

    command(&mut cpus, 3, Status::EJECT);
    assert_eq!(
        (status(&mut cpus, 3), machine.wakes()),
        (Status::empty(), 1)
    );
    assert!(matches!(
        cpus.plug(3),
        Err(HotplugError::Taken { index: 3, .. })
    ));
    assert_eq!(cpus.take_ejected(), [3]);
    assert!(cpus.take_ejected().is_empty());
    cpus.plug(3).unwrap();
}

#[test]
fn first_vcpu_cannot_be_ejected_by_anyone() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(2, 4);
    command(&mut cpus, 0, Status::EJECT);
    assert_eq!(status(&mut cpus, 0), Status::ENABLED);
    for error in [cpus.request_unplug(0), cpus.withdraw(0)] {
        assert!(matches!(error, Err(HotplugError::Fixed { index: 0, .. })));
    }
    assert_eq!((machine.wakes(), cpus.take_ejected()), (0, vec![]));
    assert_eq!(machine.interrupted(), None);
}

#[test]
fn absent_vcpus_and_numbers_beyond_the_last_take_no_command() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(1, 3);
    for index in [1, 2, 3, u32::MAX] {
        command(&mut cpus, index, Status::all());
        assert_eq!(status(&mut cpus, index), Status::empty());
        assert_eq!(read(&mut cpus, SELECT), index);
    }
    assert_eq!((machine.wakes(), cpus.take_ejected()), (0, vec![]));
}

#[test]
fn owner_asks_only_for_what_is_possible() {
    let machine = Machine::new();
    let cpus = machine.cpus(2, 3);
    assert!(matches!(cpus.plug(1), Err(HotplugError::Taken { .. })));
    let error = cpus.plug(3).unwrap_err();
    assert_eq!(error.to_string(), "vCPU 3 does not exist, expected 0 to 2");
    for error in [cpus.request_unplug(2), cpus.withdraw(2)] {
        assert!(matches!(error, Err(HotplugError::Empty { index: 2, .. })));
    }
    assert_eq!(machine.interrupted(), None);
}

#[test]
fn withdrawn_vcpu_can_be_plugged_again() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(1, 2);
    cpus.plug(1).unwrap();
    cpus.withdraw(1).unwrap();
    assert_eq!(read(&mut cpus, NEXT), u32::MAX);
    assert_eq!((machine.wakes(), cpus.take_ejected()), (0, vec![]));
    cpus.plug(1).unwrap();
}

#[test]
fn restored_vcpus_are_those_that_were_saved_and_wake_the_owner() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(3, 6);
    cpus.plug(4).unwrap();
    cpus.request_unplug(1).unwrap();
    command(&mut cpus, 2, Status::EJECT);
    write(&mut cpus, SELECT, 5);
    let section = cpus.save();

    let fresh = Machine::new();
    let mut restored = fresh.cpus(3, 6);
    restored.restore(&section).unwrap();
    assert_eq!(restored.save(), section);
    assert_eq!(read(&mut restored, SELECT), 5);
    for index in 0..6 {
        assert_eq!(status(&mut restored, index), status(&mut cpus, index));
    }
    assert_eq!((fresh.wakes(), restored.take_ejected()), (1, vec![2]));
}

#[derive(Serialize)]
struct Units {
    selected: u32,
    units: Vec<u32>,
}

#[test]
fn impossible_state_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let mut cpus = machine.cpus(2, 3);
    let before = cpus.save();
    for units in [
        vec![1, 1],       // another number of vCPUs
        vec![0, 1, 0],    // no first vCPU
        vec![8, 1, 0],    // the first one ejected
        vec![1, 9, 0],    // ejected and there
        vec![1, 1, 2],    // absent and new
        vec![1, 1, 0x10], // an unknown bit
    ] {
        let state = Units { selected: 1, units };
        let error = cpus.restore(&Section::new("acpi-cpus", 1, &state));
        assert!(matches!(error, Err(StateError::Field { .. })));
        assert_eq!((cpus.save(), machine.wakes()), (before.clone(), 0));
    }
}
