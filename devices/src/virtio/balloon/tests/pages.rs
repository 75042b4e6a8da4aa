//! What happens to the pages that the driver gives.

use std::fs::File;
use std::os::fd::FromRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestRegionMmap};

use super::*;
use crate::memory::Ram;
use crate::state::{Persist, Section};
use crate::virtio::driver::writable;
use crate::virtio::mem::{MappedRegion, Mem, MemHandle, MemSetup};

#[test]
fn inflated_pages_go_and_their_neighbours_stay() {
    let mut rig = Rig::new();
    for page in 0..6 {
        rig.fill(FREE + page * PAGE);
    }
    let page = number(FREE);
    // In no order, and one of them twice.
    rig.send(INFLATE, &[page + 4, page + 1, page + 2, page + 1]);
    let gone: Vec<_> = (0..6).map(|page| rig.is_gone(FREE + page * PAGE)).collect();
    assert_eq!(gone, [false, true, true, false, true, false]);
    assert_eq!(rig.metric(|metrics| &metrics.inflated_bytes), 3 * PAGE);
    assert_eq!(rig.metric(|metrics| &metrics.discards), 2);
}

#[test]
fn neighbours_go_by_one_call_however_they_are_ordered() {
    let mut rig = Rig::new();
    let numbers: Vec<u32> = (0..1024).rev().map(|page| number(FREE) + page).collect();
    rig.send(INFLATE, &numbers);
    assert_eq!(rig.metric(|metrics| &metrics.discards), 1);
    assert_eq!(rig.metric(|metrics| &metrics.inflated_bytes), 4 * MIB);
}

#[test]
fn run_of_pages_over_the_hole_goes_as_far_as_it_is_memory() {
    let mut rig = Rig::new();
    let last = LOW_LEN - PAGE;
    rig.fill(last);
    rig.fill(HIGH);
    let range = writable(last, (HIGH + PAGE - last) as u32);
    rig.exchange(REPORTING, &[range]);
    assert!(rig.is_gone(last) && rig.is_gone(HIGH));
    assert_eq!(rig.metric(|metrics| &metrics.reported_bytes), 2 * PAGE);
    assert_eq!(rig.metric(|metrics| &metrics.refused_bytes), HIGH - LOW_LEN);
}

#[test]
fn deflated_pages_are_counted_and_stay_as_they_are() {
    let mut rig = Rig::new();
    rig.fill(FREE);
    rig.send(DEFLATE, &[number(FREE), number(FREE) + 1]);
    assert!(!rig.is_gone(FREE));
    assert_eq!(rig.metric(|metrics| &metrics.deflated_bytes), 2 * PAGE);
}

#[test]
fn only_whole_pages_of_the_host_go() {
    let setup = BalloonSetup {
        page_size: 2 * MIB,
        ..setup()
    };
    let mut rig = Rig::with(setup, ALL, 4);
    for address in [FREE, 2 * MIB, 4 * MIB - PAGE, 4 * MIB] {
        rig.fill(address);
    }
    // 1 MiB to 4 MiB and a page.
    rig.exchange(REPORTING, &[writable(FREE, (3 * MIB + PAGE) as u32)]);
    assert!(!rig.is_gone(FREE) && !rig.is_gone(4 * MIB));
    assert!(rig.is_gone(2 * MIB) && rig.is_gone(4 * MIB - PAGE));
    rig.send(INFLATE, &[number(FREE)]);
    assert!(!rig.is_gone(FREE));
    assert_eq!(rig.metric(|metrics| &metrics.inflated_bytes), 0);
}

#[test]
fn reported_pages_go_unless_the_guest_expects_other_contents() {
    let mut rig = Rig::new();
    rig.fill(FREE);
    rig.fill(FREE + PAGE);
    rig.exchange(REPORTING, &[writable(FREE, PAGE as u32)]);
    assert!(rig.is_gone(FREE));
    rig.device.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
    rig.exchange(REPORTING, &[writable(FREE + PAGE, PAGE as u32)]);
    assert!(!rig.is_gone(FREE + PAGE));
    assert_eq!(rig.metric(|metrics| &metrics.poisoned_bytes), PAGE);
}

