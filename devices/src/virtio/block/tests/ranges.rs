//! Discards, and zeros that the device writes.

use std::os::unix::fs::MetadataExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::{FileDisk, ResizeError};
use super::disks::{DISCARDED, HeldDisk, ScriptDisk, Step, WithoutUring};
use super::*;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const MIB: usize = 1 << 20;
const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const FEATURES: u64 = FLUSH | DISCARD | WRITE_ZEROES;
const UNMAP: u32 = 1;

/// A request of `kind` on ranges, each of which is a sector, a number of sectors and flags.
fn request(rig: &mut Rig, kind: u32, ranges: &[(u64, u32, u32)]) -> (u8, u32) {
    let bytes: Vec<u8> = ranges
        .iter()
        .flat_map(|(sector, count, flags)| {
            let [sector, rest] = [*sector, u64::from(*flags) << 32 | u64::from(*count)];
            [sector.to_le_bytes(), rest.to_le_bytes()].concat()
        })
        .collect();
    rig.write(DATA, &bytes);
    let data = [readable(DATA, bytes.len() as u32)];
    rig.request(kind, 0, if bytes.is_empty() { &[] } else { &data })
}

fn with_each_engine(test: impl Fn(Rig, &tempfile::NamedTempFile)) {
    let (disk, file) = file_disk(MIB);
    let rig = Rig::with_features(disk, FEATURES);
    assert_eq!(rig.device.features() & FEATURES, FEATURES);
    test(rig, &file);
    let (disk, file) = file_disk(MIB);
    let disk = WithoutUring {
        disk,
        refused: None,
    };
    test(Rig::with_features(disk, FEATURES), &file);
}

/// Bytes of `file` that have a place on the host.
fn allocated(file: &tempfile::NamedTempFile) -> u64 {
    file.as_file().sync_all().unwrap();
    file.as_file().metadata().unwrap().blocks() * 512
}

/// What [`image`] has, with zeros in `ranges` of sectors.
fn zeroed(ranges: &[(usize, usize)]) -> Vec<u8> {
    let mut bytes = pattern(MIB);
    for (sector, count) in ranges {
        bytes[sector * 512..][..count * 512].fill(0);
    }
    bytes
}

#[test]
fn discarded_ranges_lose_their_blocks() {
    with_each_engine(|mut rig, file| {
        let before = allocated(file);
        let ranges = [(8, 512, 0), (1024, 512, 0)];
        assert_eq!(request(&mut rig, VIRTIO_BLK_T_DISCARD, &ranges), (OK, 1));
        assert_eq!(before - allocated(file), 512 << 10);
        assert!(std::fs::read(file.path()).unwrap() == zeroed(&[(8, 512), (1024, 512)]));
        assert_eq!(rig.metric(|metrics| &metrics.discards), 1);
        assert_eq!(rig.metric(|metrics| &metrics.discard_bytes), 512 << 10);
    });
}

#[test]
fn zeros_lose_their_blocks_only_if_the_driver_allows_it() {
    with_each_engine(|mut rig, file| {
        let before = allocated(file);
        let zero = |rig: &mut Rig, range| request(rig, VIRTIO_BLK_T_WRITE_ZEROES, &[range]);
        assert_eq!(zero(&mut rig, (8, 1024, 0)), (OK, 1));
        assert!(std::fs::read(file.path()).unwrap() == zeroed(&[(8, 1024)]));
        assert_eq!(allocated(file), before);
        assert_eq!(zero(&mut rig, (16, 1024, UNMAP)), (OK, 1));
        assert!(std::fs::read(file.path()).unwrap() == zeroed(&[(8, 1032)]));
        assert_eq!(before - allocated(file), 512 << 10);
        assert_eq!(rig.metric(|metrics| &metrics.zero_writes), 2);
        assert_eq!(rig.metric(|metrics| &metrics.zero_write_bytes), 1 << 20);
        // Part of a block of the file system.
        assert_eq!(zero(&mut rig, (2045, 3, UNMAP)), (OK, 1));
        assert!(std::fs::read(file.path()).unwrap() == zeroed(&[(8, 1032), (2045, 3)]));
    });
}

