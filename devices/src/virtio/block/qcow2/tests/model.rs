//! Random work, after which the image is sound and QEMU reads what was written.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::virtio::block::spec::{FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES};
use crate::virtio::block::tests::{DATA, Rig};
use crate::virtio::driver::readable;

const FEATURES: u64 = FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES;

/// Has the device do `count` random things to the disk that holds `model`, and notes them there.
pub(super) fn exercise(rig: &mut Rig, model: &mut [u8], count: usize, numbers: &mut Numbers) {
    let sectors = model.len() as u64 / 512;
    for step in 0..count {
        let sector = numbers.below(sectors);
        let most = (sectors - sector).min(match numbers.below(8) {
            0 => 512,
            _ => 16,
        });
        let len = 1 + numbers.below(most);
        let range = (sector * 512) as usize..((sector + len) * 512) as usize;
        let segment = [
            &sector.to_le_bytes()[..],
            &(len as u32).to_le_bytes(),
            &0_u32.to_le_bytes(),
        ];
        match numbers.below(20) {
            0 | 1 => {
                rig.write(DATA, &segment.concat());
                let (status, _) = rig.request(VIRTIO_BLK_T_DISCARD, 0, &[readable(DATA, 16)]);
                assert_eq!(status, 0);
                // What is discarded may read as anything: as what it reads as now.
                for at in (range.start..range.end).step_by(1 << 18) {
                    let len = (range.end - at).min(1 << 18);
                    let (status, bytes) = rig.read_disk(at as u64 / 512, len as u32);
                    assert_eq!(status, 0);
                    model[at..at + len].copy_from_slice(&bytes);
                }
            }
            2 => {
                let mut segment = segment.concat();
                segment[12] = (step % 2) as u8;
                rig.write(DATA, &segment);
                let (status, _) = rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[readable(DATA, 16)]);
                assert_eq!(status, 0);
                model[range].fill(0);
            }
            3 => assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, 0),
            4 => {
                let (status, bytes) = rig.read_disk(sector, (len * 512) as u32);
                assert_eq!(status, 0);
                assert!(
                    bytes == model[range],
                    "read of {len} sectors at {sector} in step {step}"
                );
            }
            _ => {
                let bytes: Vec<u8> = (0..len * 512)
                    .map(|at| (at as usize * 7 + step) as u8 | 1)
                    .collect();
                assert_eq!(rig.write_disk(sector, &bytes), 0);
                model[range].copy_from_slice(&bytes);
            }
        }
    }
}

fn random_work(options: &[&str], size: usize, count: usize) {
    let folder = Folder::new();
    let path = folder.create("disk.qcow2", options, &size.to_string());
    let mut model = vec![0; size];
    let mut numbers = Numbers(0x5eed);
    // The image is closed and opened again in between.
    for _ in 0..2 {
        let mut rig = Rig::with_features(open(&path, false, None).unwrap(), FEATURES);
        exercise(&mut rig, &mut model, count / 2, &mut numbers);
        drop(rig);
        check(&path, true);
        assert!(folder.read("disk.qcow2") == model);
    }
}

#[test]
fn ten_thousand_random_writes_leave_a_sound_image() {
    random_work(&[], 48 << 20, 10_000);
}

#[test]
fn small_clusters_and_wide_refcounts_are_sound() {
    random_work(&["-o", "cluster_size=512,refcount_bits=64"], 8 << 20, 1500);
    random_work(&["-o", "cluster_size=4096,refcount_bits=1"], 8 << 20, 1000);
}

#[test]
fn image_of_version_2_is_sound() {
    random_work(&["-o", "compat=0.10"], 16 << 20, 1000);
}

#[test]
fn layer_reads_as_its_base_where_nothing_was_written() {
    let folder = Folder::new();
    let size = 16 << 20;
    let base: Vec<u8> = (0..size).map(|at| (at / 4096) as u8 | 1).collect();
    std::fs::write(folder.path("base.raw"), &base).unwrap();
    let layer = File::create_new(folder.path("layer.qcow2")).unwrap();
    write_layer(&layer, size as u64, "base.raw", "raw").unwrap();
    check(&folder.path("layer.qcow2"), true);
    let backing = || Some(BackingImage::raw(file(&folder.path("base.raw"), true), None).unwrap());
    let mut model = base.clone();
    let mut numbers = Numbers(7);
    for _ in 0..2 {
        let disk = open(&folder.path("layer.qcow2"), false, backing()).unwrap();
        let mut rig = Rig::with_features(disk, FEATURES);
        exercise(&mut rig, &mut model, 1000, &mut numbers);
        drop(rig);
        check(&folder.path("layer.qcow2"), true);
        assert!(folder.read("layer.qcow2") == model);
    }
    assert!(std::fs::read(folder.path("base.raw")).unwrap() == base);
}

