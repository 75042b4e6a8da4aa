//! Chains of any shape.

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE};

use super::disks::ScriptDisk;
use super::*;
use crate::virtio::driver::Descriptor;

const SIZE: u16 = 16;
const MEMORY: usize = 0x2_0000;
/// Headers of all kinds are here, and buffers from here on.
const BUFFERS: u64 = 0x8000;
const TABLE: u64 = 0x4000;

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => BUFFERS..MEMORY as u64,
        // On a header.
        8 => (0_u64..64).prop_map(|at| BUFFERS + 16 * at),
        1 => any::<u64>(),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(16),
        4 => (1_u32..8).prop_map(|count| count * 512),
        2 => Just(1),
        2 => Just(20),
        2 => 0_u32..0x1_0000,
        1 => any::<u32>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let flags = prop_oneof![12 => 0_u16..4, 1 => 0_u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address(), len(), flags, next).prop_map(|(address, len, flags, next)| Descriptor {
        address,
        len,
        flags,
        next,
    })
}

/// A chain like one of a driver: each descriptor leads to the next.
fn straight(mut table: Vec<Descriptor>) -> Vec<Descriptor> {
    let last = table.len() - 1;
    for (at, descriptor) in table.iter_mut().enumerate() {
        descriptor.flags = u16::from(at < last) | if at > last / 2 { 2 } else { 0 };
        descriptor.next = at as u16 + 1;
        if descriptor.address > MEMORY as u64 {
            descriptor.address = BUFFERS;
        }
    }
    table[last].len = 1;
    table
}

/// Marks what the device may write: every writable buffer of the tables.
fn may_change(tables: [&[Descriptor]; 2]) -> Vec<bool> {
    let mut allowed = vec![false; MEMORY];
    for descriptor in tables.into_iter().flatten() {
        if descriptor.flags & VRING_DESC_F_WRITE as u16 != 0 {
            let from = (descriptor.address).min(MEMORY as u64) as usize;
            let to = descriptor.address.saturating_add(u64::from(descriptor.len));
            allowed[from..to.min(MEMORY as u64) as usize].fill(true);
        }
    }
    allowed
}

fn snapshot(memory: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    memory
        .memory()
        .read_slice(&mut bytes, GuestAddress(0))
        .unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_chain_is_answered_and_changes_nothing_but_its_buffers(
        table in prop::collection::vec(descriptor(), usize::from(SIZE)),
        indirect in prop::collection::vec(descriptor(), 8),
        orderly: bool,
        by_table: bool,
        heads in prop::collection::vec(0..SIZE, 1..8),
        uring: bool,
    ) {
        let (mut table, indirect) = if orderly {
            (straight(table), straight(indirect))
        } else {
            (table, indirect)
        };
        if by_table {
            table[0] = Descriptor {
                address: TABLE,
                len: 16 * indirect.len() as u32,
                flags: VRING_DESC_F_INDIRECT as u16,
                next: 0,
            };
        }
        let memory = driver::memory(&[(0, MEMORY)]);
        for at in 0..64_u64 {
            let kind = [0_u32, 1, 4, 8, 11, 13, 1, 77][at as usize % 8];
            let sector = if at % 9 == 0 { u64::MAX } else { at };
            let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            memory.memory().write_slice(&header, GuestAddress(BUFFERS + 16 * at)).unwrap();
        }
        let mut ring = Ring::new(&memory, RING, SIZE);
        for (at, descriptor) in (0..).zip(&table) {
            ring.set_descriptor(at, *descriptor);
        }
        for (at, descriptor) in (0..).zip(&indirect) {
            ring.write_descriptor(TABLE, at, *descriptor);
        }
        for head in &heads {
            ring.offer(*head);
        }
        let before = snapshot(&memory);

        let disk: Arc<dyn Disk> = if uring {
            Arc::new(file_disk(64 * 512).0)
        } else {
            Arc::new(ScriptDisk::new(64 * 512))
        };
        let mut device = Block::new(disk, setup());
        let interrupt = Arc::default();
        let features = device.features();
        device.start(driver::activation(&memory, &[&ring], features & !(1 << 29), &interrupt)).unwrap();
        for _ in &heads {
            let used = ring.wait_used(TIMEOUT);
            prop_assert!(used.is_some_and(|used| heads.contains(&used.head)));
        }
        prop_assert_eq!(device.stop().len(), 1);
        prop_assert_eq!(interrupt.needs_reset_count(), 0);

        let mut allowed = may_change([&table, &indirect]);
        let used = ring.used_address() as usize;
        allowed[used..used + 4 + 8 * usize::from(SIZE) + 2].fill(true);
        let after = snapshot(&memory);
        let changed = (0..MEMORY).find(|at| before[*at] != after[*at] && !allowed[*at]);
        prop_assert_eq!(changed, None);
    }
}
