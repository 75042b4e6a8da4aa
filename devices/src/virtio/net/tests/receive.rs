//! From the host to the guest.

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};

use super::*;

#[test]
fn packet_is_in_the_guests_buffer_behind_its_header() {
    let mut bench = Bench::started(PLAIN);
    let head = bench.offer_rx(&[writable(DATA, 2048)]);
    bench.host_sends(&payload(1, 1000));
    assert_eq!(bench.wait_rx(), Used { head, len: 1012 });
    assert_eq!(bench.read(DATA, 12), received_header(1));
    assert_eq!(bench.read(DATA + 12, 1000), payload(1, 1000));
    assert_eq!(bench.read(DATA + 1012, 8), [0; 8]);
    assert_eq!(count(&bench.metrics.rx_packets), 1);
    assert_eq!(count(&bench.metrics.rx_bytes), 1000);
}

#[test]
fn header_may_be_divided_anywhere() {
    for first in 1..=14 {
        let mut bench = Bench::started(PLAIN);
        let pieces = [
            writable(DATA, first),
            writable(DATA + 0x1000, 1),
            writable(DATA + 0x2000, 100),
        ];
        bench.offer_rx(&pieces);
        bench.host_sends(&payload(first as u8, 40));
        assert_eq!(bench.wait_rx().len, 52);
        let first = first as usize;
        let mut bytes = bench.read(DATA, first);
        bytes.extend(bench.read(DATA + 0x1000, 1));
        bytes.extend(bench.read(DATA + 0x2000, 51 - first));
        assert_eq!(bytes[..12], received_header(1));
        assert_eq!(bytes[12..], payload(first as u8, 40));
    }
}

#[test]
fn indirect_chain_is_received_into() {
    let mut bench = Bench::started(PLAIN);
    let head = bench
        .rx
        .push_indirect(TABLE, &[writable(DATA, 12), writable(DATA + 0x1000, 1600)]);
    bench.rx.kick();
    bench.host_sends(&payload(2, 1500));
    assert_eq!(bench.wait_rx(), Used { head, len: 1512 });
    assert_eq!(bench.read(DATA + 0x1000, 1500), payload(2, 1500));
}

#[test]
fn long_packet_is_merged_from_several_chains_that_appear_together() {
    let mut bench = Bench::started(MERGE | spec::offered(Offloads::all()));
    let heads: Vec<_> = (0..8)
        .map(|at| bench.rx.push(&[writable(DATA + at * 0x1000, 2048)]))
        .collect();
    bench.rx.kick();
    bench.host_sends(&payload(3, 5000));
    wait_until(|| bench.rx.device_used_index() != 0);
    assert_eq!(bench.rx.device_used_index(), 3);
    for (head, len) in heads.iter().zip([2048, 2048, 5012 - 4096]) {
        assert_eq!(bench.wait_rx(), Used { head: *head, len });
    }
    assert_eq!(bench.read(DATA, 12), received_header(3));
    let mut bytes = bench.read(DATA + 12, 2036);
    bytes.extend(bench.read(DATA + 0x1000, 2048));
    bytes.extend(bench.read(DATA + 0x2000, 5012 - 4096));
    assert_eq!(bytes, payload(3, 5000));

    // The chains that it did not need take the next one.
    bench.host_sends(&payload(4, 100));
    assert_eq!(
        bench.wait_rx(),
        Used {
            head: heads[3],
            len: 112
        }
    );
    assert_eq!(bench.read(DATA + 0x3000, 12), received_header(1));
    assert_eq!(bench.read(DATA + 0x3000 + 12, 100), payload(4, 100));
}

