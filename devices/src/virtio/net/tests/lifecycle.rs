//! Start, stop, reset, saved state, features and configuration space.

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::*;
use crate::state::{Persist, Section, StateError};
use crate::virtio::net::NetError;
use crate::virtio::net::device::State;
use crate::virtio::{Activation, ActiveQueue, StartError};

impl Bench {
    fn start_with(&mut self, queues: Vec<ActiveQueue>, features: u64) {
        for active in &queues {
            active.notify.write(1).unwrap();
        }
        let interrupt = Arc::clone(&self.interrupt) as _;
        self.net
            .start(Activation {
                memory: self.memory.clone(),
                queues,
                features,
                interrupt,
            })
            .unwrap();
    }
}

#[test]
fn offered_features_follow_the_port() {
    let ring = PLAIN | bit(VIRTIO_RING_F_EVENT_IDX) | bit(VIRTIO_RING_F_INDIRECT_DESC);
    let always = ring | bit(5) | bit(15) | bit(16) | (17..=21).chain([23]).map(bit).sum::<u64>();
    let (port, _control, _host) = SocketPort::pair(Offloads::empty());
    let net = Net::new(
        "a",
        vec![port],
        NetOptions {
            mtu: None,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(net.features(), always);

    let (port, _control, _host) = SocketPort::pair(Offloads::CSUM | Offloads::TSO6);
    let net = Net::new("a", vec![port], options()).unwrap();
    assert_eq!(
        net.features(),
        always | bit(3) | bit(0) | bit(1) | bit(2) | bit(8) | bit(12)
    );

    let (port, _control, _host) = SocketPort::pair(Offloads::all());
    let net = Net::new(
        "a",
        vec![port],
        NetOptions {
            offloads: Offloads::CSUM,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(net.features(), always | bit(3) | bit(0) | bit(1) | bit(2));
}

#[test]
fn configuration_space_holds_address_link_and_mtu() {
    let bench = Bench::new();
    let mut config = [0xaa; 14];
    bench.net.read_config(0, &mut config);
    assert_eq!(
        config,
        [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 0x05, 0xaa, 0xaa]
    );
    let mut field = [0xaa; 2];
    bench.net.read_config(u64::MAX, &mut field);
    assert_eq!(field, [0xaa; 2]);
}

#[test]
fn write_to_configuration_space_changes_nothing() {
    let mut bench = Bench::new();
    bench.net.write_config(0, &[9; 12]);
    let mut mac = [0; 6];
    bench.net.read_config(0, &mut mac);
    assert_eq!(mac, MAC);
}

#[test]
fn impossible_options_are_refused() {
    let make = |options| {
        let (port, _control, _host) = SocketPort::pair(Offloads::empty());
        Net::new("a", vec![port], options)
            .err()
            .map(|error| error.to_string())
    };
    let group = [1, 0, 0, 0, 0, 1];
    assert_eq!(
        make(NetOptions {
            queue_size: 100,
            ..options()
        }),
        Some(NetError::QueueSize(100).to_string())
    );
    assert_eq!(
        make(NetOptions {
            queue_size: 0,
            ..options()
        }),
        Some(NetError::QueueSize(0).to_string())
    );
    assert_eq!(
        make(NetOptions {
            mtu: Some(67),
            ..options()
        }),
        Some(NetError::Mtu(67).to_string())
    );
    assert_eq!(
        make(NetOptions {
            mac: group,
            ..options()
        }),
        Some(NetError::Mac(group).to_string())
    );
    assert_eq!(
        make(NetOptions {
            mac: [0; 6],
            ..options()
        }),
        Some(NetError::Mac([0; 6]).to_string())
    );
    assert_eq!(
        make(NetOptions {
            mtu: Some(68),
            ..options()
        }),
        None
    );
}

#[test]
fn accepted_offloads_are_set_on_the_port_while_it_runs() {
    let mut bench = Bench::started(PLAIN | bit(1) | bit(7) | bit(0) | bit(11) | bit(12));
    assert_eq!(
        *bench.control.offloads.lock().unwrap(),
        [Offloads::CSUM | Offloads::TSO4]
    );
    bench.net.stop();
    assert_eq!(
        bench.control.offloads.lock().unwrap().last(),
        Some(&Offloads::empty())
    );
}

#[test]
fn port_that_refuses_accepted_offloads_fails_the_start() {
    let mut bench = Bench::new();
    bench.control.refuses_offloads.store(true, Ordering::SeqCst);
    let activation = driver::activation(
        &bench.memory,
        &[&bench.rx, &bench.tx],
        PLAIN,
        &bench.interrupt,
    );
    assert!(matches!(
        bench.net.start(activation),
        Err(StartError::Resource { .. })
    ));
    assert!(bench.net.stop().is_empty());

    bench
        .control
        .refuses_offloads
        .store(false, Ordering::SeqCst);
    bench.start(PLAIN);
    bench.guest_sends(DATA, &payload(1, 60));
    assert_eq!(bench.host_gets(), payload(1, 60));
}

#[test]
fn both_queues_are_needed() {
    let mut bench = Bench::new();
    let activation = driver::activation(&bench.memory, &[&bench.rx], PLAIN, &bench.interrupt);
    assert!(matches!(
        bench.net.start(activation),
        Err(StartError::QueueMissing(1))
    ));
    let mut activation = driver::activation(
        &bench.memory,
        &[&bench.rx, &bench.tx],
        PLAIN,
        &bench.interrupt,
    );
    activation.queues.remove(0);
    assert!(matches!(
        bench.net.start(activation),
        Err(StartError::QueueMissing(0))
    ));
}

#[test]
fn buffers_that_no_packet_came_for_are_handed_back() {
    let mut bench = Bench::started(MERGE);
    let heads: Vec<_> = (0..8)
        .map(|at| bench.rx.push(&[writable(DATA + at * 0x1000, 512)]))
        .collect();
    bench.rx.kick();
    bench.host_sends(&payload(1, 100));
    assert_eq!(bench.wait_rx().head, heads[0]);
    let queues = bench.net.stop();
    let indexes: Vec<_> = queues.iter().map(|active| active.index).collect();
    assert_eq!(indexes, [0, 1]);
    assert_eq!(queues[0].queue.next_avail(), 1);
    assert_eq!(queues[0].queue.next_used(), 1);

    bench.start_with(queues, MERGE);
    bench.host_sends(&payload(2, 1000));
    for (head, len) in [(heads[1], 512), (heads[2], 500)] {
        assert_eq!(bench.wait_rx(), Used { head, len });
    }
    assert_eq!(bench.read(DATA + 0x1000, 12), received_header(2));
    assert_eq!(bench.read(DATA + 0x1000 + 12, 500), payload(2, 1000)[..500]);
}

#[test]
fn stops_and_starts_under_traffic_lose_nothing() {
    const PACKETS: usize = 3000;
    let features = MERGE | bit(VIRTIO_RING_F_EVENT_IDX);
    let mut bench = Bench::started(features);
    let host = bench.host.try_clone().unwrap();
    let echo = thread::spawn(move || {
        let mut frame = vec![0; 4096];
        for _ in 0..PACKETS {
            let len = host.recv(&mut frame).expect("the guest sends");
            host.send(&frame[..len]).expect("the guest receives");
        }
    });
    for at in 0..8 {
        bench.rx.push(&[writable(DATA + at * 0x1000, 1024)]);
    }
    bench.rx.kick();

    let (mut sent, mut received, mut offered) = (0, 0, 8);
    let (mut expect, mut got) = (Vec::new(), Vec::new());
    let end = Instant::now() + 60 * SECOND;
    while received < PACKETS {
        assert!(
            Instant::now() < end,
            "{received} of {sent} packets came back"
        );
        if sent < PACKETS && sent - received < 64 {
            let len = 60 + sent % 1400;
            let bytes = payload(sent as u8, len);
            bench.guest_sends(DATA + 0x10_0000 + (sent % 64) as u64 * 0x1000, &bytes);
            expect.push(bytes);
            sent += 1;
        }
        while bench.tx.pop_used().is_some() {}
        while let Some(used) = bench.rx.pop_used() {
            let address = DATA + (offered - 8) % 8 * 0x1000;
            let bytes = bench.read(address, used.len as usize);
            if got.is_empty() {
                // `num_buffers`, written by the device, tells how many buffers the packet has.
                got.push((usize::from(bytes[10]), Vec::new()));
            }
            let (buffers, packet) = &mut got[0];
            packet.extend_from_slice(&bytes);
            *buffers -= 1;
            if *buffers == 0 {
                assert!(packet[12..] == expect[received], "packet {received}");
                received += 1;
                got.clear();
            }
            bench.offer_rx(&[writable(address, 1024)]);
            offered += 1;
        }
        if sent % 37 == 0 {
            let queues = bench.net.stop();
            assert_eq!(queues.len(), 2);
            bench.start_with(queues, features);
        }
    }
    echo.join().unwrap();
    assert_eq!(count(&bench.metrics.rx_packets), PACKETS as u64);
    assert_eq!(count(&bench.metrics.tx_packets), PACKETS as u64);
}

#[test]
fn resumed_device_waits_for_a_driver_that_runs_low() {
    let mut bench = Bench::started(MERGE);
    let long = payload(7, 1400);
    bench.offer_rx(&[writable(DATA, 1024)]);
    bench.offer_rx(&[writable(DATA + 0x1000, 1024)]);
    bench.host_sends(&payload(1, 60));
    assert_eq!(bench.wait_rx().len, 72);
    let queues = bench.net.stop();
    bench.start_with(queues, MERGE);
    // Of two buffers one is left, which a driver that filled its ring before will not let stand alone for long.
    bench.host_sends(&long);
    bench.rx_stays_unused();
    bench.offer_rx(&[writable(DATA, 1024)]);
    assert_eq!(bench.wait_rx().len, 1024);
    assert_eq!(bench.wait_rx().len, 1400 + 12 - 1024);
    assert_eq!(bench.read(DATA + 0x1000, 12), received_header(2));
    assert_eq!(count(&bench.metrics.rx_too_long), 0);
}

#[test]
fn stop_of_a_device_that_does_not_run_gives_no_queues() {
    let mut bench = Bench::new();
    assert!(bench.net.stop().is_empty());
    bench.start(PLAIN);
    assert_eq!(bench.net.stop().len(), 2);
    assert!(bench.net.stop().is_empty());
}

#[test]
fn unsegmented_packets_for_a_driver_that_went_are_thrown_away() {
    let mut bench = Bench::started(PLAIN | bit(1) | bit(7));
    bench.host_sends(&payload(1, 9000));
    bench.net.stop();
    bench.net.reset();
    bench.host_sends(&payload(2, 60));
    bench.rx = Ring::new(&bench.memory, RX_RING, SIZE);
    bench.tx = Ring::new(&bench.memory, TX_RING, SIZE);
    bench.start(PLAIN);
    bench.offer_rx(&[writable(DATA, 2048)]);
    assert_eq!(bench.wait_rx().len, 72);
    assert_eq!(bench.read(DATA + 12, 60), payload(2, 60));
}

#[test]
fn packets_from_before_the_first_driver_are_thrown_away() {
    let mut bench = Bench::new();
    bench.host_sends(&payload(1, 9000));
    bench.net.reset();
    bench.host_sends(&payload(2, 60));
    bench.start(PLAIN);
    bench.offer_rx(&[writable(DATA, 2048)]);
    assert_eq!(bench.wait_rx().len, 72);
    assert_eq!(count(&bench.metrics.rx_too_long), 0);
}

#[test]
fn packets_that_any_driver_takes_survive_a_reset() {
    let mut bench = Bench::new();
    bench.net.reset();
    bench.start(PLAIN);
    bench.host_sends(&payload(1, 60));
    bench.net.stop();
    bench.net.reset();
    bench.start(PLAIN);
    bench.offer_rx(&[writable(DATA, 2048)]);
    assert_eq!(bench.wait_rx().len, 72);
}

#[test]
fn restored_device_has_the_saved_state() {
    let mut bench = Bench::started(STATUS);
    bench
        .control
        .send_error
        .store(libc::EBADFD, Ordering::SeqCst);
    bench.guest_sends(DATA, &payload(1, 60));
    bench.wait_tx();
    bench.net.stop();
    let saved = bench.net.save();

    let (port, _control, _host) = SocketPort::pair(Offloads::all());
    let other = NetOptions {
        mac: [2, 0, 0, 0, 0, 9],
        mtu: Some(9000),
        ..options()
    };
    let mut fresh = Net::new("_net0", vec![port], other).unwrap();
    assert_ne!(fresh.save(), saved);
    fresh.restore(&saved).unwrap();
    assert_eq!(fresh.save(), saved);
    let read = |net: &Net<SocketPort>| {
        let mut config = [0; 12];
        net.read_config(0, &mut config);
        config
    };
    assert_eq!(read(&fresh), read(&bench.net));
    assert_eq!(read(&fresh)[6], 0, "the link was down");
    assert_eq!(fresh.features(), bench.net.features());
}

#[test]
fn link_that_was_saved_down_comes_up_with_a_good_port() {
    let mut bench = Bench::new();
    let state = changed(&bench.net, |state| state.port_up = false);
    bench.net.restore(&state).unwrap();
    assert!(!bench.net.handle().is_link_up());
    bench.start(STATUS);
    wait_until(|| bench.net.handle().is_link_up());
    wait_until(|| bench.interrupt.config_count() == 1);
}

#[test]
fn saved_state_that_no_device_has_is_refused() {
    let mut bench = Bench::new();
    let before = bench.net.save();
    let refused = |net: &mut Net<SocketPort>, change: fn(&mut State)| {
        let section = changed(net, change);
        match net.restore(&section) {
            Err(StateError::Field { field, .. }) => field,
            result => panic!("{result:?}"),
        }
    };
    let net = &mut bench.net;
    assert_eq!(refused(net, |state| state.mac = [0xff; 6]), "mac");
    assert_eq!(refused(net, |state| state.mtu = Some(1)), "mtu");
    assert_eq!(refused(net, |state| state.rules.mac = [0; 6]), "rules.mac");
    assert_eq!(refused(net, |state| state.pairs_in_use = 0), "pairs_in_use");
    assert_eq!(refused(net, |state| state.pairs_in_use = 2), "pairs_in_use");
    assert_eq!(
        refused(net, |state| state.offers_enough = vec![true; 9]),
        "offers_enough"
    );
    let newer = Section::new("virtio-net", 2, &state_of(net));
    assert!(matches!(
        net.restore(&newer),
        Err(StateError::Version { .. })
    ));
    assert_eq!(net.save(), before);
}

fn state_of(net: &Net<SocketPort>) -> State {
    net.save().decode("virtio-net", 1).unwrap()
}

/// The saved state of `net` with a change in it.
fn changed(net: &Net<SocketPort>, change: impl FnOnce(&mut State)) -> Section {
    let mut state = state_of(net);
    change(&mut state);
    Section::new("virtio-net", 1, &state)
}
