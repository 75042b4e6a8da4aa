use super::machine::*;
use crate::virtio::driver::Ring;

#[test]
fn queue_that_does_not_exist_has_size_0() {
    let machine = Machine::new();
    machine.negotiate();
    for index in [2, 0x100, 0xffff] {
        machine.write(QUEUE_SELECT, index);
        machine.write(QUEUE_SIZE, 4);
        machine.write(QUEUE_VECTOR, 0);
        machine.write(QUEUE_DESC, 0x1000);
        machine.write(QUEUE_ENABLE, 1);
        assert_eq!(machine.read(QUEUE_SIZE), 0);
        assert_eq!(machine.read(QUEUE_ENABLE), 0);
        assert_eq!(machine.read(QUEUE_DESC), 0);
        assert_eq!(machine.read(QUEUE_VECTOR), 0xffff);
    }
    machine.driver_ok();
    assert!(machine.log().queues.is_empty());
}

#[test]
fn vector_that_does_not_exist_reads_back_as_none() {
    let machine = Machine::new();
    for vector in [u64::from(VECTORS), 0x7ff, 0xfffe, 0xffff] {
        machine.write(CONFIG_VECTOR, 0);
        machine.write(CONFIG_VECTOR, vector);
        assert_eq!(machine.read(CONFIG_VECTOR), 0xffff);
        machine.write(QUEUE_VECTOR, 1);
        machine.write(QUEUE_VECTOR, vector);
        assert_eq!(machine.read(QUEUE_VECTOR), 0xffff);
    }
}

#[test]
fn enabled_queue_does_not_change() {
    let machine = Machine::new();
    let ring = Ring::new(&machine.memory, 0x1000, 4);
    machine.negotiate();
    machine.set_queue(0, &ring);
    let registers = [
        QUEUE_SIZE,
        QUEUE_ENABLE,
        QUEUE_DESC,
        QUEUE_DRIVER,
        QUEUE_DEVICE,
    ];
    let before = registers.map(|register| machine.read(register));
    for register in registers {
        machine.write(register, 0);
        machine.write(register, 0x2000);
    }
    assert_eq!(registers.map(|register| machine.read(register)), before);
}

#[test]
fn running_queue_does_not_change() {
    let (machine, _rings) = Machine::running();
    machine.write(STATUS, 0);
    let ring = Ring::new(&machine.memory, 0x1000, 4);
    machine.negotiate();
    machine.set_queue(0, &ring);
    machine.driver_ok();
    machine.write(QUEUE_SELECT, 1);
    machine.write(QUEUE_SIZE, 2);
    machine.write(QUEUE_ENABLE, 1);
    assert_eq!(machine.read(QUEUE_SIZE), 8);
    assert_eq!(machine.read(QUEUE_ENABLE), 0);
    assert_eq!(machine.log().queues.len(), 1);
}

#[test]
fn invalid_queue_needs_a_reset() {
    const HOLE: u64 = 0x80000;
    let cases: [(&str, Register, u64); 12] = [
        ("size 0", QUEUE_SIZE, 0),
        ("size no power of two", QUEUE_SIZE, 3),
        ("size more than offered", QUEUE_SIZE, 32),
        ("misaligned table", QUEUE_DESC, 0x1008),
        ("misaligned available ring", QUEUE_DRIVER, 0x1001),
        ("misaligned used ring", QUEUE_DEVICE, 0x1002),
        ("table never set", QUEUE_DESC, 0),
        ("table beyond memory", QUEUE_DESC, 0x10_0000),
        ("table into the hole", QUEUE_DESC, HOLE - 16),
        (
            "available ring at the end of addresses",
            QUEUE_DRIVER,
            u64::MAX - 1,
        ),
        ("used ring in the hole", QUEUE_DEVICE, HOLE),
        ("used ring across the end of memory", QUEUE_DEVICE, 0xffffc),
    ];
    for (name, register, value) in cases {
        let machine = Machine::new();
        machine.negotiate();
        machine.write(QUEUE_SELECT, 0);
        for (register, address) in [
            (QUEUE_DESC, 0x1000),
            (QUEUE_DRIVER, 0x2000),
            (QUEUE_DEVICE, 0x3000),
        ] {
            machine.write(register, address);
        }
        machine.write(register, value);
        machine.write(QUEUE_ENABLE, 1);
        machine.driver_ok();
        assert_eq!(machine.read(STATUS) & NEEDS_RESET, NEEDS_RESET, "{name}");
        assert_eq!(machine.log().starts, 0, "{name}");
        machine.write(STATUS, 0);
        assert_eq!(machine.read(STATUS), 0, "{name}");
    }
}

#[test]
fn queue_is_notified_once_at_the_start() {
    let (machine, _rings) = Machine::running();
    for index in 0..2 {
        assert!(machine.take_notification(index));
        assert!(!machine.take_notification(index));
    }
}

#[test]
fn notification_without_ioeventfd_reaches_its_queue() {
    let (machine, _rings) = Machine::running();
    (0..2).for_each(|index| assert!(machine.take_notification(index)));
    machine.write(QUEUE_SELECT, 1);
    let notify = machine.bar() + machine.group(2).offset;
    let multiplier = u32::from_le_bytes(machine.read_config(machine.capability(2) + 16));
    let register = notify + machine.read(QUEUE_NOTIFY_OFF) * u64::from(multiplier);
    machine.mmio.write(register, &1_u16.to_le_bytes());
    assert!(!machine.take_notification(0));
    assert!(machine.take_notification(1));
}

#[test]
fn notification_before_driver_ok_starts_nothing() {
    let machine = Machine::new();
    let notify = machine.bar() + machine.group(2).offset;
    machine.mmio.write(notify, &[0, 0]);
    machine.negotiate();
    machine.mmio.write(notify + 4, &[1, 0]);
    assert_eq!(machine.log().starts, 0);
    assert_eq!(machine.read(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

#[test]
fn notifications_are_bound_where_the_bar_is_decoded() {
    let machine = Machine::powered_on();
    let notify = machine.group(2).offset;
    assert!(machine.bindings.addresses().is_empty());
    machine.write_config(0x04, &[2, 0]);
    let bar = machine.bar();
    assert_eq!(
        machine.bindings.addresses(),
        [bar + notify, bar + notify + 4]
    );
    machine.write_config(0x14, &((HIGH >> 32) as u32).to_le_bytes());
    machine.write_config(0x10, &0x100_0000_u32.to_le_bytes());
    let moved = HIGH + 0x100_0000;
    assert_eq!(machine.bar(), moved);
    assert_eq!(
        machine.bindings.addresses(),
        [moved + notify, moved + notify + 4]
    );
    assert_eq!(machine.read(QUEUE_COUNT), 2);
    machine.write_config(0x04, &[0, 0]);
    assert!(machine.bindings.addresses().is_empty());
}

#[test]
fn removed_function_leaves_nothing_behind() {
    let (mut machine, _rings) = Machine::running();
    let bar = machine.bar();
    drop(machine.root.remove(1).unwrap());
    assert!(machine.bindings.addresses().is_empty());
    assert_eq!(machine.log().stops, 1);
    let mut data = [0; 4];
    machine.mmio.read(bar, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(machine.read_config(0), [0xff; 4]);
}