#[test]
fn longest_packet_is_received_with_segmentation_offload() {
    let all = spec::offered(Offloads::all()) | MERGE;
    let mut bench = Bench::started(all);
    for at in 0..64 {
        bench.rx.push(&[writable(DATA + at * 0x1000, 1526)]);
    }
    bench.rx.kick();
    let sent = payload(5, 65550);
    bench.host_sends(&sent);
    let mut bytes = Vec::new();
    for at in 0..43 {
        let used = bench.wait_rx();
        bytes.extend(bench.read(DATA + at * 0x1000, used.len as usize));
    }
    assert_eq!(bytes[..12], received_header(43));
    assert!(bytes[12..] == sent);
}

#[test]
fn many_packets_arrive_in_order_through_few_buffers() {
    let mut bench = Bench::started(MERGE | bit(VIRTIO_RING_F_EVENT_IDX));
    let mut next = 0;
    for _ in 0..8 {
        bench.rx.push(&[writable(DATA + next % 8 * 0x1000, 2048)]);
        next += 1;
    }
    bench.rx.kick();
    for round in 0..2000_u32 {
        let len = 60 + round as usize % 1400;
        bench.host_sends(&payload(round as u8, len));
        let used = bench.wait_rx();
        assert_eq!(used.len as usize, len + 12);
        let address = DATA + u64::from(round) % 8 * 0x1000;
        assert!(
            bench.read(address + 12, len) == payload(round as u8, len),
            "packet {round}"
        );
        let before = bench.rx.available_index();
        bench.rx.push(&[writable(DATA + next % 8 * 0x1000, 2048)]);
        next += 1;
        if bench.rx.wants_kick(before, true) {
            bench.rx.kick();
        }
    }
    assert_eq!(count(&bench.metrics.rx_packets), 2000);
}

#[test]
fn packet_that_does_not_fit_is_dropped_and_counted() {
    let mut bench = Bench::started(PLAIN);
    let head = bench.offer_rx(&[writable(DATA, 512)]);
    bench.host_sends(&payload(6, 501));
    bench.host_sends(&payload(7, 500));
    assert_eq!(bench.wait_rx(), Used { head, len: 512 });
    assert_eq!(bench.read(DATA, 12), received_header(1));
    assert_eq!(bench.read(DATA + 12, 500), payload(7, 500));
    assert_eq!(count(&bench.metrics.rx_too_long), 1);
    assert_eq!(count(&bench.metrics.rx_packets), 1);
}

#[test]
fn guest_that_offers_little_is_served_with_that() {
    let mut bench = Bench::started(MERGE);
    let head = bench.offer_rx(&[writable(DATA, 200)]);
    bench.host_sends(&payload(8, 188));
    assert_eq!(bench.wait_rx(), Used { head, len: 200 });
}

#[test]
fn guest_that_runs_low_is_waited_for() {
    let mut bench = Bench::started(MERGE);
    bench.rx.push(&[writable(DATA, 1024)]);
    let second = bench.rx.push(&[writable(DATA + 0x1000, 1024)]);
    bench.rx.kick();
    bench.host_sends(&payload(9, 1000));
    assert_eq!(bench.wait_rx().len, 1012);
    // Too long for the 1024 bytes that are left.
    bench.host_sends(&payload(10, 1400));
    bench.rx_stays_unused();
    let third = bench.offer_rx(&[writable(DATA + 0x2000, 1024)]);
    assert_eq!(
        bench.wait_rx(),
        Used {
            head: second,
            len: 1024
        }
    );
    assert_eq!(
        bench.wait_rx(),
        Used {
            head: third,
            len: 1412 - 1024
        }
    );
    assert_eq!(
        bench.read(DATA + 0x1000 + 12, 1012),
        payload(10, 1400)[..1012]
    );
    assert_eq!(count(&bench.metrics.rx_too_long), 0);
}

