//! The control queue.

use std::sync::Mutex;

use super::wide::{COMMAND, CONTROLLED, Wide};
use super::*;
use crate::state::Persist;
use crate::virtio::Activation;
use crate::virtio::driver::Descriptor;

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

const PROMISC_OFF: [u8; 3] = [0, 0, 0];

/// A frame of 60 bytes to `to`.
fn to(to: [u8; 6]) -> Vec<u8> {
    let mut frame = payload(1, 60);
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

fn tagged(vlan: u16) -> Vec<u8> {
    let mut frame = to(MAC);
    frame[12..14].copy_from_slice(&[0x81, 0]);
    frame[14..16].copy_from_slice(&vlan.to_be_bytes());
    frame
}

/// A device with many buffers to receive into.
fn bench() -> Wide {
    let mut wide = Wide::started(1, CONTROLLED);
    for at in 0..64 {
        wide.offer_rx(0, DATA + at * 0x1000);
    }
    wide
}

#[test]
fn changed_address_is_seen_in_the_configuration_and_received_for() {
    let mut wide = bench();
    assert_eq!(wide.command(&PROMISC_OFF), 0);
    assert!(wide.arrives(0, &to(MAC)));
    assert_eq!(wide.command(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(wide.config(0, 6), OTHER);
    assert!(!wide.arrives(0, &to(MAC)));
    assert!(wide.arrives(0, &to(OTHER)));
    assert_eq!(count(&wide.metrics.rx_filtered), 1);
    wide.net.stop();
    wide.net.reset();
    assert_eq!(
        wide.config(0, 6),
        MAC,
        "the next driver finds the device's own"
    );
}

#[test]
fn packets_pass_as_the_driver_wants_them() {
    let mut wide = bench();
    assert!(wide.arrives(0, &to(OTHER)) && wide.arrives(0, &to(GROUP)));
    assert_eq!(wide.command(&PROMISC_OFF), 0);
    assert!(!wide.arrives(0, &to(OTHER)) && !wide.arrives(0, &to(GROUP)));
    let mut table = vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    table.extend_from_slice(&GROUP);
    assert_eq!(wide.command(&table), 0);
    assert!(!wide.arrives(0, &to(OTHER)) && wide.arrives(0, &to(GROUP)));
    assert!(wide.arrives(0, &to([0xff; 6])));
    assert_eq!(wide.command(&[0, 0, 1]), 0);
    assert!(wide.arrives(0, &to(OTHER)));
}

#[test]
fn vlan_passes_once_it_was_added_and_not_after_it_was_deleted() {
    let mut wide = bench();
    assert_eq!(wide.command(&PROMISC_OFF), 0);
    assert!(!wide.arrives(0, &tagged(5)));
    assert_eq!(wide.command(&[2, 0, 5, 0]), 0);
    assert!(wide.arrives(0, &tagged(5)) && !wide.arrives(0, &tagged(6)));
    assert_eq!(wide.command(&[2, 1, 5, 0]), 0);
    assert!(!wide.arrives(0, &tagged(5)));
    assert!(wide.arrives(0, &to(MAC)));
}

#[test]
fn packet_is_filtered_wherever_descriptors_divide_it() {
    let mut wide = Wide::started(1, CONTROLLED);
    assert_eq!(wide.command(&PROMISC_OFF), 0);
    for first in 1..40 {
        let pieces = [
            writable(DATA, first),
            writable(DATA + 0x1000, 3),
            writable(DATA + 0x2000, 100),
        ];
        wide.rx[0].push(&pieces);
        wide.rx[0].kick();
        let filtered = count(&wide.metrics.rx_filtered);
        wide.hosts[0].send(&frame(&to(OTHER))).unwrap();
        wait_count(&wide.metrics.rx_filtered, filtered + 1);
        wide.hosts[0].send(&frame(&to(MAC))).unwrap();
        let used = wide.rx[0].wait_used(5 * SECOND);
        assert_eq!(used.map(|used| used.len), Some(72), "{first}");
    }
}

#[test]
fn offloads_change_while_the_device_runs() {
    let features =
        CONTROLLED | bit(spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | bit(1) | bit(7) | bit(8);
    let mut wide = Wide::started(1, features);
    let set = |mask: u64| [[5, 0].as_slice(), &mask.to_le_bytes()].concat();
    let last = |wide: &Wide| *wide.controls[0].offloads.lock().unwrap().last().unwrap();
    let both = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6;
    assert_eq!(last(&wide), both);
    assert_eq!(wide.command(&set(bit(1))), 0);
    assert_eq!(last(&wide), Offloads::CSUM);
    assert_eq!(
        wide.command(&set(bit(1) | bit(10))),
        1,
        "not accepted at first"
    );
    assert_eq!(last(&wide), Offloads::CSUM);

    // They are the driver's until it resets the device.
    let queues = wide.net.stop();
    assert_eq!(last(&wide), Offloads::empty());
    let saved = wide.net.save();
    let resume = |queues| Activation {
        memory: wide.memory.clone(),
        queues,
        features,
        interrupt: wide.interrupt.clone(),
    };
    wide.net.start(resume(queues)).unwrap();
    assert_eq!(last(&wide), Offloads::CSUM);
    let mut other = Wide::new(1);
    other.net.restore(&saved).unwrap();
    other.start(features);
    assert_eq!(last(&other), Offloads::CSUM);
    wide.net.stop();
    wide.net.reset();
    wide.rx[0] = Ring::new(&wide.memory, 0x2_0000, SIZE);
    wide.tx[0] = Ring::new(&wide.memory, 0x2_4000, SIZE);
    wide.control = Ring::new(&wide.memory, 0x2_8000, SIZE);
    wide.start(features);
    assert_eq!(last(&wide), both);

    wide.controls[0]
        .refuses_offloads
        .store(true, Ordering::SeqCst);
    assert_eq!(wide.command(&set(bit(1))), 1);
    assert_eq!(last(&wide), both);
    wide.controls[0]
        .refuses_offloads
        .store(false, Ordering::SeqCst);
}

#[test]
fn driver_announces_itself_when_it_is_asked_to() {
    let mut wide = Wide::started(1, CONTROLLED);
    assert!(wide.net.handle().announce());
    assert_eq!(wide.interrupt.config_count(), 1);
    assert_eq!(wide.config(6, 2), [3, 0]);
    assert_eq!(wide.command(&[3, 0]), 0);
    assert_eq!(wide.config(6, 2), [1, 0]);

    // While it stands still it is asked when it goes on.
    let queues = wide.net.stop();
    assert!(wide.net.handle().announce());
    let saved = wide.net.save();
    let mut other = Wide::new(1);
    other.net.restore(&saved).unwrap();
    assert_eq!(other.net.save(), saved);
    let activation = |features| Activation {
        memory: wide.memory.clone(),
        queues,
        features,
        interrupt: wide.interrupt.clone(),
    };
    wide.net.start(activation(CONTROLLED)).unwrap();
    assert_eq!(wide.interrupt.config_count(), 2);
    assert_eq!(wide.config(6, 2), [3, 0]);
}

#[test]
fn driver_that_cannot_announce_itself_is_not_asked() {
    let wide = Wide::started(1, CONTROLLED & !bit(spec::VIRTIO_NET_F_GUEST_ANNOUNCE));
    assert!(!wide.net.handle().announce());
    assert_eq!(wide.config(6, 2), [1, 0]);
    assert_eq!(wide.interrupt.config_count(), 0);
}

#[test]
fn commands_that_are_none_are_answered_with_an_error() {
    let mut wide = Wide::started(1, CONTROLLED);
    let commands: [&[u8]; 6] = [
        &[9, 9],
        &[0],
        &[0, 0],
        &[1, 1, 1, 2],
        &[4, 0, 1, 0],
        &[0, 0, 7],
    ];
    for command in commands {
        assert_eq!(wide.command(command), 1, "{command:?}");
    }
    assert_eq!(count(&wide.metrics.control_refused), 6);
    assert_eq!(wide.interrupt.needs_reset_count(), 0);
    assert!(wide.interrupt.queue_count(2) >= 1);
}

#[test]
fn command_that_nothing_can_be_answered_to_is_not_carried_out() {
    let mut wide = Wide::started(1, CONTROLLED);
    wide.write(COMMAND, &[1, 1, 2, 0, 0, 0, 0, 9]);
    assert_eq!(wide.offer_control(&[readable(COMMAND, 8)]).len, 0);
    assert_eq!(wide.config(0, 6), MAC);
    assert_eq!(count(&wide.metrics.control_malformed), 1);
}

#[test]
fn command_may_be_divided_anywhere() {
    for cut in 1..8 {
        let mut wide = Wide::started(1, CONTROLLED);
        wide.write(COMMAND, &[1, 1, 2, 0, 0, 0, 0, 9]);
        let parts = [
            readable(COMMAND, cut),
            readable(COMMAND + u64::from(cut), 8 - cut),
            writable(DATA, 4),
        ];
        assert_eq!(wide.offer_control(&parts).len, 1);
        assert_eq!(wide.read(DATA, 2), [0, 0]);
        assert_eq!(wide.config(0, 6), OTHER);
    }
}

#[test]
fn command_that_is_endless_is_not_read() {
    let mut wide = Wide::started(1, CONTROLLED);
    let mut table = vec![1, 0];
    table.extend_from_slice(&200_000_u32.to_le_bytes());
    wide.write(COMMAND, &table);
    let parts = [readable(COMMAND, 0x10_0000), writable(DATA + 0x20_0000, 1)];
    assert_eq!(wide.offer_control(&parts).len, 1);
    assert_eq!(wide.read(DATA + 0x20_0000, 1), [1]);
}

#[test]
fn malformed_chains_of_commands_are_returned_and_the_next_one_is_carried_out() {
    let mut wide = Wide::started(1, CONTROLLED);
    let chains = [
        // In itself.
        Descriptor {
            address: COMMAND,
            len: 8,
            flags: 1,
            next: 200,
        },
        // Outside memory.
        Descriptor {
            address: 1 << 40,
            len: 8,
            flags: 0,
            next: 0,
        },
        // Nothing.
        Descriptor::default(),
    ];
    for (at, descriptor) in chains.into_iter().enumerate() {
        wide.control.set_descriptor(200, descriptor);
        wide.control.offer(200);
        wide.control.kick();
        let used = wide.control.wait_used(5 * SECOND);
        assert_eq!(used, Some(Used { head: 200, len: 0 }));
        assert_eq!(count(&wide.metrics.control_malformed), at as u64 + 1);
    }
    assert_eq!(wide.command(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
}

#[test]
fn broken_control_ring_leaves_the_data_queues_at_work() {
    let mut wide = Wide::started(1, CONTROLLED);
    wide.control.offer(SIZE);
    wide.control.kick();
    assert!(wide.interrupt.wait_needs_reset(5 * SECOND));
    wide.offer_rx(0, DATA);
    assert!(wide.arrives(0, &payload(1, 60)));
    assert_eq!(wide.net.stop().len(), 3);
}

/// Commands that change the host's interface each.
fn flood(wide: &mut Wide, commands: u64) -> Duration {
    let begin = Instant::now();
    for at in 0..commands {
        let mask = if at % 2 == 0 { bit(1) } else { bit(1) | bit(7) };
        let bytes = [[5, 0].as_slice(), &mask.to_le_bytes()].concat();
        assert_eq!(wide.command(&bytes), 0);
    }
    begin.elapsed()
}

#[test]
fn host_is_not_asked_for_changes_as_often_as_a_driver_likes() {
    let features = CONTROLLED | bit(spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | bit(1) | bit(7);
    let mut wide = Wide::started(1, features);
    // 64 at once, and 64 in each second from then on.
    let time = flood(&mut wide, 96);
    assert!(time >= Duration::from_millis(300), "{time:?}");
    let changes = wide.controls[0].offloads.lock().unwrap().len();
    assert!(changes >= 96, "{changes}");
    // Packets do not wait for it.
    wide.control
        .push(&[readable(COMMAND, 10), writable(DATA, 1)]);
    wide.control.kick();
    wide.guest_sends(0, &payload(1, 60));
}

#[test]
fn commands_of_a_driver_under_any_bytes_do_no_harm() {
    let seeds = Mutex::new(0x1234_5678_u32);
    let next = || {
        let mut seed = seeds.lock().unwrap();
        *seed ^= *seed << 13;
        *seed ^= *seed >> 17;
        *seed ^= *seed << 5;
        *seed
    };
    let mut wide = Wide::started(2, wide::WIDE);
    for _ in 0..400 {
        let len = 2 + next() as usize % 24;
        let mut bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        bytes[0] %= 7;
        bytes[1] %= 3;
        // Pairs wait for their limit; others do not.
        if bytes[0] != 4 {
            assert!(wide.command(&bytes) <= 1);
        }
    }
    assert_eq!(wide.interrupt.needs_reset_count(), 0);
    assert_eq!(wide.net.stop().len(), 5);
}
