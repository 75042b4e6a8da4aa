use virtio_queue::QueueT;

use super::*;
use crate::state::{Section, StateError};

pub(super) fn paused_device_goes_on_with_its_queues<F: Face>() {
    let (mut machine, _rings) = F::running();
    machine.log().queues[0].queue.set_next_avail(5);
    (0..2).for_each(|index| assert!(machine.take_notification(index)));
    machine.pause();
    assert_eq!(machine.log().stops, 1);
    machine.pause();
    machine.resume();
    assert_eq!(machine.log().runs(), (2, 1));
    machine.resume();
    assert_eq!(machine.log().starts, 2);
    assert_eq!(machine.log().queues[0].queue.next_avail(), 5);
    assert!(
        machine.take_notification(0),
        "work that came meanwhile is looked for"
    );
}

pub(super) fn pause_before_driver_ok_does_nothing<F: Face>() {
    let mut machine = F::new();
    machine.negotiate();
    machine.pause();
    machine.resume();
    assert_eq!(machine.log().runs(), (0, 0));
    machine.driver_ok();
    assert_eq!(machine.log().starts, 1);
}

pub(super) fn reset_while_paused_forgets_the_queues<F: Face>() {
    let (mut machine, _rings) = F::running();
    machine.pause();
    machine.set(Field::Status, 0);
    machine.resume();
    assert_eq!(machine.log().starts, 1);
    assert_eq!(machine.get(Field::Status), 0);
}

fn restored<F: Face>(section: &Section) -> F {
    let mut fresh = F::new();
    fresh.restore(section).unwrap();
    fresh
}

pub(super) fn fresh_device_goes_on_from_saved_state<F: Face>() {
    let (mut machine, rings) = F::running();
    machine.interrupt().config_changed();
    machine.write_device_config(0, &[0x77]);
    machine.log().queues[1].queue.set_next_avail(9);
    machine.log().queues[1].queue.set_next_used(8);
    machine.pause();
    let saved = machine.save();

    let mut fresh: F = restored(&saved);
    assert_eq!(fresh.save(), saved);
    for field in [Field::Status, Field::Generation, Field::QueueEnable] {
        assert_eq!(fresh.get(field), machine.get(field), "{field:?}");
    }
    let mut config = [0];
    fresh.read_device_config(0, &mut config);
    assert_eq!(config, [0x77]);
    assert_eq!(fresh.log().starts, 0, "it runs when the machine resumes");

    fresh.resume();
    let log = fresh.log();
    assert_eq!((log.starts, log.features), (1, FEATURES));
    let queue = &log.queues[1].queue;
    assert_eq!((queue.next_avail(), queue.next_used()), (9, 8));
    assert_eq!(queue.desc_table(), rings[1].table_address());
    assert!(queue.event_idx_enabled());
}

pub(super) fn device_that_was_not_started_is_restored_as_such<F: Face>() {
    let machine = F::new();
    machine.negotiate();
    let saved = machine.save();
    let mut fresh: F = restored(&saved);
    assert_eq!(fresh.save(), saved);
    fresh.resume();
    assert_eq!(fresh.log().starts, 0);
    fresh.driver_ok();
    assert_eq!(fresh.log().starts, 1);
}

pub(super) fn state_of_another_machine_is_refused<F: Face>() {
    let machine = F::new();
    let mut fresh = F::new();
    let other = Section::new("another", 1, &0);
    let before = fresh.save();
    assert!(matches!(
        fresh.restore(&other),
        Err(StateError::Kind { .. })
    ));
    assert_eq!(fresh.save(), before);
    assert_eq!(machine.save(), before);
}
