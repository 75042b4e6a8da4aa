//! Several queue pairs.

use super::wide::{CONTROLLED, WIDE, Wide};
use super::*;
use crate::state::Persist;
use crate::virtio::net::NetError;
use crate::virtio::{Activation, StartError};

fn pairs_set(count: u16) -> Vec<u8> {
    [[4, 0], count.to_le_bytes()].concat()
}

#[test]
fn device_with_several_ports_offers_their_queues_and_one_for_control() {
    let wide = Wide::new(4);
    assert_eq!(wide.net.queue_sizes(), [SIZE; 9]);
    assert_ne!(wide.net.features() & bit(spec::VIRTIO_NET_F_MQ), 0);
    assert_eq!(wide.config(8, 2), [4, 0], "max_virtqueue_pairs");
    let narrow = Wide::new(1);
    assert_eq!(narrow.net.queue_sizes(), [SIZE; 3]);
    assert_eq!(narrow.net.features() & bit(spec::VIRTIO_NET_F_MQ), 0);
}

#[test]
fn device_without_a_port_or_with_too_many_cannot_be() {
    assert!(matches!(
        Net::<SocketPort>::new("a", Vec::new(), options()),
        Err(NetError::Pairs(0))
    ));
    let ports = (0..257).map(|_| SocketPort::pair(Offloads::empty()).0);
    assert!(matches!(
        Net::new("a", ports.collect(), options()),
        Err(NetError::Pairs(257))
    ));
}

#[test]
fn pairs_that_are_not_in_use_rest_until_the_driver_sets_them() {
    let mut wide = Wide::started(4, WIDE);
    assert_eq!(wide.receiving(), [true, false, false, false]);
    assert_eq!(wide.command(&pairs_set(3)), 0);
    assert_eq!(wide.receiving(), [true, true, true, false]);
    assert_eq!(wide.command(&pairs_set(1)), 0);
    assert_eq!(wide.receiving(), [true, false, false, false]);
}

#[test]
fn each_pair_moves_its_own_packets() {
    let mut wide = Wide::started(4, WIDE);
    assert_eq!(wide.command(&pairs_set(4)), 0);
    for pair in 0..4 {
        let seed = pair as u8;
        wide.offer_rx(pair, DATA + 0x1_0000);
        assert!(wide.arrives(pair, &payload(seed, 600)));
        assert_eq!(wide.read(DATA + 0x1_000c, 600), payload(seed, 600));
        wide.guest_sends(pair, &payload(seed, 300));
        let mut got = [0; 1024];
        assert_eq!(wide.hosts[pair].recv(&mut got).unwrap(), 312);
        assert_eq!(got[12..312], payload(seed, 300));
        assert!(wide.interrupt.wait_queue(2 * pair as u16, 1, SECOND));
        assert!(wide.interrupt.wait_queue(2 * pair as u16 + 1, 1, SECOND));
    }
    assert_eq!(count(&wide.metrics.rx_packets), 4);
    assert_eq!(count(&wide.metrics.tx_packets), 4);
}

#[test]
fn pair_that_is_not_in_use_receives_nothing_and_what_it_sends_still_goes_out() {
    let mut wide = Wide::started(2, WIDE);
    wide.offer_rx(1, DATA + 0x1_0000);
    assert!(!wide.arrives(1, &payload(1, 60)));
    assert_eq!(wide.command(&pairs_set(2)), 0);
    assert!(wide.arrives(1, &payload(2, 60)));
    assert_eq!(wide.command(&pairs_set(1)), 0);
    wide.offer_rx(1, DATA + 0x1_0000);
    while wide.rx[1].pop_used().is_some() {}
    assert!(!wide.arrives(1, &payload(3, 60)));
    wide.guest_sends(1, &payload(4, 60));
    assert_eq!(wide.hosts[1].recv(&mut [0; 128]).unwrap(), 72);
}

#[test]
fn impossible_numbers_of_pairs_are_refused() {
    let mut wide = Wide::started(2, WIDE);
    for count in [0, 3, 0x8000, u16::MAX] {
        assert_eq!(wide.command(&pairs_set(count)), 1, "{count}");
    }
    assert_eq!(wide.receiving(), [true, false]);
    assert_eq!(count(&wide.metrics.control_refused), 4);
}

#[test]
fn host_that_refuses_a_queue_leaves_the_pairs_as_they_were() {
    let mut wide = Wide::started(3, WIDE);
    wide.controls[2].refuses_queue.store(true, Ordering::SeqCst);
    assert_eq!(wide.command(&pairs_set(3)), 1);
    assert_eq!(wide.receiving(), [true, false, false]);
    assert_eq!(wide.command(&pairs_set(2)), 0);
    assert_eq!(wide.receiving(), [true, true, false]);
}