#[test]
fn disk_that_keeps_its_blocks_offers_no_discard_and_does_not_unmap() {
    let (disk, file) = file_disk(MIB);
    let mut rig = Rig::with_features(disk.keeping_blocks(), FLUSH | WRITE_ZEROES);
    assert_eq!(
        rig.device.features() & (DISCARD | WRITE_ZEROES),
        WRITE_ZEROES
    );
    let mut config = [0xff; 24];
    rig.device.read_config(36, &mut config);
    assert_eq!(config[..12], [0; 12]);
    assert_eq!(config[20..], [0; 4]);
    let before = allocated(&file);
    assert_eq!(
        request(&mut rig, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 2048, UNMAP)]),
        (OK, 1)
    );
    assert_eq!(allocated(&file), before);
    assert_eq!(
        request(&mut rig, VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)]),
        (UNSUPP, 1)
    );
}

#[test]
fn bounds_are_told_and_kept() {
    let (disk, file) = file_disk(MIB);
    file.as_file().set_len(8 << 30).unwrap();
    drop(disk);
    let disk = FileDisk::new(file.reopen().unwrap(), false).unwrap();
    let mut rig = Rig::with_features(disk, FEATURES);
    let mut config = [0; 24];
    rig.device.read_config(36, &mut config);
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    let (sectors, count) = (field(0), field(4));
    assert_eq!(
        u64::from(field(8)) * 512,
        file.as_file().metadata().unwrap().blksize()
    );
    let zero_sectors = field(12);
    assert_eq!((field(16), config[20]), (1, 1));
    let discard = |rig: &mut Rig, ranges: &[_]| request(rig, VIRTIO_BLK_T_DISCARD, ranges).0;
    let most: Vec<_> = (0..u64::from(count)).map(|at| (at * 8, 8, 0)).collect();
    assert_eq!(discard(&mut rig, &most), OK);
    assert_eq!(
        discard(&mut rig, &[&most[..], &[(0, 1, 0)]].concat()),
        IOERR
    );
    assert_eq!(discard(&mut rig, &[(0, sectors, 0)]), OK);
    assert_eq!(discard(&mut rig, &[(0, sectors + 1, 0)]), IOERR);
    let zero =
        |rig: &mut Rig, count| request(rig, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, count, UNMAP)]).0;
    assert_eq!(zero(&mut rig, zero_sectors), OK);
    assert_eq!(zero(&mut rig, zero_sectors + 1), IOERR);
}

#[test]
fn ranges_that_are_none_change_nothing() {
    with_each_engine(|mut rig, file| {
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            for (sector, count) in [
                (2048, 1),
                (2047, 2),
                (u64::MAX, 1),
                (u64::MAX / 512 + 1, 8),
                (1 << 55, 8),
                (0, 2049),
                (0, u32::MAX),
            ] {
                let answer = request(&mut rig, kind, &[(sector, count, 0)]);
                assert_eq!(answer, (IOERR, 1), "{sector} {count}");
            }
            assert_eq!(request(&mut rig, kind, &[]), (IOERR, 1));
            assert_eq!(request(&mut rig, kind, &[(0, 8, 2)]), (UNSUPP, 1));
            assert_eq!(request(&mut rig, kind, &[(0, 8, 1 << 31)]), (UNSUPP, 1));
            for len in [1, 15, 17, 512] {
                let answer = rig.request(kind, 0, &[readable(DATA, len)]);
                assert_eq!(answer, (IOERR, 1), "{len}");
            }
            let data = [readable(DATA, 16), writable(DATA + 512, 512)];
            assert_eq!(rig.request(kind, 0, &data), (IOERR, 0));
            // There is nothing to do, which is done.
            assert_eq!(request(&mut rig, kind, &[(2048, 0, 0)]), (OK, 1));
        }
        assert_eq!(
            request(&mut rig, VIRTIO_BLK_T_DISCARD, &[(0, 8, UNMAP)]),
            (UNSUPP, 1)
        );
        // All ranges are checked before the first is lost.
        let ranges = [(0, 8, 0), (2048, 8, 0)];
        assert_eq!(request(&mut rig, VIRTIO_BLK_T_DISCARD, &ranges), (IOERR, 1));
        assert!(std::fs::read(file.path()).unwrap() == pattern(MIB));
        assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
        assert_eq!(rig.read_disk(1, 512).0, OK);
    });
}

#[test]
fn read_only_disk_offers_neither_and_refuses_both() {
    let (_, file) = image(MIB);
    let disk = FileDisk::new(file.reopen().unwrap(), true).unwrap();
    let mut rig = Rig::with_features(disk, FEATURES);
    assert_eq!(rig.device.features() & (DISCARD | WRITE_ZEROES), 0);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&mut rig, kind, &[(0, 8, 0)]), (IOERR, 1));
    }
    assert!(std::fs::read(file.path()).unwrap() == pattern(MIB));
}

