//! A port that goes down or away.

use super::*;
use crate::log_lines::lines_of;
use crate::virtio::net::{LinkObserver, PortState};

fn status(bench: &Bench) -> [u8; 2] {
    let mut status = [0xff; 2];
    bench.net.read_config(6, &mut status);
    status
}

#[test]
fn link_is_down_while_the_interface_is_and_up_again_after() {
    let mut bench = Bench::started(STATUS);
    assert_eq!(status(&bench), [1, 0]);

    bench.control.send_error.store(libc::EIO, Ordering::SeqCst);
    // The interface reports that it is writable right after: only what fails after that leaves the link down.
    for _ in 0..3 {
        bench.guest_sends(DATA, &payload(1, 60));
        bench.wait_tx();
    }
    wait_count(&bench.metrics.link_downs, 1);
    assert_eq!(count(&bench.metrics.tx_link_down), 3);
    assert!(bench.interrupt.config_count() >= 1);

    bench.control.send_error.store(0, Ordering::SeqCst);
    bench.guest_sends(DATA, &payload(2, 60));
    assert_eq!(bench.host_gets(), payload(2, 60));
    bench.wait_tx();
    wait_until(|| status(&bench) == [1, 0]);
}

#[test]
fn link_of_an_interface_that_is_gone_stays_down_and_the_driver_gets_its_chains_back() {
    let mut bench = Bench::started(STATUS);
    bench
        .control
        .send_error
        .store(libc::EBADFD, Ordering::SeqCst);
    for seed in 0..40 {
        bench.guest_sends(DATA, &payload(seed, 60));
    }
    for _ in 0..40 {
        bench.wait_tx();
    }
    assert_eq!(status(&bench), [0, 0]);
    assert_eq!(count(&bench.metrics.tx_link_down), 40);
    assert_eq!(count(&bench.metrics.link_downs), 1);
    assert_eq!(bench.interrupt.config_count(), 1);
    assert_eq!(bench.interrupt.needs_reset_count(), 0);

    bench.offer_rx(&[writable(DATA, 2048)]);
    bench.host_sends(&payload(1, 60));
    bench.rx_stays_unused();
}

#[test]
fn interface_found_gone_while_receiving_takes_the_link_down() {
    let mut bench = Bench::started(STATUS);
    bench.control.detached.store(true, Ordering::SeqCst);
    bench
        .control
        .receive_error
        .store(libc::EFAULT, Ordering::SeqCst);
    bench.offer_rx(&[writable(DATA, 2048)]);
    wait_until(|| status(&bench) == [0, 0]);
    assert_eq!(count(&bench.metrics.link_downs), 1);
}

#[test]
fn driver_without_the_status_feature_is_not_told_of_the_link() {
    let mut bench = Bench::started(PLAIN);
    bench
        .control
        .send_error
        .store(libc::EBADFD, Ordering::SeqCst);
    bench.guest_sends(DATA, &payload(1, 60));
    bench.wait_tx();
    wait_count(&bench.metrics.link_downs, 1);
    assert_eq!(bench.interrupt.config_count(), 0);
}

/// A device with 250 packets to send, more than the host has room for.
fn blocked() -> Bench {
    let mut bench = Bench::started(STATUS);
    for at in 0..250 {
        bench.guest_packet(DATA + at * 0x1000, &payload(at as u8, 4000));
        bench.tx.push(&[readable(DATA + at * 0x1000, 4012)]);
    }
    bench.tx.kick();
    wait_count(&bench.metrics.tx_blocked, 1);
    bench
}

#[test]
fn chains_that_waited_for_room_come_back_when_the_interface_goes() {
    let mut bench = blocked();
    bench.control.detached.store(true, Ordering::SeqCst);
    bench
        .control
        .receive_error
        .store(libc::EBADFD, Ordering::SeqCst);
    bench.offer_rx(&[writable(DATA, 2048)]);
    for _ in 0..250 {
        bench.wait_tx();
    }
    assert_eq!(
        count(&bench.metrics.tx_packets) + count(&bench.metrics.tx_link_down),
        250
    );
}

#[test]
fn device_starts_with_its_link_down_when_the_interface_is_gone() {
    let mut bench = Bench::new();
    bench.control.detached.store(true, Ordering::SeqCst);
    bench.control.refuses_offloads.store(true, Ordering::SeqCst);
    bench.start(STATUS);
    assert_eq!(status(&bench), [0, 0]);
    bench.guest_sends(DATA, &payload(1, 60));
    bench.wait_tx();
    assert_eq!(bench.net.stop().len(), 2);
}

#[test]
fn resets_over_an_interface_that_is_gone_log_a_bounded_number_of_lines() {
    let mut bench = Bench::new();
    bench.control.detached.store(true, Ordering::SeqCst);
    let lines = lines_of(|| {
        for _ in 0..100 {
            bench.start(STATUS);
            bench.net.stop();
        }
    });
    assert!((1..=60).contains(&lines), "{lines} lines");
}