#[test]
fn driver_without_several_pairs_finds_the_control_queue_behind_the_first() {
    let mut wide = Wide::new(2);
    let rings = [&wide.rx[0], &wide.tx[0], &wide.control];
    let activation = driver::activation(&wide.memory, &rings, CONTROLLED, &wide.interrupt);
    wide.net.start(activation).unwrap();
    assert_eq!(wide.command(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(wide.command(&pairs_set(2)), 1, "it did not accept them");
    assert_eq!(wide.net.stop().len(), 3);
}

#[test]
fn pair_of_which_one_queue_is_missing_cannot_be_used() {
    let mut wide = Wide::new(3);
    let all: Vec<&Ring> = [
        &wide.rx[0],
        &wide.tx[0],
        &wide.rx[1],
        &wide.tx[1],
        &wide.rx[2],
        &wide.tx[2],
        &wide.control,
    ]
    .into();
    let mut activation = driver::activation(&wide.memory, &all, WIDE, &wide.interrupt);
    activation.queues.retain(|active| active.index != 3);
    wide.net.start(activation).unwrap();
    assert_eq!(wide.command(&pairs_set(2)), 1);
    assert_eq!(wide.command(&pairs_set(3)), 1);
    wide.offer_rx(0, DATA);
    assert!(wide.arrives(0, &payload(1, 60)));
    let indexes: Vec<_> = wide.net.stop().iter().map(|active| active.index).collect();
    assert_eq!(indexes, [0, 1, 2, 4, 5, 6], "all come back in order");
}

#[test]
fn pairs_in_use_survive_a_pause_and_end_with_a_reset() {
    let mut wide = Wide::started(3, WIDE);
    assert_eq!(wide.command(&pairs_set(3)), 0);
    let queues = wide.net.stop();
    assert_eq!(queues.len(), 7);
    wide.net
        .start(Activation {
            memory: wide.memory.clone(),
            queues,
            features: WIDE,
            interrupt: wide.interrupt.clone(),
        })
        .unwrap();
    assert_eq!(wide.receiving(), [true; 3]);
    wide.offer_rx(2, DATA);
    assert!(wide.arrives(2, &payload(1, 60)));
    wide.net.stop();
    wide.net.reset();
    assert_eq!(wide.receiving(), [true, false, false]);
}

#[test]
fn restored_device_uses_the_pairs_that_were_saved() {
    let mut wide = Wide::started(3, WIDE);
    assert_eq!(wide.command(&pairs_set(2)), 0);
    wide.net.stop();
    let saved = wide.net.save();

    let mut other = Wide::new(3);
    other.net.restore(&saved).unwrap();
    assert_eq!(other.net.save(), saved);
    other.start(WIDE);
    assert_eq!(other.receiving(), [true, true, false]);
    other.offer_rx(1, DATA);
    assert!(other.arrives(1, &payload(1, 60)));

    // A driver that did not enable the queues of its pairs cannot have saved that.
    let mut narrow = Wide::new(3);
    narrow.net.restore(&saved).unwrap();
    let rings = [&narrow.rx[0], &narrow.tx[0]];
    let activation = driver::activation(&narrow.memory, &rings, WIDE, &narrow.interrupt);
    assert!(matches!(
        narrow.net.start(activation),
        Err(StartError::QueueMissing(2))
    ));
}

#[test]
fn ring_that_breaks_in_one_pair_leaves_the_others_at_work() {
    let mut wide = Wide::started(2, WIDE);
    assert_eq!(wide.command(&pairs_set(2)), 0);
    wide.rx[1].offer(SIZE);
    wide.rx[1].kick();
    assert!(wide.interrupt.wait_needs_reset(5 * SECOND));
    wide.offer_rx(0, DATA);
    assert!(wide.arrives(0, &payload(1, 60)));
    wide.guest_sends(1, &payload(1, 60));
}

#[test]
fn pairs_change_under_traffic_and_the_device_stops() {
    let mut wide = Wide::started(2, WIDE);
    let host = wide.hosts[1].try_clone().unwrap();
    host.set_nonblocking(true).unwrap();
    let running = std::sync::atomic::AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                let _ = host.send(&frame(&payload(1, 60)));
            }
        });
        for round in 0..60_u16 {
            assert_eq!(wide.command(&pairs_set(1 + round % 2)), 0);
            for _ in 0..4 {
                wide.offer_rx(1, DATA);
            }
            if round % 2 == 0 {
                // From the answer on, nothing more is given to the pair.
                let used = wide.rx[1].device_used_index();
                thread::sleep(Duration::from_millis(1));
                assert_eq!(wide.rx[1].device_used_index(), used, "round {round}");
            }
            while wide.rx[1].pop_used().is_some() {}
        }
        running.store(false, Ordering::Relaxed);
    });
    assert_eq!(wide.net.stop().len(), 5);
}
