//! Saved state.

use super::super::{Disk, FileDisk};
use super::*;
use crate::state::{Persist, StateError};

fn device(len: usize, read_only: bool) -> Block {
    let (_, file) = image(len);
    let disk = if read_only {
        FileDisk::new(file.reopen().unwrap(), true).unwrap()
    } else {
        file_disk(len).0
    };
    Block::new(Arc::new(disk), setup())
}

fn config(device: &Block) -> [u8; 36] {
    let mut config = [0; 36];
    device.read_config(0, &mut config);
    config
}

#[test]
fn state_restored_into_a_fresh_device_is_equal() {
    let saved = device(1 << 20, false);
    let mut restored = device(1 << 20, false);
    let section = saved.save();
    restored.restore(&section).unwrap();
    assert_eq!(restored.save(), section);
    assert_eq!(config(&restored), config(&saved));
    assert_eq!(restored.features(), saved.features());
}

#[test]
fn state_of_a_device_in_use_is_that_of_a_stopped_one() {
    let (disk, _file) = file_disk(1 << 20);
    let mut rig = Rig::new(disk);
    let before = rig.device.save();
    rig.write_disk(0, &[1; 512]);
    rig.device.stop();
    assert_eq!(rig.device.save(), before);
    rig.device.reset();
    assert_eq!(rig.device.save(), before);
}

#[test]
fn disk_smaller_than_saved_is_refused() {
    let section = device(1 << 20, false).save();
    let mut smaller = device((1 << 20) - 512, false);
    let before = smaller.save();
    let error = smaller.restore(&section).unwrap_err();
    assert!(
        matches!(&error, StateError::Field { field: "capacity", value, .. } if value == "1048576"),
        "{error}"
    );
    assert_eq!(smaller.save(), before);
}

#[test]
fn larger_disk_keeps_the_capacity_that_the_guest_knows() {
    let section = device(1 << 20, false).save();
    let (disk, _file) = file_disk(2 << 20);
    let mut rig = Rig::stopped(disk, FLUSH);
    rig.device.restore(&section).unwrap();
    assert_eq!(config(&rig.device)[..8], 2048_u64.to_le_bytes());
    rig.start();
    assert_eq!(rig.read_disk(2048, 512).0, 1);
    assert_eq!(rig.read_disk(2047, 512).0, 0);
}

#[test]
fn writable_guest_disk_is_not_restored_read_only() {
    for (saved, restored) in [(false, true), (true, false)] {
        let section = device(1 << 20, saved).save();
        let error = device(1 << 20, restored).restore(&section).unwrap_err();
        assert!(
            matches!(
                &error,
                StateError::Field {
                    field: "read_only",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn state_of_another_kind_or_version_is_refused() {
    let mut device = device(1 << 20, false);
    let other = crate::state::Section::new("virtio-rng", 1, &0_u8);
    assert!(matches!(
        device.restore(&other),
        Err(StateError::Kind { .. })
    ));
    let newer = crate::state::Section::new("virtio-block", 2, &0_u8);
    assert!(matches!(
        device.restore(&newer),
        Err(StateError::Version { .. })
    ));
    let garbage = crate::state::Section::new("virtio-block", 1, &[1, 2, 3]);
    assert!(matches!(
        device.restore(&garbage),
        Err(StateError::Decode { .. } | StateError::Field { .. })
    ));
}

#[test]
fn block_sizes_that_are_none_are_refused() {
    #[derive(serde::Serialize)]
    struct Raw {
        capacity: u64,
        read_only: bool,
        logical_block_size: u32,
        physical_block_size: u32,
        capacity_untold: bool,
        writeback: bool,
        kept: Vec<Vec<u16>>,
    }
    for (logical, physical) in [(0, 512), (512, 0), (1000, 4096), (4096, 512), (256, 256)] {
        let raw = Raw {
            capacity: 1024,
            read_only: false,
            logical_block_size: logical,
            physical_block_size: physical,
            capacity_untold: false,
            writeback: true,
            kept: vec![vec![]],
        };
        let section = crate::state::Section::new("virtio-block", 1, &raw);
        let mut device = device(1 << 20, false);
        assert!(matches!(
            device.restore(&section),
            Err(StateError::Field { .. })
        ));
    }
}

#[test]
fn file_that_is_no_disk_is_refused() {
    let (_, odd) = image(1000);
    let error = FileDisk::new(odd.reopen().unwrap(), true).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("1000 bytes is not a multiple of 512")
    );
    let (_, empty) = image(0);
    assert!(FileDisk::new(empty.reopen().unwrap(), true).is_err());
    assert!(FileDisk::new(File::open("/").unwrap(), true).is_err());
    assert!(FileDisk::new(File::open("/dev/zero").unwrap(), true).is_err());
    let (disk, _file) = file_disk(512);
    assert_eq!(disk.size(), 512);
}
