//! Rate limits.

use virtio_queue::QueueT;

use super::wide::{WIDE, Wide};
use super::*;
use crate::rate_limit::TokenBucket;

/// `size` operations at once and in each `refill`.
fn ops(size: u64, refill: Duration) -> Arc<RateLimiter> {
    let bucket = TokenBucket {
        size,
        one_time_burst: 0,
        refill_time: refill,
    };
    let limits = RateLimits {
        bandwidth: None,
        ops: Some(bucket),
    };
    Arc::new(RateLimiter::new(limits, Instant::now()))
}

fn limited(pairs: u64, rx: Option<Arc<RateLimiter>>, tx: Option<Arc<RateLimiter>>) -> Wide {
    let options = NetOptions {
        rx_limiter: rx.unwrap_or_else(unlimited),
        tx_limiter: tx.unwrap_or_else(unlimited),
        ..options()
    };
    let mut wide = Wide::with_options(pairs, options);
    wide.start(if pairs == 1 { PLAIN } else { WIDE });
    wide
}

#[test]
fn packets_that_are_held_back_are_received_in_time_and_none_is_lost() {
    let mut wide = limited(1, Some(ops(5, Duration::from_millis(200))), None);
    for at in 0..20 {
        wide.offer_rx(0, DATA + at * 0x1000);
    }
    let begin = Instant::now();
    for at in 0..20 {
        wide.hosts[0].send(&frame(&payload(at, 60))).unwrap();
    }
    for at in 0..20 {
        let used = wide.rx[0].wait_used(5 * SECOND);
        assert_eq!(used.map(|used| used.len), Some(72), "packet {at}");
    }
    // Five at once, and the others 40 ms apart.
    assert!(begin.elapsed() >= Duration::from_millis(500));
    for at in 0..20 {
        assert_eq!(
            wide.read(DATA + at * 0x1000 + 12, 60),
            payload(at as u8, 60)
        );
    }
    assert!(count(&wide.metrics.rx_held_back) >= 1);
    assert_eq!(count(&wide.metrics.rx_packets), 20);
}

#[test]
fn packets_that_are_held_back_are_sent_in_time_and_none_is_lost() {
    let mut wide = limited(1, None, Some(ops(5, Duration::from_millis(200))));
    let begin = Instant::now();
    for at in 0..20_u64 {
        wide.write(DATA + at * 0x1000, &HEADER);
        wide.write(DATA + at * 0x1000 + 12, &payload(at as u8, 60));
        wide.tx[0].push(&[readable(DATA + at * 0x1000, 72)]);
    }
    wide.tx[0].kick();
    let mut got = [0; 100];
    for at in 0..20 {
        assert_eq!(wide.hosts[0].recv(&mut got).unwrap(), 72);
        assert_eq!(got[12..72], payload(at, 60));
    }
    assert!(begin.elapsed() >= Duration::from_millis(500));
    for _ in 0..20 {
        wide.tx[0].wait_used(5 * SECOND).unwrap();
    }
    assert!(count(&wide.metrics.tx_held_back) >= 1);
}

#[test]
fn worker_sleeps_while_its_packets_are_held_back() {
    let mut wide = limited(1, None, Some(ops(1, 3600 * SECOND)));
    for _ in 0..2 {
        wide.write(DATA, &HEADER);
        wide.tx[0].push(&[readable(DATA, 72)]);
    }
    wide.tx[0].kick();
    wait_count(&wide.metrics.tx_held_back, 1);
    for _ in 0..10 {
        wide.tx[0].kick();
    }
    thread::sleep(QUIET);
    assert_eq!(count(&wide.metrics.tx_held_back), 1);
    // Receiving is another matter, and so is stopping.
    wide.offer_rx(0, DATA + 0x1000);
    assert!(wide.arrives(0, &payload(1, 60)));
    let queues = wide.net.stop();
    assert_eq!(
        queues[1].queue.next_avail(),
        1,
        "the second one is still in the ring"
    );
}

#[test]
fn all_pairs_share_one_limit() {
    let mut wide = limited(2, None, Some(ops(4, 3600 * SECOND)));
    for pair in [0, 1] {
        for _ in 0..4 {
            wide.write(DATA, &HEADER);
            wide.tx[pair].push(&[readable(DATA, 72)]);
        }
        wide.tx[pair].kick();
    }
    wait_count(&wide.metrics.tx_packets, 4);
    thread::sleep(QUIET);
    assert_eq!(count(&wide.metrics.tx_packets), 4);
}

#[test]
fn pulled_cable_takes_what_was_held_back() {
    let mut wide = limited(1, None, Some(ops(1, 3600 * SECOND)));
    for _ in 0..5 {
        wide.write(DATA, &HEADER);
        wide.tx[0].push(&[readable(DATA, 72)]);
    }
    wide.tx[0].kick();
    wait_count(&wide.metrics.tx_held_back, 1);
    wide.net.handle().set_link(false);
    for _ in 0..5 {
        wide.tx[0].wait_used(5 * SECOND).unwrap();
    }
    assert_eq!(count(&wide.metrics.tx_link_down), 4);
}

#[test]
fn limits_that_change_hold_at_once_for_what_is_held_back() {
    let hour = 3600 * SECOND;
    let mut wide = limited(1, Some(ops(1, hour)), Some(ops(1, hour)));
    for at in 0..4 {
        wide.offer_rx(0, DATA + 0x1_0000 + at * 0x1000);
        wide.hosts[0].send(&frame(&payload(1, 60))).unwrap();
        wide.write(DATA, &HEADER);
        wide.tx[0].push(&[readable(DATA, 72)]);
    }
    wide.tx[0].kick();
    wait_count(&wide.metrics.tx_held_back, 1);
    wait_count(&wide.metrics.rx_held_back, 1);
    wide.net.handle().set_limits(RateLimits::default());
    wait_count(&wide.metrics.tx_packets, 4);
    wait_count(&wide.metrics.rx_packets, 4);
}
