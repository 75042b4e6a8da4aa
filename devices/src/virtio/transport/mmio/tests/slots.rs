use super::super::{SLOT_LEN, SlotsError};
use super::machine::*;
use crate::virtio::Doorbell;

fn add(machine: &mut Machine) -> Result<usize, SlotsError> {
    let (line, _end) = line();
    let notify = machine.bindings.clone();
    machine
        .slots
        .add(Box::new(idle()), machine.memory.clone(), line, notify)
}

#[test]
fn devices_follow_each_other_until_the_window_is_full() {
    let mut machine = Machine::new();
    assert_eq!(add(&mut machine).unwrap(), 1);
    assert_eq!(machine.slots.count(), 2);
    let mut magic = [0; 4];
    machine.mmio.read(BASE + SLOT_LEN, &mut magic);
    assert_eq!(&magic, b"virt");
    let bound = machine.bindings.doorbells();
    let error = add(&mut machine).unwrap_err();
    assert!(matches!(error, SlotsError::Full(2)), "{error}");
    assert_eq!(machine.bindings.doorbells(), bound);
    machine.mmio.read(BASE + 2 * SLOT_LEN, &mut magic);
    assert_eq!(magic, [0xff; 4]);
}

#[test]
fn device_without_a_place_on_the_bus_leaves_nothing_behind() {
    let mut machine = Machine::new();
    let taken = machine.slots.device(0).unwrap().clone();
    machine.mmio.insert(BASE + SLOT_LEN, 1, taken).unwrap();
    let error = add(&mut machine).unwrap_err();
    assert!(matches!(error, SlotsError::Bus(_)), "{error}");
    assert_eq!(machine.slots.count(), 1);
    let of_second = |doorbell: &Doorbell| matches!(doorbell, Doorbell::Value { address, .. } if *address > BASE + SLOT_LEN);
    assert!(!machine.bindings.doorbells().iter().any(of_second));
}
