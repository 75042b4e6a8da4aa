//! Direct access, and its alignment.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::super::tests::disks::WithoutUring;
use super::super::tests::{DATA, Rig, image, pattern};
use super::super::{Disk, DiskError, EngineKind, FileDisk, ResizeError};
use super::*;
use crate::virtio::driver::{readable, writable};

const OK: u8 = 0;
const MIB: usize = 1 << 20;
const FEATURES: u64 = 1 << 9 | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

fn open(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("TMPDIR is on a file system that has O_DIRECT")
}

/// A direct disk in units of `unit` bytes at least, which may be more than the host asks for.
fn disk(path: &Path, unit: usize) -> FileDisk {
    let mut disk = FileDisk::new(open(path), false).unwrap();
    let Alignment { memory, offset } = disk.direct.as_ref().unwrap().alignment;
    disk.direct = Some(Direct::new(Alignment {
        memory: memory.max(unit),
        offset: offset.max(unit),
    }));
    disk
}

/// Runs `test` on 1 MiB by io_uring and by threads, in units of sectors and of pages.
fn with_each(test: impl Fn(Rig, &Path)) {
    for unit in [512, 4096] {
        let (_, file) = image(MIB);
        let rig = Rig::with_features(disk(file.path(), unit), FEATURES);
        assert_eq!(rig.device.watch().engine(), Some(EngineKind::IoUring));
        test(rig, file.path());
        let (_, file) = image(MIB);
        let threads = WithoutUring {
            disk: disk(file.path(), unit),
            refused: None,
        };
        test(Rig::with_features(threads, FEATURES), file.path());
    }
}

#[test]
fn alignment_that_is_told_is_believed() {
    let (_, file) = image(MIB);
    let direct = Direct::of(&open(file.path())).unwrap().unwrap().unwrap();
    let told = told_alignment(file.as_file()).unwrap();
    let usual = usual_alignment(file.as_file()).unwrap();
    assert_eq!(direct.alignment, told.unwrap_or(usual));
    assert!(Direct::of(file.as_file()).unwrap().is_none());
}

#[test]
fn aligned_transfers_go_as_they_are() {
    let direct = Direct::new(Alignment {
        memory: 8,
        offset: 512,
    });
    let takes = |offset, pieces: &[(usize, usize)]| {
        let iovecs: Vec<_> = pieces
            .iter()
            .map(|(base, len)| libc::iovec {
                iov_base: std::ptr::without_provenance_mut(*base),
                iov_len: *len,
            })
            .collect();
        // SAFETY: the pieces are not accessed.
        #[expect(unsafe_code)]
        let pieces = unsafe { Pieces::new(&iovecs) };
        direct.takes(pieces, offset)
    };
    assert!(takes(0, &[(8, 512)]) && takes(1024, &[(4096, 512), (16, 1024)]));
    assert!(!takes(0, &[(12, 512)]) && !takes(0, &[(4096, 512), (17, 512)]));
    assert!(!takes(256, &[(8, 512)]) && !takes(0, &[(8, 511), (1024, 1)]));
}

#[test]
fn buffers_anywhere_are_read_and_written() {
    with_each(|mut rig, path| {
        let mut expected = pattern(MIB);
        for (at, skew) in [0_u64, 1, 2, 511, 513, 4095].into_iter().enumerate() {
            for (sector, len) in [
                (0, 512),
                (7, 512),
                (8, 4096),
                (9, 4096),
                (13, 8192),
                (2047, 512),
            ] {
                let address = DATA + skew;
                let bytes = vec![at as u8 ^ sector as u8; len];
                rig.write(address, &bytes);
                let data = [readable(address, len as u32)];
                assert_eq!(rig.request(VIRTIO_BLK_T_OUT, sector, &data), (OK, 1));
                expected[sector as usize * 512..][..len].copy_from_slice(&bytes);
                rig.write(address, &vec![0; len]);
                let data = [writable(address, len as u32)];
                let answer = rig.request(VIRTIO_BLK_T_IN, sector, &data);
                assert_eq!(answer, (OK, len as u32 + 1));
                assert!(rig.read(address, len) == bytes, "{skew} {sector} {len}");
            }
        }
        assert!(std::fs::read(path).unwrap() == expected);
    });
}

