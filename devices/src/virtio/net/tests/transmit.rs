//! From the guest to the host.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;

#[test]
fn packet_reaches_the_host_with_its_header() {
    let mut bench = Bench::started(PLAIN);
    let head = bench.guest_sends(DATA, &payload(1, 1514));
    assert_eq!(bench.host_gets(), payload(1, 1514));
    assert_eq!(bench.wait_tx(), Used { head, len: 0 });
    assert_eq!(count(&bench.metrics.tx_packets), 1);
    assert_eq!(count(&bench.metrics.tx_bytes), 1514);
}

#[test]
fn header_is_passed_on_as_the_guest_wrote_it() {
    let mut bench = Bench::started(PLAIN);
    let header = [1, 1, 54, 0, 0x78, 5, 34, 0, 16, 0, 9, 9];
    bench.write(DATA, &header);
    bench.write(DATA + 12, &payload(2, 100));
    bench.tx.push(&[readable(DATA, 112)]);
    bench.tx.kick();
    let mut frame = [0; 200];
    assert_eq!(bench.host.recv(&mut frame).unwrap(), 112);
    assert_eq!(frame[..12], header);
    assert_eq!(frame[12..112], payload(2, 100));
}

#[test]
fn packet_may_be_divided_anywhere() {
    for first in 1..20 {
        let mut bench = Bench::started(PLAIN);
        bench.guest_packet(DATA, &payload(first as u8, 100));
        let pieces = [
            readable(DATA, first),
            readable(DATA + u64::from(first), 0),
            readable(DATA + u64::from(first), 1),
            readable(DATA + u64::from(first) + 1, 112 - first - 1),
        ];
        bench.tx.push(&pieces);
        bench.tx.kick();
        assert_eq!(bench.host_gets(), payload(first as u8, 100));
    }
}

#[test]
fn buffer_across_two_regions_of_memory_is_sent_whole() {
    let mut bench = Bench::with_memory(&[(0, 0x20_0000), (0x20_0000, 0x20_0000)]);
    bench.start(PLAIN);
    bench.guest_sends(0x20_0000 - 100, &payload(3, 1000));
    assert_eq!(bench.host_gets(), payload(3, 1000));
}

#[test]
fn indirect_chain_is_sent() {
    let mut bench = Bench::started(PLAIN);
    bench.guest_packet(DATA, &payload(4, 600));
    let head = bench
        .tx
        .push_indirect(TABLE, &[readable(DATA, 12), readable(DATA + 12, 600)]);
    bench.tx.kick();
    assert_eq!(bench.host_gets(), payload(4, 600));
    assert_eq!(bench.wait_tx().head, head);
}

#[test]
fn longest_packet_is_sent_and_a_longer_one_is_not() {
    let mut bench = Bench::started(PLAIN);
    bench.guest_sends(DATA, &payload(5, 65551));
    bench.guest_sends(DATA + 0x2_0000, &payload(6, 65550));
    assert!(bench.host_gets() == payload(6, 65550));
    bench.wait_tx();
    bench.wait_tx();
    assert_eq!(count(&bench.metrics.tx_too_long), 1);
    assert_eq!(count(&bench.metrics.tx_packets), 1);
}

#[test]
fn packet_shorter_than_a_header_is_returned_and_counted() {
    let mut bench = Bench::started(PLAIN);
    let head = bench.tx.push(&[readable(DATA, 11)]);
    bench.tx.kick();
    assert_eq!(bench.wait_tx(), Used { head, len: 0 });
    assert_eq!(count(&bench.metrics.tx_malformed), 1);
    bench.host_gets_nothing();
}

#[test]
fn packets_wait_in_the_ring_while_the_host_has_no_room() {
    const PACKETS: usize = 250;
    let mut bench = Bench::started(PLAIN | bit(VIRTIO_RING_F_EVENT_IDX));
    for at in 0..PACKETS {
        bench.guest_packet(DATA + at as u64 * 0x1000, &payload(at as u8, 4000));
        bench.tx.push(&[readable(DATA + at as u64 * 0x1000, 4012)]);
    }
    bench.tx.kick();
    wait_count(&bench.metrics.tx_blocked, 1);
    let blocked = count(&bench.metrics.tx_blocked);
    bench.tx.kick();
    std::thread::sleep(QUIET);
    assert_eq!(
        count(&bench.metrics.tx_blocked),
        blocked,
        "the worker sleeps"
    );
    for at in 0..PACKETS {
        assert!(bench.host_gets() == payload(at as u8, 4000), "packet {at}");
    }
    for _ in 0..PACKETS {
        bench.wait_tx();
    }
    assert_eq!(count(&bench.metrics.tx_packets), PACKETS as u64);
}

#[test]
fn packet_that_the_host_refuses_is_returned_and_counted() {
    let mut bench = Bench::started(PLAIN);
    bench
        .control
        .send_error
        .store(libc::EINVAL, Ordering::SeqCst);
    let head = bench.guest_sends(DATA, &payload(1, 100));
    assert_eq!(bench.wait_tx(), Used { head, len: 0 });
    assert_eq!(count(&bench.metrics.tx_refused), 1);
    assert_eq!(count(&bench.metrics.tx_packets), 0);
    assert!(bench.net.handle().is_link_up());
}

#[test]
fn batch_of_packets_is_one_interrupt() {
    let mut bench = Bench::new();
    for at in 0..8 {
        bench.guest_packet(DATA + at * 0x1000, &payload(at as u8, 60));
        bench.tx.push(&[readable(DATA + at * 0x1000, 72)]);
    }
    bench.start(PLAIN);
    for at in 0..8 {
        assert_eq!(bench.host_gets(), payload(at, 60));
        bench.wait_tx();
    }
    assert!(bench.interrupt.wait_queue(spec::TX, 1, SECOND));
    assert_eq!(bench.interrupt.queue_count(spec::TX), 1);
}

#[test]
fn driver_is_asked_for_a_kick_once_the_ring_is_empty() {
    let mut bench = Bench::started(PLAIN | bit(VIRTIO_RING_F_EVENT_IDX));
    for round in 0..100_u16 {
        let before = bench.tx.available_index();
        bench.guest_packet(DATA, &payload(round as u8, 60));
        bench.tx.push(&[readable(DATA, 72)]);
        // The worker may still be on its way from its last packet to sleep; it then finds this one by itself.
        if bench.tx.wants_kick(before, true) {
            bench.tx.kick();
        }
        assert_eq!(bench.host_gets(), payload(round as u8, 60));
        bench.wait_tx();
    }
}