#[test]
fn interface_that_goes_down_again_as_it_comes_up_is_watched_on() {
    let mut bench = blocked();
    bench.control.send_error.store(libc::EIO, Ordering::SeqCst);
    bench
        .control
        .receive_error
        .store(libc::EIO, Ordering::SeqCst);
    bench.offer_rx(&[writable(DATA, 2048)]);
    wait_until(|| status(&bench) == [0, 0]);
    // Room again: what waited is sent, and fails.
    while bench.tx.device_used_index() < 250 {
        bench.host_gets();
        thread::sleep(QUIET);
    }
    wait_until(|| status(&bench) == [1, 0]);
}

#[test]
fn nothing_goes_through_a_link_that_is_set_down() {
    let mut bench = Bench::started(STATUS);
    let handle = bench.net.handle();
    handle.set_link(false);
    assert!(!handle.is_link_up());
    assert_eq!(status(&bench), [0, 0]);
    assert_eq!(bench.interrupt.config_count(), 1);
    assert_eq!(count(&bench.metrics.link_downs), 1);

    bench.offer_rx(&[writable(DATA + 0x1000, 2048)]);
    bench.host_sends(&payload(1, 60));
    wait_count(&bench.metrics.rx_link_down, 1);
    bench.rx_stays_unused();
    bench.guest_sends(DATA, &payload(2, 60));
    bench.wait_tx();
    bench.host_gets_nothing();
    assert_eq!(count(&bench.metrics.tx_link_down), 1);

    handle.set_link(true);
    assert_eq!(status(&bench), [1, 0]);
    assert_eq!(bench.interrupt.config_count(), 2);
    bench.rx_stays_unused();
    bench.host_sends(&payload(3, 60));
    assert_eq!(bench.wait_rx().len, 72);
    assert_eq!(bench.read(DATA + 0x100c, 60), payload(3, 60));
    bench.guest_sends(DATA, &payload(4, 60));
    assert_eq!(bench.host_gets(), payload(4, 60));
}

#[test]
fn packets_are_lost_on_a_link_that_is_down_whether_or_not_there_are_buffers() {
    let bench = Bench::started(STATUS);
    bench.host_sends(&payload(1, 60));
    wait_count(&bench.metrics.rx_starved, 1);
    bench.net.handle().set_link(false);
    wait_count(&bench.metrics.rx_link_down, 1);
    for _ in 0..200 {
        bench.host_sends(&payload(1, 60));
    }
    wait_count(&bench.metrics.rx_link_down, 201);
}

#[test]
fn chains_that_wait_for_room_come_back_when_the_link_is_set_down() {
    let mut bench = blocked();
    bench.net.handle().set_link(false);
    for _ in 0..250 {
        bench.wait_tx();
    }
    assert_eq!(
        count(&bench.metrics.tx_packets) + count(&bench.metrics.tx_link_down),
        250
    );
}

#[test]
fn link_that_was_set_down_stays_so_over_resets_and_is_saved() {
    let mut bench = Bench::new();
    bench.net.handle().set_link(false);
    bench.net.reset();
    bench.start(STATUS);
    assert_eq!(status(&bench), [0, 0]);
    bench.net.stop();
    let saved = crate::state::Persist::save(&bench.net);
    let mut other = Bench::new();
    crate::state::Persist::restore(&mut other.net, &saved).unwrap();
    assert!(!other.net.handle().is_link_up());
    assert_eq!(other.net.handle().port(), PortState::Up);
}

#[test]
fn link_can_be_down_from_the_start() {
    let (port, _control, _host) = SocketPort::pair(Offloads::empty());
    let options = NetOptions {
        link: false,
        ..options()
    };
    let net = Net::new("a", vec![port], options).unwrap();
    assert!(!net.handle().is_link_up());
}

#[test]
fn change_of_a_link_that_stands_still_is_told_when_it_goes_on() {
    let mut bench = Bench::started(STATUS);
    let queues = bench.net.stop();
    bench.net.handle().set_link(false);
    assert_eq!(bench.interrupt.config_count(), 0);
    let interrupt = Arc::clone(&bench.interrupt) as _;
    bench
        .net
        .start(crate::virtio::Activation {
            memory: bench.memory.clone(),
            queues,
            features: STATUS,
            interrupt,
        })
        .unwrap();
    assert_eq!(bench.interrupt.config_count(), 1);
}

/// Counts what it is told.
#[derive(Default)]
struct Observer(AtomicU64);

impl LinkObserver for Observer {
    fn link_changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn observer_is_told_of_the_interface_and_not_of_what_the_owner_does() {
    let observer = Arc::new(Observer::default());
    let (port, control, _host) = SocketPort::pair(Offloads::all());
    let options = NetOptions {
        observer: Some(Arc::clone(&observer) as _),
        ..options()
    };
    let mut bench = Bench::new();
    bench.net = Net::new("_net0", vec![port], options).unwrap();
    bench.start(STATUS);
    let handle = bench.net.handle();
    handle.set_link(false);
    handle.set_link(true);
    assert_eq!(observer.0.load(Ordering::SeqCst), 0);
    control.send_error.store(libc::EBADFD, Ordering::SeqCst);
    for _ in 0..10 {
        bench.guest_sends(DATA, &payload(1, 60));
        bench.wait_tx();
    }
    assert_eq!(observer.0.load(Ordering::SeqCst), 1);
    assert_eq!(handle.port(), PortState::Gone);
}