#[test]
fn driver_that_did_not_accept_the_features_gets_unsupported() {
    let (disk, _file) = file_disk(MIB);
    let mut rig = Rig::new(disk);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&mut rig, kind, &[(0, 8, 0)]), (UNSUPP, 1));
    }
}

#[test]
fn zeros_are_written_where_the_host_cannot_zero_a_range() {
    let disk = ScriptDisk::new(4 * MIB);
    let mut rig = Rig::with_features(disk.clone(), FEATURES);
    // More than one operation writes, and some of them write less than they were asked to.
    let shorts = [1, 70_000, 512].map(Step::Short);
    disk.0.lock().unwrap().steps.extend(shorts);
    let zero = |rig: &mut Rig, range| request(rig, VIRTIO_BLK_T_WRITE_ZEROES, &[range]);
    assert_eq!(zero(&mut rig, (3, 5000, UNMAP)), (OK, 1));
    let mut expected = pattern(4 * MIB);
    expected[3 * 512..5003 * 512].fill(0);
    let mut script = disk.0.lock().unwrap();
    assert!(script.data == expected);
    assert_eq!(script.flushes, 0);
    script
        .steps
        .extend([Step::Short(512), Step::Fail(libc::ENOSPC)]);
    drop(script);
    assert_eq!(zero(&mut rig, (0, 8, 0)), (IOERR, 1));
    assert_eq!(rig.metric(|metrics| &metrics.host_errors), 1);
    disk.0.lock().unwrap().steps.push_back(Step::Short(0));
    assert_eq!(zero(&mut rig, (0, 8, 0)), (IOERR, 1));
}

#[test]
fn zeros_are_durable_at_once_for_a_driver_that_does_not_flush() {
    let disk = ScriptDisk::new(MIB);
    let mut rig = Rig::with_features(disk.clone(), WRITE_ZEROES);
    let answer = request(&mut rig, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]);
    assert_eq!(answer, (OK, 1));
    let script = disk.0.lock().unwrap();
    assert_eq!(script.flushes, 1);
    assert!(script.durable == script.data);
}

#[test]
fn host_that_cannot_discard_after_all_is_unsupported_and_other_errors_are_errors() {
    let disk = ScriptDisk::new(MIB);
    let mut rig = Rig::with_features(disk.clone(), FEATURES);
    let discard = |rig: &mut Rig| request(rig, VIRTIO_BLK_T_DISCARD, &[(0, 1, 0), (2, 1, 0)]);
    disk.0
        .lock()
        .unwrap()
        .steps
        .push_back(Step::Fail(libc::EOPNOTSUPP));
    assert_eq!(discard(&mut rig), (UNSUPP, 1));
    disk.0
        .lock()
        .unwrap()
        .steps
        .push_back(Step::Fail(libc::EIO));
    assert_eq!(discard(&mut rig), (IOERR, 1));
    assert!(disk.0.lock().unwrap().data == pattern(MIB));
    disk.0
        .lock()
        .unwrap()
        .steps
        .push_back(Step::Fail(libc::EINTR));
    assert_eq!(discard(&mut rig), (OK, 1));
    let script = disk.0.lock().unwrap();
    assert!(script.data[..512] == [DISCARDED; 512] && script.data[1024..1536] == [DISCARDED; 512]);
    assert!(script.data[512..1024] == pattern(MIB)[512..1024]);
}

#[test]
fn disk_is_not_made_smaller_during_a_discard() {
    let (disk, script, go) = HeldDisk::new(MIB);
    let mut rig = Rig::with_features(disk, FEATURES);
    let resizer = rig.device.resizer();
    rig.write(
        DATA,
        &[&1024_u64.to_le_bytes()[..], &[8, 0, 0, 0, 0, 0, 0, 0]].concat(),
    );
    let pending = rig.push(VIRTIO_BLK_T_DISCARD, 0, &[readable(DATA, 16)]);
    rig.ring.kick();
    rig.wait_in_flight(1);
    let busy = resizer.resize_within(512 << 10, Duration::from_millis(1));
    assert!(matches!(busy, Err(ResizeError::Busy { .. })));
    go.send(()).unwrap();
    assert_eq!(rig.finish(pending), (OK, 1));
    resizer.resize(512 << 10).unwrap();
    assert_eq!(script.0.lock().unwrap().data.len(), 512 << 10);
    assert_eq!(
        request(&mut rig, VIRTIO_BLK_T_DISCARD, &[(1024, 8, 0)]),
        (IOERR, 1)
    );
}
