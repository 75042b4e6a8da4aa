use super::*;

pub(super) fn offered_features_are_read_by_page<F: Face>() {
    let machine = F::new();
    let mut features = 0;
    for page in [0, 1, 2, 3, 0xffff_ffff] {
        machine.set(Field::DeviceFeatureSelect, page);
        let bits = machine.get(Field::DeviceFeature);
        assert!(page < 2 || bits == 0);
        features |= bits << (32 * (page % 2));
    }
    assert_eq!(features, FEATURES);
}

pub(super) fn driver_reaches_driver_ok<F: Face>() {
    let (machine, rings) = F::running();
    assert_eq!(
        machine.get(Field::Status),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    );
    let log = machine.log();
    assert_eq!(log.features, FEATURES);
    assert_eq!(log.queues.len(), 2);
    for (index, (active, ring)) in log.queues.iter().zip(&rings).enumerate() {
        assert_eq!(active.index, index as u16);
        // The ring's own queue has its size as the largest; the device offers more.
        let mut expected = ring.active(active.index, FEATURES).queue.state();
        expected.max_size = active.queue.state().max_size;
        assert_eq!(active.queue.state(), expected);
    }
}

pub(super) fn feature_that_was_not_offered_is_refused<F: Face>() {
    let machine = F::new();
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER);
    machine.accept_features(FEATURES | 1 << 20);
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(machine.get(Field::Status), ACKNOWLEDGE | DRIVER);
    machine.accept_features(FEATURES);
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(
        machine.get(Field::Status),
        ACKNOWLEDGE | DRIVER | FEATURES_OK
    );
}

pub(super) fn driver_without_version_1_is_refused<F: Face>() {
    let machine = F::new();
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER);
    machine.accept_features(1 << 5);
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(machine.get(Field::Status), ACKNOWLEDGE | DRIVER);
}

pub(super) fn features_are_fixed_after_features_ok<F: Face>() {
    let machine = F::new();
    machine.negotiate();
    machine.accept_features(0);
    machine.driver_ok();
    assert_eq!(machine.log().features, FEATURES);
}

pub(super) fn status_bits_out_of_turn_are_not_set<F: Face>() {
    let machine = F::new();
    machine.set(Field::Status, DRIVER_OK);
    machine.set(Field::Status, FEATURES_OK);
    machine.set(Field::Status, DRIVER);
    machine.set(Field::Status, NEEDS_RESET);
    assert_eq!(machine.get(Field::Status), 0);
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(machine.get(Field::Status), ACKNOWLEDGE | DRIVER);
    assert_eq!(machine.log().starts, 0);
}

pub(super) fn driver_ok_twice_starts_once<F: Face>() {
    let (machine, _rings) = F::running();
    machine.driver_ok();
    machine.driver_ok();
    assert_eq!(machine.log().starts, 1);
}

pub(super) fn reset_forgets_the_driver<F: Face>() {
    let (machine, _rings) = F::running();
    let resets = machine.log().resets;
    machine.set(Field::Status, 0);
    assert_eq!(machine.get(Field::Status), 0);
    assert_eq!(machine.log().stops, 1);
    assert_eq!(machine.log().resets, resets + 1);
    for (index, max) in [(0, 16), (1, 8)] {
        machine.set(Field::QueueSelect, index);
        assert_eq!(machine.max_size(), max);
        assert_eq!(machine.get(Field::QueueEnable), 0);
    }
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER);
    machine.set(Field::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(
        machine.get(Field::Status),
        ACKNOWLEDGE | DRIVER,
        "its features are gone"
    );
}

pub(super) fn driver_starts_again_after_a_reset<F: Face>() {
    let (machine, rings) = F::running();
    machine.set(Field::Status, 0);
    machine.negotiate();
    machine.set_queue(0, &rings[0]);
    machine.driver_ok();
    assert_eq!(machine.log().starts, 2);
    assert_eq!(machine.log().queues.len(), 1);
}

pub(super) fn device_that_fails_to_start_needs_a_reset<F: Face>() {
    let machine = F::new();
    machine.log().fail_start = true;
    machine.negotiate();
    machine.driver_ok();
    assert_eq!(machine.get(Field::Status) & NEEDS_RESET, NEEDS_RESET);
    machine.log().fail_start = false;
    machine.negotiate();
    machine.driver_ok();
    assert_eq!(
        machine.get(Field::Status) & (NEEDS_RESET | DRIVER_OK),
        DRIVER_OK
    );
}

pub(super) fn broken_device_tells_that_it_needs_a_reset<F: Face>() {
    let (machine, _rings) = F::running();
    machine.interrupt().needs_reset();
    assert_eq!(machine.get(Field::Status) & NEEDS_RESET, NEEDS_RESET);
    machine.set(Field::Status, 0);
    assert_eq!(machine.get(Field::Status), 0);
}

pub(super) fn device_configuration_is_read_and_written<F: Face>() {
    let machine = F::new();
    let mut data = [0; 4];
    machine.read_device_config(2, &mut data);
    assert_eq!(data, [3, 4, 5, 6]);
    machine.write_device_config(4, &[9, 9]);
    machine.read_device_config(4, &mut data);
    assert_eq!(data, [9, 9, 7, 8]);
    machine.read_device_config(8, &mut data);
    assert_eq!(data, [0xff; 4], "nothing is behind the configuration");
    let mut all = [0; 8];
    machine.read_device_config(0, &mut all);
    assert_eq!(all, [1, 2, 3, 4, 9, 9, 7, 8]);
}

pub(super) fn generation_changes_with_the_configuration<F: Face>() {
    let (machine, _rings) = F::running();
    let before = machine.get(Field::Generation);
    machine.interrupt().queue(0);
    assert_eq!(machine.get(Field::Generation), before);
    machine.interrupt().config_changed();
    assert_ne!(machine.get(Field::Generation), before);
}
