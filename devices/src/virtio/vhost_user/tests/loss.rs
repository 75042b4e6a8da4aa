//! Backends that go away, and come again.

use std::sync::atomic::Ordering;

use super::fake::{GET_VRING_BASE, SET_VRING_CALL, Wrong};
use super::*;
use crate::virtio::driver::Descriptor;

/// Has the backend go away by asking it for something that it goes away of.
fn leaves() -> Manner {
    Manner::wrong(SET_VRING_CALL, Wrong::Close)
}

fn dies_at_stop() -> Manner {
    Manner::wrong(GET_VRING_BASE, Wrong::Close)
}

#[test]
fn loss_is_told_once_and_a_reset_brings_the_next_backend() {
    // The last is the first.
    let manners = vec![Manner::good(), dies_at_stop()];
    let mut rig = Rig::with(manners, TIMEOUT);
    rig.start().unwrap();
    assert_eq!(rig.echo(1, b"first"), b"first");
    let queues = rig.rings.stop();
    assert_eq!(queues.len(), 2);
    eventually("the loss is told", || rig.backends.lost().len() == 1);
    assert_eq!(rig.backend.metrics().connected.load(Ordering::Relaxed), 0);

    // What the backend knew of the driver is lost with it.
    let error = told(&rig.resume(queues).unwrap_err());
    assert!(error.contains("/run/fake.sock was lost"), "{error}");
    assert_eq!(*rig.backends.found.lock().unwrap(), 0);

    rig.rings.reset();
    rig.queues = Rig::queues(&rig.memory);
    rig.start().unwrap();
    assert_eq!(rig.echo(1, b"second"), b"second");
    assert_eq!(*rig.backends.found.lock().unwrap(), 1);
    let metrics = rig.backend.metrics();
    assert_eq!(metrics.connections.load(Ordering::Relaxed), 2);
    assert_eq!(metrics.losses.load(Ordering::Relaxed), 1);
    assert_eq!(metrics.connected.load(Ordering::Relaxed), 1);
    assert_eq!(rig.backends.lost().len(), 1);
}

#[test]
fn driver_of_a_backend_that_goes_away_is_told_to_reset() {
    let mut rig = Rig::with(vec![leaves()], TIMEOUT);
    // It goes before the rings run.
    let error = told(&rig.start().unwrap_err());
    assert!(error.contains("did not take the rings"), "{error}");

    let mut rig = Rig::new(Manner::good());
    rig.start().unwrap();
    rig.echo(0, b"text");
    // As if its process had ended.
    rig.backends.end(0);
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.backends.lost(), ["it closed the connection"]);
    assert_eq!(rig.rings.stop().len(), 2);
    rig.rings.reset();
    let error = told(&rig.start().unwrap_err());
    assert!(
        error.contains("cannot connect to the vhost-user backend at /run/fake.sock"),
        "{error}"
    );
    assert_eq!(rig.interrupt.needs_reset_count(), 1);
}

#[test]
fn backend_that_goes_away_while_the_machine_is_paused_is_not_replaced_behind_the_drivers_back() {
    let mut rig = Rig::with(vec![Manner::good(), Manner::good()], TIMEOUT);
    rig.start().unwrap();
    let queues = rig.rings.stop();
    rig.backends.end(0);
    eventually("the loss is told", || rig.backends.lost().len() == 1);
    // Nobody runs that could reset it; resuming fails, which tells it.
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
    rig.resume(queues).unwrap_err();
    rig.rings.reset();
    rig.queues = Rig::queues(&rig.memory);
    rig.start().unwrap();
    assert_eq!(rig.echo(1, b"text"), b"text");
}

#[test]
fn next_backend_has_to_offer_what_the_driver_was_offered() {
    let lesser = Manner {
        features: Manner::good().features & !(1 << 29),
        ..Manner::good()
    };
    let mut rig = Rig::with(vec![lesser, Manner::good()], TIMEOUT);
    rig.backends.end(0);
    eventually("the loss is told", || rig.backends.lost().len() == 1);
    let error = told(&rig.start().unwrap_err());
    assert!(error.contains("lacks features 0x20000000"), "{error}");
}

#[test]
fn broken_ring_needs_a_reset_and_not_another_backend() {
    let mut rig = Rig::new(Manner::good());
    rig.start().unwrap();
    // More available than the ring has.
    rig.queues[1].set_descriptor(0, Descriptor::default());
    rig.queues[1].set_available_index(500);
    rig.queues[1].kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(
        rig.backend.metrics().broken_rings.load(Ordering::Relaxed),
        1
    );
    assert!(rig.backends.lost().is_empty());
    rig.rings.stop();
    rig.rings.reset();
    rig.queues = Rig::queues(&rig.memory);
    rig.start().unwrap();
    assert_eq!(rig.echo(1, b"again"), b"again");
}
