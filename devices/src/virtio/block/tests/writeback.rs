//! When writes are durable, as the driver wants it.

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;

use super::disks::ScriptDisk;
use super::*;
use crate::state::Persist;

const OK: u8 = 0;
const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
const WRITEBACK: u64 = 32;

fn writeback(device: &Block) -> u8 {
    let mut value = [0xff];
    device.read_config(WRITEBACK, &mut value);
    value[0]
}

/// Writes a sector, and tells whether the disk was flushed for it.
fn is_durable(rig: &mut Rig, disk: &ScriptDisk) -> bool {
    let before = disk.0.lock().unwrap().flushes;
    assert_eq!(rig.write_disk(4, &[9; 512]), OK);
    let script = disk.0.lock().unwrap();
    let flushed = script.flushes > before;
    assert!(!flushed || script.durable == script.data);
    flushed
}

#[test]
fn driver_toggles_durability_while_the_device_runs() {
    let disk = ScriptDisk::new(1 << 20);
    let mut rig = Rig::with_features(disk.clone(), FLUSH | CONFIG_WCE);
    assert_ne!(rig.device.features() & CONFIG_WCE, 0);
    assert_eq!(writeback(&rig.device), 1);
    assert!(!is_durable(&mut rig, &disk));
    rig.device.write_config(WRITEBACK, &[0]);
    assert_eq!(writeback(&rig.device), 0);
    assert!(is_durable(&mut rig, &disk));
    rig.device.write_config(WRITEBACK, &[1]);
    assert!(!is_durable(&mut rig, &disk));
}

#[test]
fn field_does_nothing_for_a_driver_that_did_not_accept_it() {
    for (features, durable) in [(FLUSH, false), (0, true), (CONFIG_WCE, true)] {
        let disk = ScriptDisk::new(1 << 20);
        let mut rig = Rig::with_features(disk.clone(), features);
        for value in [0, 1] {
            rig.device.write_config(WRITEBACK, &[value]);
            assert_eq!(is_durable(&mut rig, &disk), durable, "{features:#x}");
        }
    }
}

#[test]
fn other_fields_are_not_written() {
    let (disk, _file) = file_disk(1 << 20);
    let mut device = Block::new(Arc::new(disk), setup());
    let config = |device: &Block| {
        let mut config = [0; 60];
        device.read_config(0, &mut config);
        config
    };
    let before = config(&device);
    for offset in [0, 16, 28, 33, 36, 59, 60, 1 << 40, u64::MAX] {
        device.write_config(offset, &[0; 4]);
        device.write_config(offset, &[]);
    }
    assert_eq!(config(&device), before);
    // One write over several fields.
    device.write_config(28, &[0xff, 0xff, 0xff, 0xff, 0]);
    let mut after = before;
    after[32] = 0;
    assert_eq!(config(&device), after);
}

#[test]
fn choice_is_saved_and_ends_with_a_reset() {
    let device = || Block::new(Arc::new(file_disk(1 << 20).0), setup());
    let mut saved = device();
    saved.write_config(WRITEBACK, &[0]);
    let mut restored = device();
    restored.restore(&saved.save()).unwrap();
    assert_eq!(writeback(&restored), 0);
    assert_eq!(restored.save(), saved.save());
    restored.reset();
    assert_eq!(writeback(&restored), 1);
}