#[test]
fn reports_come_by_the_queue_of_the_specification_or_of_linux() {
    for (features, rings, ring) in [
        (ALL, 5, 4),
        (ALL, 4, 3),
        (PAGE_REPORTING, 3, 2),
        (PAGE_REPORTING, 5, 4),
    ] {
        let mut rig = Rig::with(setup(), features, rings);
        rig.fill(FREE);
        rig.exchange(ring, &[writable(FREE, PAGE as u32)]);
        assert!(rig.is_gone(FREE), "{features:#x} {rings}");
        let queues = rig.device.stop();
        let indexes: Vec<_> = queues.iter().map(|queue| queue.index).collect();
        assert_eq!(indexes, (0..rings as u16).collect::<Vec<_>>());
    }
}

#[test]
fn pages_of_shared_memory_leave_its_file() {
    // SAFETY: the name is a string that ends in NUL.
    #[expect(unsafe_code)]
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: memfd_create returned this descriptor, and nobody else has it.
    #[expect(unsafe_code)]
    let file = Arc::new(unsafe { File::from_raw_fd(fd) });
    file.set_len(LOW_LEN).unwrap();
    let region = MmapRegionBuilder::new(LOW_LEN as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    let mut rig = Rig::new();
    rig.device.stop();
    rig.memory = GuestRam::new(Ram::from_regions(vec![region]).unwrap());
    rig.rings = (0..4)
        .map(|index| Ring::new(&rig.memory, 0x1000 + index * 0x2000, RING_SIZE))
        .collect();
    rig.device.start(rig.activation()).unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    rig.write(REQUEST, &[0]);
    let before = blocks();
    for page in 0..16 {
        rig.fill(FREE + page * PAGE);
    }
    assert_eq!(blocks(), before + 16 * 8);
    let numbers: Vec<u32> = (0..16).map(|page| number(FREE) + page).collect();
    rig.send(INFLATE, &numbers);
    assert_eq!(blocks(), before);
}

/// A memory device over the upper region, the first two of whose four blocks are plugged.
fn memory_device(region: GuestRegionMmap<()>) -> MemHandle {
    #[derive(serde::Serialize)]
    struct State {
        address: u64,
        region_size: u64,
        block_size: u64,
        requested: u64,
        plugged: Vec<u8>,
        untold: bool,
    }
    let setup = MemSetup {
        name: "virtio-mem".to_owned(),
        address: HIGH,
        block_size: 2 * MIB,
        requested: 0,
    };
    let region = MappedRegion::new(Arc::new(region), PAGE, false);
    let mut mem = Mem::new(Arc::new(region), setup).unwrap();
    let state = State {
        address: HIGH,
        region_size: HIGH_LEN,
        block_size: 2 * MIB,
        requested: 4 * MIB,
        plugged: vec![0b0011],
        untold: false,
    };
    mem.restore(&Section::new("virtio-mem", 1, &state)).unwrap();
    mem.handle()
}

#[test]
fn unplugged_blocks_of_a_memory_device_are_refused() {
    let region = MmapRegionBuilder::new(HIGH_LEN as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(HIGH)).unwrap();
    let setup = BalloonSetup {
        mem: Some(memory_device(region)),
        ..setup()
    };
    let mut rig = Rig::with(setup, ALL, 4);
    let end = HIGH + 4 * MIB;
    for address in [FREE, HIGH, end - PAGE, end] {
        rig.fill(address);
    }
    rig.send(INFLATE, &[number(end)]);
    assert!(!rig.is_gone(end));
    // Over the end of what is plugged.
    rig.exchange(REPORTING, &[writable(end - PAGE, 2 * PAGE as u32)]);
    assert!(!rig.is_gone(end - PAGE) && !rig.is_gone(end));
    assert_eq!(rig.metric(|metrics| &metrics.refused_bytes), 3 * PAGE);
    rig.send(INFLATE, &[number(end) - 1, number(HIGH), number(FREE)]);
    assert!(rig.is_gone(end - PAGE) && rig.is_gone(HIGH) && rig.is_gone(FREE));
}

#[test]
fn memory_that_is_added_while_the_device_runs_is_given_back_too() {
    const ADDED: u64 = 64 * MIB;
    let mut rig = Rig::new();
    rig.send(INFLATE, &[number(ADDED)]);
    assert_eq!(rig.metric(|metrics| &metrics.refused_bytes), PAGE);
    let more = Ram::from_ranges(&[(GuestAddress(ADDED), MIB as usize)]).unwrap();
    let (_, region) = more.remove_region(GuestAddress(ADDED), MIB).unwrap();
    let map = rig.memory.memory().insert_region(region).unwrap();
    rig.memory.lock().unwrap().replace(map);
    rig.fill(ADDED);
    rig.send(INFLATE, &[number(ADDED)]);
    assert!(rig.is_gone(ADDED));
}
