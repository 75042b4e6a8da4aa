//! What holds of the transport whatever its registers look like: each fact once, for every face.

mod face;
mod idle;
mod negotiation;
mod queues;
mod saved;

pub(in crate::virtio::transport) use face::*;
pub(in crate::virtio::transport) use idle::*;

/// A test of each fact for each face.
macro_rules! facts {
    ($($module:ident: $($fact:ident)*;)*) => {
        mod pci {
            use super::super::pci::tests::Machine;
            $($(#[test] fn $fact() { super::$module::$fact::<Machine>(); })*)*
        }

        mod mmio {
            use super::super::mmio::tests::Machine;
            $($(#[test] fn $fact() { super::$module::$fact::<Machine>(); })*)*
        }
    };
}

facts! {
    negotiation:
        offered_features_are_read_by_page
        driver_reaches_driver_ok
        feature_that_was_not_offered_is_refused
        driver_without_version_1_is_refused
        features_are_fixed_after_features_ok
        status_bits_out_of_turn_are_not_set
        driver_ok_twice_starts_once
        reset_forgets_the_driver
        driver_starts_again_after_a_reset
        device_that_fails_to_start_needs_a_reset
        broken_device_tells_that_it_needs_a_reset
        device_configuration_is_read_and_written
        generation_changes_with_the_configuration;
    queues:
        queue_that_does_not_exist_has_size_0
        enabled_queue_does_not_change
        running_queue_does_not_change
        invalid_queue_needs_a_reset
        queue_is_notified_once_at_the_start
        notification_without_ioeventfd_reaches_its_queue
        notification_before_driver_ok_starts_nothing
        reset_with_work_in_flight_leaves_queues_to_set_up_anew;
    saved:
        paused_device_goes_on_with_its_queues
        pause_before_driver_ok_does_nothing
        reset_while_paused_forgets_the_queues
        fresh_device_goes_on_from_saved_state
        device_that_was_not_started_is_restored_as_such
        state_of_another_machine_is_refused;
}
