//! Backends that do not answer, or not by the rules.

use std::sync::atomic::Ordering;

use super::fake::*;
use super::*;

/// What a backend is asked for when it is connected to.
const AT_CONNECTION: [u32; 4] = [
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_MAX_MEM_SLOTS,
];

/// What it is asked for at a start.
const AT_START: [u32; 9] = [
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_VRING_NUM,
    SET_VRING_BASE,
    SET_VRING_ADDR,
    SET_VRING_ERR,
    SET_VRING_CALL,
    SET_VRING_KICK,
    SET_VRING_ENABLE,
];

const WAYS: [Wrong; 5] = [
    Wrong::Silent,
    Wrong::Slow,
    Wrong::Close,
    Wrong::OtherRequest,
    Wrong::Descriptors,
];

#[test]
fn connection_to_a_backend_without_answers_fails_in_time_and_names_it() {
    for request in AT_CONNECTION {
        for wrong in WAYS {
            let backends = Backends::new(vec![Manner::wrong(request, wrong)]);
            let before = Instant::now();
            let error = told(&backends.connect_within(SOON).unwrap_err());
            assert!(before.elapsed() < SOON * 20, "{request} {wrong:?}");
            let expected = "the vhost-user backend at /run/fake.sock did not negotiate";
            assert!(error.starts_with(expected), "{request} {wrong:?}: {error}");
            let timed_out = error.contains("within 0.3 s");
            let expected = matches!(wrong, Wrong::Silent | Wrong::Slow);
            assert_eq!(timed_out, expected, "{request} {wrong:?}: {error}");
            // It was never there.
            assert!(backends.lost().is_empty());
        }
    }
}

#[test]
fn start_with_a_backend_without_answers_fails_in_time_and_loses_it() {
    for request in AT_START {
        for wrong in WAYS.into_iter().chain([Wrong::Refuse]) {
            let mut rig = Rig::with(vec![Manner::wrong(request, wrong)], SOON);
            let before = Instant::now();
            let error = told(&rig.start().unwrap_err());
            assert!(before.elapsed() < SOON * 20, "{request} {wrong:?}");
            let expected = "the vhost-user backend at /run/fake.sock did not take the rings";
            assert!(error.contains(expected), "{request} {wrong:?}: {error}");
            eventually("the loss is told", || rig.backends.lost().len() == 1);
            assert!(rig.rings.stop().is_empty());
        }
    }
}

#[test]
fn stop_with_a_backend_without_answers_ends_in_time_and_gives_the_queues() {
    for wrong in WAYS {
        let mut rig = Rig::with(vec![Manner::wrong(GET_VRING_BASE, wrong)], SOON);
        rig.start().unwrap();
        let before = Instant::now();
        assert_eq!(rig.rings.stop().len(), 2);
        assert!(before.elapsed() < SOON * 20, "{wrong:?}");
        eventually("the loss is told", || rig.backends.lost().len() == 1);
        // Nothing is asked of it any more.
        let before = Instant::now();
        assert!(rig.start().is_err());
        assert!(before.elapsed() < SOON, "{wrong:?}");
    }
}

#[test]
fn backends_that_do_not_fit_are_refused_by_name() {
    let few = Manner {
        queues: 1,
        ..Manner::good()
    };
    let many = Manner {
        queues: u64::MAX,
        ..Manner::good()
    };
    let legacy = Manner {
        features: Manner::good().features & !(1 << 32),
        ..Manner::good()
    };
    for (manner, part) in [
        (few, "has 1 queues, expected at least 2: lower num_queues"),
        (many, "did not negotiate"),
        (legacy, "lacks features 0x100000000"),
    ] {
        let backends = Backends::new(vec![manner]);
        let error = told(&backends.connect_within(TIMEOUT).unwrap_err());
        assert!(error.contains(part), "{error}");
        assert!(error.contains("/run/fake.sock"), "{error}");
    }
}

#[test]
fn noise_between_requests_is_no_answer_and_costs_no_time() {
    let mut rig = Rig::with(vec![Manner::good()], SOON);
    rig.start().unwrap();
    rig.backends.say(0, &[0xff; 64]);
    std::thread::sleep(SOON);
    assert!(rig.backends.lost().is_empty());
    assert_eq!(rig.echo(1, b"served on"), b"served on");
    assert_eq!(rig.rings.stop().len(), 2);
    eventually("the loss is told", || rig.backends.lost().len() == 1);
    assert_eq!(rig.backend.metrics().losses.load(Ordering::Relaxed), 1);
}
