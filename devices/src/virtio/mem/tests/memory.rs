//! Memory of the host behind a region.

use std::fs::File;
use std::os::fd::FromRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestRegionMmap, MemoryRegionAddress};

use super::super::MappedRegion;
use super::*;

const PAGE: u64 = 4096;
const LEN: u64 = 8 * MIB;
/// Where the region begins in its file.
const FILE_START: u64 = 4 * MIB;

fn anonymous() -> Arc<GuestRegionMmap<()>> {
    let region = MmapRegionBuilder::new(LEN as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .unwrap();
    Arc::new(GuestRegionMmap::new(region, GuestAddress(ADDRESS)).unwrap())
}

/// A region in the middle of a memfd of three pieces.
fn of_file(flags: i32) -> (Arc<GuestRegionMmap<()>>, Arc<File>) {
    // SAFETY: the name is a string that ends in NUL.
    #[expect(unsafe_code)]
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: memfd_create returned this descriptor, and nobody else has it.
    #[expect(unsafe_code)]
    let file = Arc::new(unsafe { File::from_raw_fd(fd) });
    file.set_len(FILE_START + LEN + FILE_START).unwrap();
    let region = MmapRegionBuilder::new(LEN as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_file_offset(FileOffset::from_arc(file.clone(), FILE_START))
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(ADDRESS)).unwrap();
    (Arc::new(region), file)
}

/// Which pages of `range`, offsets in `region`, are there.
fn resident(region: &GuestRegionMmap<()>, range: Range<u64>) -> Vec<bool> {
    let len = range.end - range.start;
    let mut pages = vec![0_u8; (len / PAGE) as usize];
    let address = region.as_ptr().wrapping_add(range.start as usize);
    // SAFETY: the range is in the mapping, and there is one byte for each of its pages.
    #[expect(unsafe_code)]
    let result = unsafe { libc::mincore(address.cast(), len as usize, pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().map(|page| page & 1 == 1).collect()
}

fn all(region: &GuestRegionMmap<()>, range: Range<u64>) -> bool {
    resident(region, range).iter().all(|there| *there)
}

fn none(region: &GuestRegionMmap<()>, range: Range<u64>) -> bool {
    resident(region, range).iter().all(|there| !there)
}

fn fill(region: &GuestRegionMmap<()>) {
    let bytes = vec![0x55; LEN as usize];
    region.write_slice(&bytes, MemoryRegionAddress(0)).unwrap();
}

fn byte(region: &GuestRegionMmap<()>, offset: u64) -> u8 {
    region.read_obj(MemoryRegionAddress(offset)).unwrap()
}

#[test]
fn discarded_anonymous_memory_is_gone_and_reads_zero() {
    let region = anonymous();
    fill(&region);
    assert!(all(&region, 0..LEN));
    let mapped = MappedRegion::new(region.clone(), PAGE, false);
    mapped.discard(BLOCK, 2 * BLOCK).unwrap();
    assert!(none(&region, BLOCK..3 * BLOCK));
    assert!(all(&region, 0..BLOCK) && all(&region, 3 * BLOCK..LEN));
    assert_eq!((byte(&region, BLOCK), byte(&region, 3 * BLOCK - 1)), (0, 0));
    assert_eq!(
        (byte(&region, BLOCK - 1), byte(&region, 3 * BLOCK)),
        (0x55, 0x55)
    );
}

#[test]
fn discarded_memory_of_a_memfd_is_given_back_by_the_file() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let (region, file) = of_file(libc::MAP_SHARED | libc::MAP_NORESERVE);
    fill(&region);
    file.write_all_at(&[0x55; 10], FILE_START - 10).unwrap();
    file.write_all_at(&[0x55; 10], FILE_START + LEN).unwrap();
    let blocks = || file.metadata().unwrap().blocks() * 512;
    let before = blocks();
    let mapped = MappedRegion::new(region.clone(), PAGE, false);
    mapped.discard(BLOCK, 2 * BLOCK).unwrap();
    assert_eq!(before - blocks(), 2 * BLOCK);
    assert!(none(&region, BLOCK..3 * BLOCK));
    assert_eq!((byte(&region, BLOCK), byte(&region, 3 * BLOCK - 1)), (0, 0));
    assert_eq!(
        (byte(&region, BLOCK - 1), byte(&region, 3 * BLOCK)),
        (0x55, 0x55)
    );
    // What else is in the file is none of the region's.
    mapped.discard(0, LEN).unwrap();
    let mut around = [0; 20];
    file.read_exact_at(&mut around[..10], FILE_START - 10)
        .unwrap();
    file.read_exact_at(&mut around[10..], FILE_START + LEN)
        .unwrap();
    assert_eq!(around, [0x55; 20]);
    assert_eq!(
        file.metadata().unwrap().len(),
        FILE_START + LEN + FILE_START
    );
}

#[test]
fn discarded_private_copy_leaves_the_file_alone() {
    use std::os::unix::fs::FileExt;
    let (region, file) = of_file(libc::MAP_PRIVATE);
    file.write_all_at(&[0x77], FILE_START).unwrap();
    fill(&region);
    MappedRegion::new(region.clone(), PAGE, false)
        .discard(0, LEN)
        .unwrap();
    assert_eq!(byte(&region, 0), 0x77);
}

#[test]
fn memory_is_taken_when_it_is_plugged_or_when_it_is_touched() {
    let region = anonymous();
    let eager = MappedRegion::new(region.clone(), PAGE, true);
    eager.populate(BLOCK, BLOCK).unwrap();
    assert!(all(&region, BLOCK..2 * BLOCK));
    assert!(none(&region, 0..BLOCK) && none(&region, 2 * BLOCK..LEN));
    let region = anonymous();
    let lazy = MappedRegion::new(region.clone(), PAGE, false);
    lazy.populate(BLOCK, BLOCK).unwrap();
    assert!(none(&region, 0..LEN));
}

#[test]
fn ranges_outside_the_region_or_in_part_of_a_page_are_refused() {
    let region = anonymous();
    fill(&region);
    let mapped = MappedRegion::new(region.clone(), PAGE, true);
    assert_eq!((mapped.size(), mapped.page_size()), (LEN, PAGE));
    for (offset, len) in [
        (0, LEN + PAGE),
        (LEN, PAGE),
        (LEN - PAGE, 2 * PAGE),
        (u64::MAX - PAGE + 1, PAGE),
        (PAGE, u64::MAX - PAGE + 1),
        (1, PAGE),
        (0, PAGE + 1),
    ] {
        for result in [mapped.discard(offset, len), mapped.populate(offset, len)] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
    assert!(all(&region, 0..LEN));
    assert_eq!((byte(&region, 0), byte(&region, LEN - 1)), (0x55, 0x55));
}

#[test]
fn unplug_of_a_driver_gives_host_memory_back() {
    for region in [anonymous(), of_file(libc::MAP_SHARED).0] {
        let mapped = MappedRegion::new(region.clone(), PAGE, true);
        let mut rig = Rig::new(0);
        rig.device.stop();
        fill(&region);
        rig.device = Mem::new(Arc::new(mapped), setup(LEN)).unwrap();
        rig.handle = rig.device.handle();
        // A fresh device has none.
        assert!(none(&region, 0..LEN));
        rig.device.start(rig.activation()).unwrap();
        assert_eq!(rig.request(PLUG, 0, 4), ACK);
        assert!(all(&region, 0..LEN));
        fill(&region);
        assert_eq!(rig.request(UNPLUG, 1, 2), ACK);
        assert!(none(&region, BLOCK..3 * BLOCK));
        assert_eq!(byte(&region, 0), 0x55);
        assert_eq!(rig.request(UNPLUG_ALL, 0, 0), ACK);
        assert!(none(&region, 0..LEN));
    }
}
