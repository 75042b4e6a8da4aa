use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::memory::GuestRam;
use crate::virtio::driver::{self, Buffer, Descriptor, Ring, readable, writable};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const TABLE: u64 = 0x2000;

/// Two adjoining regions, a hole from 0x20000 to 0x40000, and a third region.
fn memory() -> GuestRam {
    driver::memory(&[(0, 0x10000), (0x10000, 0x10000), (0x40000, 0x10000)])
}

fn load(memory: &GuestRam, ring: &Ring) -> (Buffers, Result<(), ChainError>) {
    let mut active = ring.active(0, 0);
    let guard = memory.memory();
    let chain = active.queue.iter(&*guard).unwrap().next().unwrap();
    let mut buffers = Buffers::new();
    let result = buffers.load(&guard, chain);
    (buffers, result)
}

fn load_pushed(buffers: &[Buffer]) -> (GuestRam, Buffers, Result<(), ChainError>) {
    let memory = memory();
    let mut ring = Ring::new(&memory, 0x1000, 16);
    ring.push(buffers);
    let (loaded, result) = load(&memory, &ring);
    (memory, loaded, result)
}

fn load_raw(descriptors: &[Descriptor], head: u16) -> Result<(), ChainError> {
    let memory = memory();
    let mut ring = Ring::new(&memory, 0x1000, 4);
    for (index, descriptor) in (0..).zip(descriptors) {
        ring.set_descriptor(index, *descriptor);
    }
    ring.offer(head);
    load(&memory, &ring).1
}

