use virtio_queue::QueueT;

use super::*;
use crate::virtio::driver::{Ring, writable};

const REGISTERS: [Field; 5] = [
    Field::QueueSize,
    Field::QueueEnable,
    Field::Descriptors,
    Field::Available,
    Field::Used,
];

pub(super) fn queue_that_does_not_exist_has_size_0<F: Face>() {
    let machine = F::new();
    machine.negotiate();
    for index in [2, 0x100, 0xffff] {
        machine.set(Field::QueueSelect, index);
        for register in REGISTERS {
            machine.set(register, 1);
        }
        assert_eq!(machine.max_size(), 0);
        assert_eq!(machine.get(Field::QueueEnable), 0);
    }
    machine.driver_ok();
    assert!(machine.log().queues.is_empty());
}

pub(super) fn enabled_queue_does_not_change<F: Face>() {
    let machine = F::new();
    let ring = Ring::new(machine.memory(), 0x1000, 4);
    machine.negotiate();
    machine.set_queue(0, &ring);
    for register in REGISTERS {
        machine.set(register, 0x2000);
    }
    assert_eq!(machine.get(Field::QueueEnable), 1);
    machine.driver_ok();
    let log = machine.log();
    let queue = &log.queues[0].queue;
    assert_eq!(queue.size(), 4);
    assert_eq!(queue.desc_table(), ring.table_address());
    assert_eq!(queue.avail_ring(), ring.available_address());
    assert_eq!(queue.used_ring(), ring.used_address());
}

pub(super) fn running_queue_does_not_change<F: Face>() {
    let machine = F::new();
    let ring = Ring::new(machine.memory(), 0x1000, 4);
    machine.negotiate();
    machine.set_queue(0, &ring);
    machine.driver_ok();
    let other = Ring::new(machine.memory(), 0x2000, 4);
    machine.set_queue(1, &other);
    assert_eq!(machine.get(Field::QueueEnable), 0);
    machine.set(Field::QueueSelect, 0);
    machine.set(Field::Descriptors, 0x3000);
    machine.set(Field::QueueSize, 2);
    assert_eq!(machine.log().queues.len(), 1);
    // What the device goes on with after a pause is what it had.
    let mut machine = machine;
    machine.pause();
    machine.resume();
    let log = machine.log();
    assert_eq!(log.queues.len(), 1);
    assert_eq!(log.queues[0].queue.size(), 4);
    assert_eq!(log.queues[0].queue.desc_table(), ring.table_address());
}

pub(super) fn invalid_queue_needs_a_reset<F: Face>() {
    let cases: [(&str, Field, u64); 12] = [
        ("size 0", Field::QueueSize, 0),
        ("size no power of two", Field::QueueSize, 3),
        ("size more than offered", Field::QueueSize, 32),
        ("misaligned table", Field::Descriptors, 0x1008),
        ("misaligned available ring", Field::Available, 0x1001),
        ("misaligned used ring", Field::Used, 0x1002),
        ("table never set", Field::Descriptors, 0),
        ("table beyond memory", Field::Descriptors, 0x10_0000),
        ("table into the hole", Field::Descriptors, HOLE - 16),
        (
            "available ring at the end of addresses",
            Field::Available,
            u64::MAX - 1,
        ),
        ("used ring in the hole", Field::Used, HOLE),
        ("used ring across the end of memory", Field::Used, 0xffffc),
    ];
    for (name, register, value) in cases {
        let machine = F::new();
        machine.negotiate();
        machine.set(Field::QueueSelect, 0);
        machine.set(Field::Descriptors, 0x1000);
        machine.set(Field::Available, 0x2000);
        machine.set(Field::Used, 0x3000);
        machine.set(register, value);
        machine.set(Field::QueueEnable, 1);
        machine.driver_ok();
        let status = machine.get(Field::Status);
        assert_eq!(status & NEEDS_RESET, NEEDS_RESET, "{name}");
        assert_eq!(machine.log().starts, 0, "{name}");
        machine.set(Field::Status, 0);
        assert_eq!(machine.get(Field::Status), 0, "{name}");
    }
}

pub(super) fn queue_is_notified_once_at_the_start<F: Face>() {
    let (machine, _rings) = F::running();
    for index in 0..2 {
        assert!(machine.take_notification(index));
        assert!(!machine.take_notification(index));
    }
}

pub(super) fn notification_without_ioeventfd_reaches_its_queue<F: Face>() {
    let (machine, _rings) = F::running();
    (0..2).for_each(|index| assert!(machine.take_notification(index)));
    machine.ring_doorbell(1);
    assert!(!machine.take_notification(0));
    assert!(machine.take_notification(1));
}

pub(super) fn notification_before_driver_ok_starts_nothing<F: Face>() {
    let machine = F::new();
    machine.ring_doorbell(0);
    machine.negotiate();
    machine.ring_doorbell(1);
    assert_eq!(machine.log().starts, 0);
    assert_eq!(
        machine.get(Field::Status),
        ACKNOWLEDGE | DRIVER | FEATURES_OK
    );
}

pub(super) fn reset_with_work_in_flight_leaves_queues_to_set_up_anew<F: Face>() {
    let (machine, mut rings) = F::running();
    rings[0].push(&[writable(0x8000, 16)]);
    machine.ring_doorbell(0);
    machine.log().queues[0].queue.set_next_avail(1);
    machine.set(Field::Status, 0);
    machine.negotiate();
    let ring = Ring::new(machine.memory(), 0x4000, 8);
    machine.set_queue(0, &ring);
    machine.driver_ok();
    let log = machine.log();
    assert_eq!((log.starts, log.stops), (2, 1));
    let queue = &log.queues[0].queue;
    assert_eq!((queue.next_avail(), queue.next_used()), (0, 0));
    assert_eq!(queue.desc_table(), ring.table_address());
}
