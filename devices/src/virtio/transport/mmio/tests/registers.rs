use virtio_queue::QueueT;

use super::machine::*;
use crate::virtio::Doorbell;
use crate::virtio::driver::Ring;

#[test]
fn registers_name_a_modern_virtio_device() {
    let machine = Machine::new();
    assert_eq!(machine.read(MAGIC).to_le_bytes(), *b"virt");
    assert_eq!(machine.read(VERSION), 2);
    assert_eq!(machine.read(DEVICE_ID), 42);
}

#[test]
fn shared_memory_regions_do_not_exist() {
    let machine = Machine::new();
    for id in [0, 1, 255] {
        machine.write(0xac, id);
        for register in [0xb0, 0xb4, 0xb8, 0xbc] {
            assert_eq!(machine.read(register), u32::MAX);
        }
    }
}

#[test]
fn selectors_and_numbers_beyond_16_bits_select_nothing() {
    let (machine, _rings) = Machine::running();
    (0..2).for_each(|index| assert!(machine.take_notification(index)));
    machine.write(QUEUE_SEL, 0x1_0000);
    assert_eq!(machine.read(QUEUE_NUM_MAX), 0);
    assert_eq!(machine.read(QUEUE_READY), 0);
    machine.write(QUEUE_NOTIFY, 0x1_0000);
    machine.write(QUEUE_NOTIFY, 0xffff);
    (0..2).for_each(|index| assert!(!machine.take_notification(index)));
}

#[test]
fn queue_size_beyond_16_bits_is_not_cut_to_one_that_fits() {
    let machine = Machine::new();
    let ring = Ring::new(&machine.memory, 0x1000, 4);
    machine.negotiate();
    machine.write(QUEUE_SEL, 0);
    machine.set(Field::Descriptors, ring.table_address());
    machine.set(Field::Available, ring.available_address());
    machine.set(Field::Used, ring.used_address());
    machine.write(QUEUE_NUM, 0x1_0004);
    machine.write(QUEUE_READY, 1);
    machine.driver_ok();
    assert_eq!(machine.get(Field::Status) & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(machine.log().starts, 0);
}

#[test]
fn status_with_bits_beyond_its_own_is_no_reset() {
    let (machine, _rings) = Machine::running();
    machine.write(STATUS, 0x100);
    assert_eq!(machine.log().stops, 0);
    assert_ne!(machine.read(STATUS), 0);
}

#[test]
fn accesses_of_other_widths_or_across_registers_read_ones_and_write_nothing() {
    let (machine, _rings) = Machine::running();
    (0..2).for_each(|index| assert!(machine.take_notification(index)));
    let before = machine.read(STATUS);
    for (offset, len) in [
        (STATUS, 1),
        (STATUS, 2),
        (STATUS, 8),
        (STATUS + 1, 1),
        (STATUS + 2, 4),
        (STATUS - 2, 4),
        (QUEUE_NOTIFY, 1),
        (QUEUE_NOTIFY, 2),
        (QUEUE_NOTIFY, 8),
        (QUEUE_READY, 1),
        (0xfe, 4),
    ] {
        let mut data = [0; 8];
        machine.mmio.write(BASE + offset, &data[..len]);
        machine.mmio.read(BASE + offset, &mut data[..len]);
        assert!(data[..len].iter().all(|byte| *byte == 0xff), "{offset:#x}");
    }
    assert_eq!(machine.read(STATUS), before);
    assert_eq!(machine.read(QUEUE_READY), 1);
    (0..2).for_each(|index| assert!(!machine.take_notification(index)));
}

#[test]
fn registers_for_writing_read_ones_and_those_for_reading_cannot_be_written() {
    let machine = Machine::new();
    for register in [QUEUE_NUM, QUEUE_NOTIFY, INTERRUPT_ACK, QUEUE_DESC, 0x0c0] {
        assert_eq!(machine.read(register), u32::MAX);
    }
    for register in [MAGIC, VERSION, DEVICE_ID, QUEUE_NUM_MAX, GENERATION] {
        let before = machine.read(register);
        machine.write(register, !before);
        assert_eq!(machine.read(register), before);
    }
}

#[test]
fn each_queue_has_a_value_of_the_notification_register() {
    let machine = Machine::new();
    let address = BASE + QUEUE_NOTIFY;
    let doorbells = [0, 1].map(|value| Doorbell::Value { address, value });
    assert_eq!(machine.bindings.doorbells(), doorbells);
    let Machine {
        slots,
        mmio,
        bindings,
        ..
    } = machine;
    mmio.clear();
    drop(slots);
    assert!(bindings.doorbells().is_empty());
}

#[test]
fn driver_takes_a_queue_back_before_it_is_ready() {
    let machine = Machine::new();
    let ring = Ring::new(&machine.memory, 0x1000, 4);
    machine.negotiate();
    machine.set_queue(0, &ring);
    machine.write(QUEUE_READY, 0);
    assert_eq!(machine.read(QUEUE_READY), 0);
    let other = Ring::new(&machine.memory, 0x2000, 8);
    machine.set_queue(0, &other);
    machine.driver_ok();
    let log = machine.log();
    assert_eq!(log.queues[0].queue.desc_table(), other.table_address());
}

#[test]
fn queue_that_is_taken_back_is_not_touched_any_more() {
    let (mut machine, _rings) = Machine::running();
    machine.log().queues[1].queue.set_next_avail(7);
    machine.write(QUEUE_SEL, 0);
    machine.write(QUEUE_READY, 0);
    assert_eq!(machine.read(QUEUE_READY), 0);
    {
        let log = machine.log();
        assert_eq!(log.runs(), (2, 1));
        assert_eq!(log.queues.len(), 1);
        assert_eq!(log.queues[0].index, 1);
        assert_eq!(log.queues[0].queue.next_avail(), 7);
    }
    // Neither taking it back again nor setting it up while the device runs does anything.
    machine.write(QUEUE_READY, 0);
    machine.write(QUEUE_READY, 1);
    assert_eq!(machine.read(QUEUE_READY), 0);
    assert_eq!(machine.log().runs(), (2, 1));
    machine.pause();
    machine.resume();
    assert_eq!(machine.log().queues.len(), 1);
}

#[test]
fn device_that_cannot_be_without_the_queue_needs_a_reset() {
    let (machine, _rings) = Machine::running();
    machine.log().fail_start = true;
    machine.write(QUEUE_SEL, 0);
    machine.write(QUEUE_READY, 0);
    assert_eq!(machine.get(Field::Status) & NEEDS_RESET, NEEDS_RESET);
    assert!(machine.edges() > 0);
}