fn raw(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

fn lens(iovecs: &[libc::iovec]) -> Vec<usize> {
    iovecs.iter().map(|iovec| iovec.iov_len).collect()
}

#[test]
fn header_split_over_descriptors_is_read_whole() {
    let (memory, mut buffers, result) = load_pushed(&[
        readable(0x3000, 3),
        readable(0x3100, 0),
        readable(0x3200, 1),
        readable(0x3300, 20),
        writable(0x3400, 1),
    ]);
    result.unwrap();
    for (address, bytes) in [(0x3000, &b"abc"[..]), (0x3200, b"d"), (0x3300, b"efghijkl")] {
        memory
            .memory()
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
    let mut header = [0; 8];
    buffers.read_front(&mut header).unwrap();
    assert_eq!(&header, b"abcdefgh");
    assert_eq!(lens(buffers.readable()), [16]);
    assert_eq!(buffers.readable_len(), 16);
    let mut rest = [0; 4];
    buffers.read_front(&mut rest).unwrap();
    assert_eq!(&rest, b"ijkl");
}

#[test]
fn short_header_is_refused_and_left_in_place() {
    let (_memory, mut buffers, result) = load_pushed(&[readable(0x3000, 15), writable(0x4000, 1)]);
    result.unwrap();
    assert_eq!(
        buffers.read_front(&mut [0; 16]),
        Err(ChainError::ShortReadable { have: 15, need: 16 })
    );
    assert_eq!(buffers.readable_len(), 15);
}

#[test]
fn status_is_the_last_writable_byte() {
    let (memory, mut buffers, result) = load_pushed(&[
        readable(0x3000, 16),
        writable(0x4000, 512),
        writable(0x5000, 1),
    ]);
    result.unwrap();
    buffers.take_status().unwrap();
    assert_eq!(lens(buffers.writable()), [512]);
    assert!(buffers.write_status(7));
    assert_eq!(
        memory
            .memory()
            .read_obj::<u8>(GuestAddress(0x5000))
            .unwrap(),
        7
    );
}

#[test]
fn status_in_the_tail_of_a_data_buffer_is_split_off() {
    let (memory, mut buffers, result) = load_pushed(&[writable(0x4000, 513)]);
    result.unwrap();
    buffers.take_status().unwrap();
    assert_eq!(buffers.writable_len(), 512);
    buffers.write_status(9);
    assert_eq!(
        memory
            .memory()
            .read_obj::<u8>(GuestAddress(0x4200))
            .unwrap(),
        9
    );
}

#[test]
fn chain_without_writable_byte_has_no_status() {
    let (_memory, mut buffers, result) = load_pushed(&[readable(0x3000, 16)]);
    result.unwrap();
    assert_eq!(
        buffers.take_status(),
        Err(ChainError::ShortWritable { have: 0, need: 1 })
    );
    assert!(!buffers.write_status(0));
}

#[test]
fn taken_bytes_cannot_be_taken_as_status() {
    let (_memory, mut buffers, result) = load_pushed(&[writable(0x4000, 4)]);
    result.unwrap();
    buffers.write_front(&[1; 4]).unwrap();
    assert!(buffers.take_status().is_err());
}

#[test]
fn writes_cross_descriptors_and_stay_in_the_chain() {
    let (memory, mut buffers, result) = load_pushed(&[writable(0x4000, 3), writable(0x4010, 5)]);
    result.unwrap();
    buffers.write_at(2, b"xyz").unwrap();
    buffers.write_front(b"ab").unwrap();
    assert_eq!(buffers.writable_len(), 6);
    assert!(buffers.write_front(&[0; 7]).is_err());
    assert!(buffers.write_at(u64::MAX, &[0; 2]).is_err());
    let mut bytes = [0; 0x20];
    memory
        .memory()
        .read_slice(&mut bytes, GuestAddress(0x4000))
        .unwrap();
    let mut expected = [0; 0x20];
    expected[..3].copy_from_slice(b"abx");
    expected[0x10..0x12].copy_from_slice(b"yz");
    assert_eq!(bytes, expected);
}

#[test]
fn truncation_keeps_the_first_bytes() {
    let (_memory, mut buffers, result) = load_pushed(&[
        readable(0x3000, 10),
        writable(0x4000, 10),
        writable(0x4010, 10),
    ]);
    result.unwrap();
    buffers.truncate_writable(12);
    assert_eq!(lens(buffers.writable()), [10, 2]);
    buffers.truncate_writable(10);
    assert_eq!(lens(buffers.writable()), [10]);
    buffers.truncate_writable(100);
    assert_eq!(buffers.writable_len(), 10);
}

#[test]
fn buffer_across_two_regions_becomes_two_pieces() {
    let (_memory, buffers, result) = load_pushed(&[writable(0xfff0, 0x30)]);
    result.unwrap();
    assert_eq!(lens(buffers.writable()), [0x10, 0x20]);
}

#[test]
fn buffer_outside_memory_is_refused_and_the_status_byte_found() {
    for (address, len) in [
        (0x1fff0, 0x20),
        (0x20000, 1),
        (0x3ffff, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, 16),
        (0x4000, u32::MAX),
    ] {
        let (memory, mut buffers, result) = load_pushed(&[
            readable(0x3000, 16),
            writable(address, len),
            writable(0x5000, 1),
        ]);
        // The last of these makes the chain longer than 4 GiB, and its end is not looked for.
        if len == u32::MAX {
            assert_eq!(result, Err(ChainError::Broken));
            assert!(buffers.take_status().is_err());
            continue;
        }
        assert_eq!(result, Err(ChainError::Address { address, len }));
        assert!(buffers.readable().is_empty());
        buffers.take_status().unwrap();
        assert!(buffers.writable().is_empty());
        buffers.write_status(3);
        assert_eq!(
            memory
                .memory()
                .read_obj::<u8>(GuestAddress(0x5000))
                .unwrap(),
            3
        );
    }
}

#[test]
fn status_outside_memory_is_not_replaced_by_another_byte() {
    let (_memory, mut buffers, result) = load_pushed(&[writable(0x4000, 16), writable(0x20000, 1)]);
    assert_eq!(
        result,
        Err(ChainError::Address {
            address: 0x20000,
            len: 1
        })
    );
    assert!(buffers.take_status().is_err());
}

#[test]
fn readable_after_writable_is_refused() {
    let (_memory, _buffers, result) = load_pushed(&[writable(0x4000, 16), readable(0x3000, 16)]);
    assert_eq!(result, Err(ChainError::Order));
}

#[test]
fn loop_is_refused() {
    let descriptors = [raw(0x3000, 1, NEXT, 1), raw(0x3000, 1, NEXT, 0)];
    assert_eq!(load_raw(&descriptors, 0), Err(ChainError::Broken));
}

#[test]
fn next_beyond_the_table_is_refused() {
    assert_eq!(
        load_raw(&[raw(0x3000, 1, NEXT, 4)], 0),
        Err(ChainError::Broken)
    );
}

#[test]
fn head_beyond_the_table_is_refused() {
    for head in [4, u16::MAX] {
        assert_eq!(load_raw(&[], head), Err(ChainError::Empty));
    }
}

#[test]
fn invalid_indirect_tables_are_refused() {
    for (address, len) in [
        (TABLE, 0),
        (TABLE, 17),
        (TABLE, u32::MAX - 15),
        (0x20000, 16),
    ] {
        let result = load_raw(&[raw(address, len, INDIRECT, 0)], 0);
        assert_eq!(
            result,
            Err(ChainError::Empty),
            "table of {len} bytes at {address:#x}"
        );
        let descriptors = [raw(0x3000, 1, NEXT, 1), raw(address, len, INDIRECT, 0)];
        assert_eq!(load_raw(&descriptors, 0), Err(ChainError::Broken));
    }
}

#[test]
fn indirect_table_in_an_indirect_table_is_refused() {
    let memory = memory();
    let mut ring = Ring::new(&memory, 0x1000, 4);
    ring.push_indirect(TABLE, &[readable(0x3000, 16), writable(0x4000, 1)]);
    ring.write_descriptor(TABLE, 1, raw(0x2100, 16, INDIRECT, 0));
    ring.write_descriptor(0x2100, 0, raw(0x4000, 1, WRITE, 0));
    assert_eq!(load(&memory, &ring).1, Err(ChainError::Broken));
}

#[test]
fn indirect_chain_is_loaded_like_a_direct_one() {
    let memory = memory();
    let mut ring = Ring::new(&memory, 0x1000, 4);
    ring.push_indirect(
        TABLE,
        &[
            readable(0x3000, 16),
            writable(0x4000, 512),
            writable(0x5000, 1),
        ],
    );
    let (buffers, result) = load(&memory, &ring);
    result.unwrap();
    assert_eq!(lens(buffers.readable()), [16]);
    assert_eq!(lens(buffers.writable()), [512, 1]);
}

#[test]
fn pieces_are_bounded() {
    let memory = driver::memory(&[(0, 0x100000)]);
    for (count, expected) in [
        (MAX_PIECES, Ok(())),
        (MAX_PIECES + 1, Err(ChainError::TooLong)),
    ] {
        let mut ring = Ring::new(&memory, 0x1000, 4);
        ring.push_indirect(0x10000, &vec![writable(0x80000, 1); count]);
        assert_eq!(load(&memory, &ring).1, expected);
    }
}

#[test]
fn buffers_keep_the_memory_they_point_to() {
    let (memory, mut buffers, result) = load_pushed(&[writable(0x4000, 4)]);
    result.unwrap();
    let old = Arc::downgrade(&memory.memory().into_inner());
    memory
        .lock()
        .unwrap()
        .replace(Ram::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    buffers.write_front(b"kept").unwrap();
    let mut bytes = [0; 4];
    old.upgrade()
        .unwrap()
        .read_slice(&mut bytes, GuestAddress(0x4000))
        .unwrap();
    assert_eq!(&bytes, b"kept");
    buffers.clear();
    assert!(old.upgrade().is_none());
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        0_u64..0x60000,
        Just(TABLE),
        any::<u64>(),
        (0_u64..64).prop_map(|back| u64::MAX - back),
    ];
    let len = prop_oneof![
        0_u32..0x100,
        (1_u32..8).prop_map(|entries| entries * 16),
        Just(0x11000),
        any::<u32>(),
    ];
    (address, len, 0_u16..8, 0_u16..10)
        .prop_map(|(address, len, flags, next)| raw(address, len, flags, next))
}

proptest! {
    #[test]
    fn pieces_of_any_chain_lie_in_guest_memory(
        table in prop::collection::vec(any_descriptor(), 8),
        indirect in prop::collection::vec(any_descriptor(), 8),
        head in 0_u16..9,
    ) {
        let memory = memory();
        let mut ring = Ring::new(&memory, 0x1000, 8);
        for (index, descriptor) in (0..).zip(&table) {
            ring.set_descriptor(index, *descriptor);
        }
        for (index, descriptor) in (0..).zip(&indirect) {
            ring.write_descriptor(TABLE, index, *descriptor);
        }
        ring.offer(head);
        let (mut buffers, result) = load(&memory, &ring);

        let guard = memory.memory();
        for iovec in buffers.readable().iter().chain(buffers.writable()) {
            let start = iovec.iov_base as u64;
            prop_assert!(iovec.iov_len > 0);
            let inside = guard.iter().any(|region| {
                let base = region.as_ptr() as u64;
                base <= start && start + iovec.iov_len as u64 <= base + region.len()
            });
            prop_assert!(inside);
        }
        let sum = |iovecs: &[libc::iovec]| iovecs.iter().map(|iovec| iovec.iov_len as u64).sum::<u64>();
        prop_assert_eq!(sum(buffers.readable()), buffers.readable_len());
        prop_assert_eq!(sum(buffers.writable()), buffers.writable_len());
        if result.is_err() {
            prop_assert!(buffers.readable_len() == 0 && buffers.writable_len() <= 1);
        }
        let before = buffers.writable_len();
        prop_assert_eq!(buffers.take_status().is_ok(), before > 0);
        prop_assert_eq!(buffers.write_status(0xff), before > 0);
    }
}

#[test]
fn reserved_front_is_written_after_what_follows_it() {
    let (memory, mut buffers, result) = load_pushed(&[
        writable(0x3000, 3),
        writable(0x3100, 2),
        writable(0x3200, 10),
    ]);
    result.unwrap();
    assert_eq!(
        buffers.reserve_front(16),
        Err(ChainError::ShortWritable { have: 15, need: 16 })
    );
    buffers.reserve_front(7).unwrap();
    assert_eq!(lens(buffers.writable()), [8]);
    buffers.write_front(b"data").unwrap();
    buffers.write_reserved(b"headers and more");
    let mut found = [[0; 6]; 3];
    for (bytes, address) in found.iter_mut().zip([0x3000, 0x3100, 0x3200]) {
        memory
            .memory()
            .read_slice(bytes, GuestAddress(address))
            .unwrap();
    }
    assert_eq!(&found, &[*b"hea\0\0\0", *b"de\0\0\0\0", *b"rsdata"]);
}

#[test]
fn readable_part_is_shortened_at_either_end() {
    let (memory, mut buffers, result) = load_pushed(&[readable(0x3000, 4), readable(0x3100, 4)]);
    result.unwrap();
    for (address, bytes) in [(0x3000, b"abcd"), (0x3100, b"efgh")] {
        memory
            .memory()
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
    buffers.truncate_readable(9);
    assert_eq!(buffers.readable_len(), 8);
    buffers.truncate_readable(7);
    buffers.skip_front(5);
    let mut rest = [0; 2];
    buffers.read_front(&mut rest).unwrap();
    assert_eq!(&rest, b"fg");
    buffers.skip_front(1);
    assert_eq!(buffers.readable_len(), 0);
}

proptest! {
    /// A walk from a head is what the ring's own chain is.
    #[test]
    fn walk_from_a_head_sees_what_the_ring_sees(
        table in prop::collection::vec((0_u64..0x8000, 0_u32..0x3000, 0_u16..8, 0_u16..10), 8),
        inner in prop::collection::vec((0_u64..0x8000, any::<u32>(), 0_u16..8, 0_u16..6), 4),
        head in 0_u16..10,
    ) {
        let memory = memory();
        let mut ring = Ring::new(&memory, 0x1000, 8);
        let guest = memory.memory();
        for (index, (address, len, flags, next)) in (0..).zip(&table) {
            // Those that lead to an indirect table mostly lead to this one.
            let (address, len) = match flags & INDIRECT {
                0 => (*address, *len),
                _ => (TABLE, *len & 0x7f),
            };
            ring.set_descriptor(index, raw(address, len, *flags, *next));
        }
        for (index, (address, len, flags, next)) in (0_u64..).zip(&inner) {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            guest.write_slice(&bytes, GuestAddress(TABLE + 16 * index)).unwrap();
        }
        ring.offer(head);
        let mut active = ring.active(0, 0);
        let chain = active.queue.iter(&*guest).unwrap().next().unwrap();
        let seen = |descriptor: virtio_queue::desc::split::Descriptor| {
            (descriptor.addr().0, descriptor.len(), descriptor.flags(), descriptor.next())
        };
        let walk = Walk::new(&guest, GuestAddress(ring.table_address()), 8, head);
        let walked: Vec<_> = walk.map(seen).collect();
        prop_assert_eq!(walked, chain.map(seen).collect::<Vec<_>>());
    }
}
