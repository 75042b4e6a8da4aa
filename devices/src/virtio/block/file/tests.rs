//! Facts of the host that are found out, without a device.

use super::*;

#[test]
fn block_device_is_asked_for_its_size_and_not_given_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1024).unwrap();
    let mut disk = FileDisk::new(file.reopen().unwrap(), false).unwrap();
    // A file that may not be cut stands for the device: what is asked for is the same.
    disk.device = true;
    assert!(matches!(
        disk.resize(512),
        Err(ResizeError::BlockDevice {
            desired_size: 512,
            found: 1024
        })
    ));
    file.as_file().set_len(4096).unwrap();
    assert!(matches!(
        disk.resize(8192),
        Err(ResizeError::BlockDevice {
            desired_size: 8192,
            found: 4096
        })
    ));
    assert_eq!(disk.size(), 1024);
    disk.resize(4096).unwrap();
    assert_eq!(disk.size(), 4096);
    assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
}