#[test]
fn discard_gives_blocks_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;

    let folder = Folder::new();
    let path = folder.create("disk.qcow2", &[], "64M");
    let disk = open(&path, false, None).unwrap();
    write(&disk, 0, &vec![7; 8 << 20]);
    disk.flush().unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let before = blocks();
    assert!(before > 8 << 20);
    disk.discard(0, 4 << 20).unwrap();
    disk.flush().unwrap();
    assert!(before - blocks() >= 4 << 20, "{before} to {}", blocks());
    assert_eq!(read(&disk, 0, 4 << 20), vec![0; 4 << 20]);
    // Their clusters are used again.
    let len = std::fs::metadata(&path).unwrap().len();
    write(&disk, 32 << 20, &vec![9; 2 << 20]);
    disk.flush().unwrap();
    let longer = std::fs::metadata(&path).unwrap().len() - len;
    assert!(longer < 1 << 20, "{longer}");
    drop(disk);
    check(&path, true);
    let kept = open(&path, false, None).unwrap().keeping_blocks();
    assert!(!kept.unmapping().discard);
    let before = blocks();
    kept.write_zeroes(32 << 20, 2 << 20, false).unwrap();
    kept.flush().unwrap();
    assert_eq!(read(&kept, 32 << 20, 2 << 20), vec![0; 2 << 20]);
    assert!(blocks() >= before);
}

#[test]
fn discarding_what_was_never_written_costs_nothing() {
    let folder = Folder::new();
    let path = folder.create("disk.qcow2", &[], "1T");
    let disk = open(&path, false, None).unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    disk.discard(0, 1 << 40).unwrap();
    disk.write_zeroes(0, 1 << 40, true).unwrap();
    disk.flush().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
}

#[test]
fn grown_image_is_zero_behind_its_old_end() {
    let folder = Folder::new();
    for options in [&[][..], &["-o", "compat=0.10"], &["-o", "cluster_size=512"]] {
        let path = folder.create("disk.qcow2", options, "1049600");
        let disk = open(&path, false, None).unwrap();
        write(&disk, 0, &vec![3; 1_049_600]);
        disk.resize(300 << 20).unwrap();
        assert_eq!(disk.size(), 300 << 20);
        assert_eq!(read(&disk, 1_049_600, 1 << 20), vec![0; 1 << 20]);
        write(&disk, (300 << 20) - 512, &[5; 512]);
        let error = disk.resize(1 << 20).unwrap_err().to_string();
        assert!(
            error.contains("a qcow2 image is only made larger"),
            "{error}"
        );
        disk.flush().unwrap();
        drop(disk);
        check(&path, true);
        let read = folder.read("disk.qcow2");
        assert_eq!(read.len(), 300 << 20);
        assert!(read[..1_049_600].iter().all(|byte| *byte == 3));
        assert!(
            read[1_049_600..(300 << 20) - 512]
                .iter()
                .all(|byte| *byte == 0)
        );
        assert_eq!(read[(300 << 20) - 512..], [5; 512]);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn size_beyond_what_the_format_has_is_refused() {
    let folder = Folder::new();
    let path = folder.create("disk.qcow2", &["-o", "cluster_size=512"], "1M");
    let disk = open(&path, false, None).unwrap();
    assert!(matches!(
        disk.resize(1 << 40),
        Err(ResizeError::Host { .. })
    ));
    assert_eq!(disk.size(), 1 << 20);
    write(&disk, 0, &[1; 512]);
    drop(disk);
    check(&path, true);
}

#[test]
fn many_threads_share_a_disk() {
    let folder = Folder::new();
    let path = folder.create("disk.qcow2", &["-o", "cluster_size=4096"], "64M");
    let disk = open(&path, false, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut numbers = Numbers(thread + 1);
                let mut model = vec![0_u8; 1 << 20];
                for step in 0..400_u64 {
                    // Neighbours share clusters.
                    let at = numbers.below(2048);
                    let offset = (at * 4 + thread) * 512;
                    let range = (at * 512) as usize..(at * 512 + 512) as usize;
                    match numbers.below(8) {
                        0 => disk.flush().unwrap(),
                        1 => {
                            disk.discard(offset, 512).unwrap();
                            write(disk, offset, &[0; 512]);
                            model[range].fill(0);
                        }
                        2 => assert_eq!(read(disk, offset, 512), model[range]),
                        _ => {
                            write(disk, offset, &[step as u8; 512]);
                            model[range].fill(step as u8);
                        }
                    }
                }
                for at in 0..2048 {
                    let range = at * 512..at * 512 + 512;
                    assert_eq!(
                        read(disk, (at as u64 * 4 + thread) * 512, 512),
                        model[range]
                    );
                }
            });
        }
    });
    drop(disk);
    check(&path, true);
}
