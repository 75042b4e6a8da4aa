//! Any driver and any owner, against a set of blocks.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Request(u16, u64, u16),
    Resize(u64),
    Pause,
    Reset,
    Host(bool),
}

fn steps() -> impl Strategy<Value = Step> {
    let near = (-2_i64..=BLOCKS as i64 + 2, 0..3_u64).prop_map(|(block, odd)| {
        let address = ADDRESS.wrapping_add_signed(block * BLOCK as i64);
        // Mostly the beginning of a block.
        address + if odd == 2 { BLOCK / 2 } else { 0 }
    });
    let address = prop_oneof![20 => near, 1 => any::<u64>()];
    let count = prop_oneof![20 => 0..40_u16, 1 => any::<u16>()];
    prop_oneof![
        16 => (0..5_u16, address, count).prop_map(|(kind, address, count)| Step::Request(kind, address, count)),
        4 => (0..BLOCKS + 2, 0..4_u64).prop_map(|(blocks, odd)| Step::Resize(blocks * BLOCK + odd / 3)),
        1 => Just(Step::Pause),
        1 => Just(Step::Reset),
        2 => any::<bool>().prop_map(Step::Host),
    ]
}

/// What the device is to be.
struct Model {
    plugged: BTreeSet<u64>,
    requested: u64,
    host_fails: bool,
}

impl Model {
    fn answer(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        if kind == UNPLUG_ALL {
            if self.host_fails {
                return BUSY;
            }
            self.plugged.clear();
            return ACK;
        }
        let start = u128::from(address);
        let end = start + u128::from(count) * u128::from(BLOCK);
        let region = u128::from(ADDRESS)..=u128::from(ADDRESS + SIZE);
        let fits = region.contains(&start) && region.contains(&end);
        if kind > STATE || count == 0 || !fits || !address.is_multiple_of(BLOCK) {
            return ERROR;
        }
        let first = (address - ADDRESS) / BLOCK;
        let blocks: BTreeSet<u64> = (first..first + u64::from(count)).collect();
        let have = self.plugged.intersection(&blocks).count();
        match kind {
            STATE if have == blocks.len() => PLUGGED,
            STATE if have == 0 => UNPLUGGED,
            STATE => MIXED,
            PLUG if have > 0 => ERROR,
            PLUG if (self.plugged.len() + blocks.len()) as u64 * BLOCK > self.requested => NACK,
            UNPLUG if have < blocks.len() => ERROR,
            _ if self.host_fails => BUSY,
            PLUG => {
                self.plugged.extend(blocks);
                ACK
            }
            _ => {
                self.plugged.retain(|block| !blocks.contains(block));
                ACK
            }
        }
    }
}

proptest! {
    #[test]
    fn device_is_a_set_of_blocks(steps in prop::collection::vec(steps(), 1..60)) {
        let mut rig = Rig::new(SIZE / 2);
        let mut model = Model { plugged: BTreeSet::new(), requested: SIZE / 2, host_fails: false };
        for step in steps {
            match step {
                Step::Request(kind, address, count) => {
                    let expected = model.answer(kind, address, count);
                    prop_assert_eq!(rig.request_at(kind, address, count), expected);
                }
                Step::Resize(size) => {
                    let fits = size <= SIZE && size.is_multiple_of(BLOCK);
                    prop_assert_eq!(rig.handle.resize(size).is_ok(), fits);
                    if fits {
                        model.requested = size;
                    }
                }
                Step::Pause => {
                    let queues = rig.device.stop();
                    rig.resume(queues);
                }
                Step::Reset => {
                    rig.device.stop();
                    rig.device.reset();
                    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
                    rig.device.start(rig.activation()).unwrap();
                }
                Step::Host(fails) => {
                    model.host_fails = fails;
                    rig.region.fails_to_populate.store(fails, Ordering::Relaxed);
                    rig.region.fails_to_discard.store(fails, Ordering::Relaxed);
                }
            }
            let plugged = model.plugged.len() as u64 * BLOCK;
            prop_assert_eq!(rig.handle.plugged(), plugged);
            prop_assert_eq!(
                config(&rig.device),
                [BLOCK, 0, ADDRESS, SIZE, SIZE, plugged, model.requested]
            );
            for done in rig.region.take_done() {
                let (Done::Populated(range) | Done::Discarded(range)) = done;
                prop_assert!(!range.is_empty() && range.end <= SIZE, "{range:?}");
                prop_assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK));
            }
        }
        let ranges = rig.handle.plugged_ranges();
        let blocks: BTreeSet<u64> = ranges
            .into_iter()
            .flat_map(|range| range.start / BLOCK..range.end / BLOCK)
            .collect();
        prop_assert_eq!(blocks, model.plugged);
        prop_assert_eq!(rig.interrupt.needs_reset_count(), 0);
    }
}
