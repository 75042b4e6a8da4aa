//! Drivers that break the rules.

use proptest::prelude::*;

use super::*;
use crate::virtio::driver::{Buffer, Descriptor};

fn count(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn messages_about_ports_that_there_are_not_mean_nothing() {
    let mut bench = Bench::ports(2);
    for (id, event) in [
        (0, 3),
        (0, 6),
        (3, 3),
        (3, 6),
        (u32::MAX, 3),
        (u32::MAX, 6),
        (1, 1),
        (1, 2),
        (1, 4),
        (1, 5),
        (1, 7),
        (1, 0xffff),
    ] {
        bench.say(id, event, 1);
    }
    assert_eq!(count(&bench.metrics.refused_messages), 12);
    assert!(bench.is_silent());
    assert!(bench.inputs.iter().all(|input| !input.is_open()));
}

#[test]
fn flood_of_messages_makes_no_more_answers_than_there_are_ports() {
    let mut bench = Bench::ports(2);
    for _ in 0..1000 {
        bench.say(0, 0, 1);
        bench.say(1, 3, 1);
    }
    assert_eq!(bench.hear(), (1, 1, 1, Vec::new()));
    assert_eq!(bench.hear(), (1, 7, 1, b"a".to_vec()));
    assert_eq!(bench.hear(), (2, 1, 1, Vec::new()));
    assert!(bench.is_silent());
}

#[test]
fn message_that_is_too_short_is_malformed() {
    let mut bench = Bench::ports(1);
    bench.sent(3, &[0; 7]);
    assert_eq!(count(&bench.metrics.malformed), 1);
    bench.say(0, 0, 1);
    assert_eq!(bench.hear(), (1, 1, 1, Vec::new()));
}

#[test]
fn buffer_that_is_too_short_for_a_message_comes_back_empty() {
    let mut bench = Bench::ports(1);
    bench.say(0, 0, 1);
    bench.say(1, 3, 1);
    assert_eq!(bench.hear(), (1, 1, 1, Vec::new()));
    // A header and a name of one byte.
    bench.offer(2, 8);
    let used = bench.rings[2].wait_used(TIMEOUT).unwrap();
    assert_eq!(used.len, 0);
    assert_eq!(count(&bench.metrics.malformed), 1);
    assert_eq!(bench.hear(), (1, 7, 1, b"a".to_vec()));
}

#[test]
fn readable_buffer_for_input_comes_back_empty_and_input_stays() {
    let mut bench = Bench::console(0);
    until("the console is open", || bench.inputs[0].is_open());
    assert_eq!(bench.inputs[0].receive(b"typed"), 5);
    let at = bench.place(64);
    bench.rings[0].push(&[readable(at, 64)]);
    bench.rings[0].kick();
    assert_eq!(bench.rings[0].wait_used(TIMEOUT).unwrap().len, 0);
    assert_eq!(bench.receive(0, 64), b"typed");
}

#[test]
fn buffers_outside_of_memory_are_malformed_and_the_next_chain_works() {
    let mut bench = Bench::console(usize::MAX);
    for buffer in [
        readable(MEMORY as u64 - 4, 8),
        readable(u64::MAX - 4, 8),
        writable(DATA, 8),
    ] {
        bench.rings[1].push(&[buffer]);
        bench.rings[1].kick();
        assert!(bench.rings[1].wait_used(TIMEOUT).is_some());
    }
    assert_eq!(count(&bench.metrics.malformed), 2);
    bench.sent(1, b"works");
    assert_eq!(bench.lines[0].taken(), b"works");
}

#[test]
fn broken_ring_stops_the_device_until_it_is_reset() {
    let mut bench = Bench::ports(1);
    bench.rings[5].set_available_index(SIZE * 3);
    bench.rings[5].kick();
    assert!(bench.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(count(&bench.metrics.broken_rings), 1);
    bench.send(3, &[0; 8]);
    thread::sleep(QUIET);
    assert!(bench.rings[3].pop_used().is_none());
    drop(bench.device.stop());
    bench.device.reset();
    bench.rings = (0..6)
        .map(|index| Ring::new(&bench.memory, RINGS + index * RING_STRIDE, SIZE))
        .collect();
    bench.start();
    bench.say(0, 0, 1);
    assert_eq!(bench.hear(), (1, 1, 1, Vec::new()));
}

#[test]
fn driver_that_enables_no_queue_is_served_with_none() {
    let mut bench = Bench::ports(1);
    drop(bench.device.stop());
    bench.device.reset();
    bench.resume(Vec::new());
    bench.inputs[0].wake();
    assert_eq!(bench.inputs[0].receive(b"x"), 0);
    assert!(bench.device.stop().is_empty());
}

#[test]
fn chain_that_changes_while_it_waits_reads_nothing_beyond_it() {
    let mut bench = Bench::console(4_000);
    let head = bench.send(1, &pattern(5_000));
    until("what fits is taken", || {
        bench.lines[0].taken().len() == 4_000
    });
    let descriptor = Descriptor {
        address: DATA,
        len: 10,
        ..Descriptor::default()
    };
    bench.rings[1].set_descriptor(head, descriptor);
    bench.change(0, |line| line.room = usize::MAX);
    assert!(bench.rings[1].wait_used(TIMEOUT).is_some());
    assert_eq!(bench.lines[0].taken().len(), 4_000);
    bench.sent(1, b"next");
    assert!(bench.lines[0].taken().ends_with(b"next"));
}

fn any_buffer() -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![
        DATA..DATA + 0x4000,
        Just(MEMORY as u64 - 2),
        Just(u64::MAX),
        any::<u64>()
    ];
    (address, 0..9000u32, any::<bool>()).prop_map(|(address, len, writable)| Buffer {
        address,
        len,
        writable,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_chains_neither_stop_nor_panic_the_device(
        chains in prop::collection::vec(
            (0..6usize, prop::collection::vec(any_buffer(), 1..4)),
            1..12,
        ),
        bytes in prop::collection::vec(any::<u8>(), 64),
    ) {
        let mut bench = Bench::ports(1);
        bench.write(DATA, &bytes);
        bench.say(0, 0, 1);
        bench.say(1, 3, 1);
        bench.say(1, 6, 1);
        bench.inputs[0].receive(&bytes);
        for (queue, buffers) in chains {
            // Rings have 16 descriptors, and receive rings may keep theirs.
            let ring = &mut bench.rings[queue];
            while ring.pop_used().is_some() {}
            if usize::from(ring.available_index()) + buffers.len() < usize::from(SIZE) / 2 {
                ring.push(&buffers);
                ring.kick();
            }
        }
        bench.inputs[0].receive(&bytes);
        let queues = bench.device.stop();
        prop_assert_eq!(queues.len(), 6);
        prop_assert_eq!(bench.interrupt.needs_reset_count(), 0);
    }
}