#[test]
fn odd_pieces_and_more_than_the_buffer_holds_are_moved() {
    with_each(|mut rig, path| {
        let len = BUFFER_LEN + 512 * 5;
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 % 253) as u8).collect();
        rig.write(DATA + 3, &bytes);
        let cut = [1_u32, 700, 100_001, len as u32 - 100_702];
        let mut from = DATA + 3;
        let (mut write, mut read) = (Vec::new(), Vec::new());
        for len in cut {
            write.push(readable(from, len));
            read.push(writable(from, len));
            from += u64::from(len);
        }
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 3, &write), (OK, 1));
        rig.write(DATA + 3, &vec![0; len]);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 3, &read), (OK, len as u32 + 1));
        assert!(rig.read(DATA + 3, len) == bytes);
        let mut expected = pattern(MIB);
        expected[3 * 512..][..len].copy_from_slice(&bytes);
        assert!(std::fs::read(path).unwrap() == expected);
    });
}

#[test]
fn zeros_leave_the_rest_of_a_unit() {
    with_each(|mut rig, path| {
        rig.write(
            DATA,
            &[&9_u64.to_le_bytes()[..], &[5, 0, 0, 0, 0, 0, 0, 0]].concat(),
        );
        let data = [readable(DATA, 16)];
        assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &data), (OK, 1));
        let mut expected = pattern(MIB);
        expected[9 * 512..14 * 512].fill(0);
        assert!(std::fs::read(path).unwrap() == expected);
    });
}

#[test]
fn sectors_of_one_unit_are_written_from_several_threads() {
    let (_, file) = image(MIB);
    let disk = &disk(file.path(), 4096);
    thread::scope(|scope| {
        for sector in 0..8_usize {
            scope.spawn(move || {
                for round in 0..100_usize {
                    let mut bytes = [sector as u8 ^ round as u8; 512];
                    let iovecs = [libc::iovec {
                        iov_base: bytes.as_mut_ptr().cast(),
                        iov_len: 512,
                    }];
                    // SAFETY: the bytes outlive the call, which reads them alone.
                    #[expect(unsafe_code)]
                    let pieces = unsafe { Pieces::new(&iovecs) };
                    assert_eq!(disk.write_at(pieces, sector as u64 * 512).unwrap(), 512);
                }
            });
        }
    });
    for (sector, bytes) in std::fs::read(file.path())
        .unwrap()
        .chunks(512)
        .take(8)
        .enumerate()
    {
        assert!(bytes.iter().all(|byte| *byte == sector as u8 ^ 99));
    }
}

#[test]
fn size_is_whole_units() {
    let (_, file) = image(MIB);
    let disk = disk(file.path(), 4096);
    let error = disk.resize(MIB as u64 + 512).unwrap_err();
    assert!(matches!(error, ResizeError::Direct { unit, .. } if unit >= 4096));
    disk.resize(2 * MIB as u64).unwrap();
    let unit = Direct::of(&open(file.path()))
        .unwrap()
        .unwrap()
        .unwrap()
        .unit();
    if unit > 512 {
        file.as_file().set_len(MIB as u64 + 512).unwrap();
        let error = FileDisk::new(open(file.path()), false).unwrap_err();
        assert!(matches!(error, DiskError::DirectSize { .. }));
    }
}

#[test]
fn bytes_of_the_guest_are_not_shown() {
    let (_, file) = image(MIB);
    let shown = format!("{:?}", disk(file.path(), 512));
    assert!(shown.len() < 1000, "{}", shown.len());
}
