//! Drivers that do what they should not.

use proptest::prelude::*;

use super::super::pages::MAX_PAGES;
use super::*;
use crate::virtio::StartError;
use crate::virtio::driver::{Buffer, Descriptor, writable};

#[test]
fn pages_that_are_no_memory_are_passed_over() {
    let mut rig = Rig::new();
    rig.fill(FREE);
    let hole = number(LOW_LEN);
    rig.send(
        INFLATE,
        &[
            u32::MAX,
            hole,
            number(FREE),
            number(HIGH + HIGH_LEN),
            hole + 1,
        ],
    );
    assert!(rig.is_gone(FREE));
    assert_eq!(rig.metric(|metrics| &metrics.inflated_bytes), PAGE);
    assert_eq!(rig.metric(|metrics| &metrics.refused_bytes), 4 * PAGE);
    assert_eq!(rig.interrupt.needs_reset_count(), 0);
}

#[test]
fn chains_that_are_no_request_do_nothing() {
    let mut rig = Rig::new();
    rig.fill(FREE);
    rig.write(REQUEST, &number(FREE).to_le_bytes());
    let too_long = 4 * (MAX_PAGES as u32 + 1);
    let chains: [&[Buffer]; 6] = [
        &[writable(REQUEST, 4)],
        &[readable(REQUEST, 3)],
        &[readable(REQUEST, 0)],
        &[readable(LOW_LEN, 4)],
        &[readable(REQUEST, too_long)],
        &[writable(REQUEST, 4), readable(REQUEST, 4)],
    ];
    for (count, chain) in (1..).zip(chains) {
        rig.exchange(INFLATE, chain);
        assert_eq!(rig.metric(|metrics| &metrics.malformed), count, "{chain:?}");
        assert!(!rig.is_gone(FREE), "{chain:?}");
    }
    // Numbers may be divided anywhere.
    rig.exchange(INFLATE, &[readable(REQUEST, 1), readable(REQUEST + 1, 3)]);
    assert!(rig.is_gone(FREE));
}

#[test]
fn reports_of_readable_memory_and_of_too_many_ranges_do_nothing() {
    let mut rig = Rig::new();
    rig.fill(FREE);
    let report = [writable(FREE, PAGE as u32), readable(REQUEST, 4)];
    rig.exchange(REPORTING, &report);
    let table = 0x4_0000;
    let many = [writable(FREE, PAGE as u32); 257];
    let head = rig.rings[REPORTING].push_indirect(table, &many);
    rig.rings[REPORTING].kick();
    let used = rig.rings[REPORTING].wait_used(TIMEOUT).unwrap();
    assert_eq!(used.head, head);
    assert!(!rig.is_gone(FREE));
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 2);
    // Beyond all addresses.
    rig.exchange(REPORTING, &[writable(u64::MAX - 10, u32::MAX)]);
    rig.exchange(REPORTING, &[writable(1 << 50, u32::MAX)]);
    rig.exchange(REPORTING, &[writable(FREE, 0)]);
    assert!(!rig.is_gone(FREE));
    assert_eq!(rig.metric(|metrics| &metrics.reported_bytes), 0);
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 0);
}

#[test]
fn parts_of_a_page_stay() {
    let mut rig = Rig::new();
    rig.fill(FREE);
    rig.fill(FREE + PAGE);
    rig.exchange(REPORTING, &[writable(FREE + 1, 2 * PAGE as u32 - 2)]);
    assert!(!rig.is_gone(FREE) && !rig.is_gone(FREE + PAGE));
    rig.exchange(REPORTING, &[writable(FREE + 1, 2 * PAGE as u32 - 1)]);
    assert!(!rig.is_gone(FREE) && rig.is_gone(FREE + PAGE));
}

#[test]
fn looping_chain_does_nothing_and_broken_ring_needs_a_reset() {
    let mut rig = Rig::new();
    let looping = Descriptor {
        address: REQUEST,
        len: 4,
        flags: 1,
        next: 0,
    };
    for ring in [INFLATE, DEFLATE, REPORTING] {
        rig.rings[ring].set_descriptor(0, looping);
        rig.rings[ring].offer(0);
        rig.rings[ring].kick();
        assert_eq!(rig.rings[ring].wait_used(TIMEOUT).unwrap().head, 0);
    }
    assert_eq!(rig.metric(|metrics| &metrics.malformed), 3);
    rig.rings[DEFLATE].set_available_index(1000);
    rig.rings[DEFLATE].kick();
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.metric(|metrics| &metrics.broken_rings), 1);
    // It stops all the same.
    assert_eq!(rig.device.stop().len(), 4);
}

#[test]
fn balloon_needs_its_first_two_queues() {
    let mut rig = Rig::new();
    let mut queues = rig.device.stop();
    queues.remove(1);
    let activation = Activation {
        queues,
        ..rig.activation()
    };
    assert!(matches!(
        rig.device.start(activation),
        Err(StartError::QueueMissing(1))
    ));
}

#[test]
fn driver_writes_its_own_fields_only() {
    let mut rig = Rig::with(
        BalloonSetup {
            size: 7 * PAGE,
            ..setup()
        },
        ALL,
        4,
    );
    rig.device.write_config(0, &[0xff; 16]);
    assert_eq!(config(&rig.device), [7, u32::MAX, 0, u32::MAX]);
    assert_eq!(rig.handle.actual(), u64::from(u32::MAX) * PAGE);
    rig.device.write_config(5, &[0]);
    assert_eq!(config(&rig.device)[1], 0xffff_00ff);
    rig.device.write_config(14, &[0; 8]);
    rig.device.write_config(u64::MAX, &[0; 8]);
    assert_eq!(config(&rig.device)[3], 0xffff);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_numbers_take_only_the_pages_that_they_name(
        near in prop::collection::vec(0..64_u32, 0..64),
        far in prop::collection::vec(any::<u32>().prop_map(|number| number | 1 << 20), 0..8),
    ) {
        prop_assume!(!near.is_empty() || !far.is_empty());
        let mut rig = Rig::new();
        for page in 0..64 {
            rig.fill(FREE + page * PAGE);
        }
        let numbers: Vec<u32> = near.iter().map(|page| number(FREE) + page).chain(far).collect();
        rig.send(INFLATE, &numbers);
        for page in 0..64_u32 {
            prop_assert_eq!(rig.is_gone(FREE + u64::from(page) * PAGE), near.contains(&page));
        }
    }
}