/// Drivers fill their rings again when half of them is used, and not before.
#[test]
fn small_rings_are_used_to_the_half_before_the_guest_is_waited_for() {
    // Less than the longest packet fits into the smaller, a little more into the larger.
    for size in [16, 64] {
        let mut bench = Bench::with_rings(&[(0, MEMORY)], size);
        bench.start(MERGE | spec::offered(Offloads::all()));
        for at in 0..u64::from(size) {
            bench.rx.push(&[writable(DATA + at * 0x1000, 1536)]);
        }
        bench.rx.kick();
        for seed in 0..size / 2 {
            bench.host_sends(&payload(seed as u8, 100));
            assert_eq!(bench.wait_rx().len, 112);
        }
    }
}

#[test]
fn packets_wait_for_buffers_without_spinning() {
    let mut bench = Bench::started(PLAIN);
    for seed in 0..5 {
        bench.host_sends(&payload(seed, 100));
    }
    bench.rx_stays_unused();
    let starved = count(&bench.metrics.rx_starved);
    bench.rx_stays_unused();
    assert_eq!(
        count(&bench.metrics.rx_starved),
        starved,
        "the worker sleeps"
    );
    for seed in 0..5 {
        let head = bench.offer_rx(&[writable(DATA, 2048)]);
        assert_eq!(bench.wait_rx(), Used { head, len: 112 });
        assert_eq!(bench.read(DATA + 12, 100), payload(seed, 100));
    }
}

#[test]
fn batch_of_packets_is_one_interrupt() {
    let mut bench = Bench::new();
    for at in 0..8 {
        bench.rx.push(&[writable(DATA + at * 0x1000, 2048)]);
        bench.host_sends(&payload(at as u8, 60));
    }
    bench.start(PLAIN);
    for _ in 0..8 {
        bench.wait_rx();
    }
    assert!(bench.interrupt.wait_queue(spec::RX, 1, SECOND));
    assert_eq!(bench.interrupt.queue_count(spec::RX), 1);
    assert_eq!(bench.interrupt.queue_count(spec::TX), 0);
}

#[test]
fn interrupt_comes_when_the_drivers_used_event_is_passed() {
    let mut bench = Bench::started(PLAIN | bit(VIRTIO_RING_F_EVENT_IDX));
    bench.rx.set_used_event(2);
    for at in 0..4 {
        bench.offer_rx(&[writable(DATA + at * 0x1000, 2048)]);
    }
    for (sent, interrupts) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
        bench.host_sends(&payload(sent, 60));
        bench.wait_rx();
        std::thread::sleep(QUIET);
        assert_eq!(
            bench.interrupt.queue_count(spec::RX),
            interrupts,
            "after packet {sent}"
        );
    }
}

#[test]
fn driver_that_wants_no_interrupt_gets_none() {
    let mut bench = Bench::started(PLAIN);
    bench
        .rx
        .set_available_flags(VRING_AVAIL_F_NO_INTERRUPT as u16);
    bench.offer_rx(&[writable(DATA, 2048)]);
    bench.host_sends(&payload(1, 60));
    bench.wait_rx();
    std::thread::sleep(QUIET);
    assert_eq!(bench.interrupt.queue_count(spec::RX), 0);
}

#[test]
fn packet_that_the_host_cannot_hand_over_is_counted() {
    let mut bench = Bench::started(PLAIN);
    bench
        .control
        .receive_error
        .store(libc::ENOMEM, Ordering::SeqCst);
    bench.offer_rx(&[writable(DATA, 2048)]);
    bench.host_sends(&payload(1, 60));
    assert_eq!(bench.wait_rx().len, 72);
    assert_eq!(count(&bench.metrics.rx_errors), 1);
    assert!(bench.net.handle().is_link_up());
}

#[test]
fn packet_without_a_whole_header_is_no_packet() {
    let mut bench = Bench::started(PLAIN);
    bench.offer_rx(&[writable(DATA, 2048)]);
    bench.host.send(&[0; 11]).unwrap();
    bench.host_sends(&payload(1, 60));
    assert_eq!(bench.wait_rx().len, 72);
    assert_eq!(count(&bench.metrics.rx_errors), 1);
}
