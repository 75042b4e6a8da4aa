//! Disks that are opened, and refused.

use std::error::Error;
use std::os::fd::AsRawFd;

use devices::virtio::VirtioDevice;

use super::*;

/// Whom no disk tells of anything.
fn nobody() -> Arc<dyn Platform> {
    Arc::new(crate::vm::notices::Notices::new().unwrap())
}

/// Opens a disk that shares no limits.
fn open(config: &DiskConfig, descriptors: &[OwnedFd]) -> Result<OpenDisk, DiskError> {
    super::open(config, descriptors, &Groups::new())
}

fn config(path: &Path) -> DiskConfig {
    DiskConfig {
        path: Some(path.to_owned()),
        ..DiskConfig::default()
    }
}

fn image(len: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    file
}

/// The error and its causes, as the binary prints them.
fn failure(config: &DiskConfig) -> String {
    let error = open(config, &[]).unwrap_err();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn missing_file_is_named_with_flag_path_and_reason() {
    assert_eq!(
        failure(&DiskConfig {
            readonly: true,
            ..config(Path::new("/nowhere/root.img"))
        }),
        "--disk: cannot open path /nowhere/root.img for reading: No such file or directory (os error 2)"
    );
}

#[test]
fn only_a_refused_write_is_answered_by_readonly() {
    let text = |kind: io::ErrorKind| purpose(false, &kind.into());
    assert!(text(io::ErrorKind::ReadOnlyFilesystem).contains("readonly=on"));
    assert!(text(io::ErrorKind::PermissionDenied).contains("readonly=on"));
    assert_eq!(text(io::ErrorKind::NotFound), "for reading and writing");
}

#[test]
fn directory_is_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = DiskConfig {
        readonly: true,
        ..config(folder.path())
    };
    assert!(failure(&config).ends_with(
        "cannot be a disk: it is a directory, expected a regular file or a block device"
    ));
}

#[test]
fn character_device_is_no_disk() {
    let text = failure(&config(Path::new("/dev/null")));
    assert_eq!(
        text,
        "--disk: path /dev/null cannot be a disk: it is a character device, expected a regular file or a block device"
    );
}

#[test]
fn empty_image_is_refused() {
    assert!(failure(&config(image(0).path())).contains("it is empty"));
}

#[test]
fn image_with_part_of_a_sector_is_refused_with_both_sizes() {
    let text = failure(&config(image(1000).path()));
    assert!(
        text.ends_with(
            "its size of 1000 bytes is not a multiple of 512, expected for example 1024"
        ),
        "{text}"
    );
}

#[test]
fn capacity_and_read_only_reach_the_guest() {
    let file = image(1 << 20);
    for (readonly, feature) in [(false, 0), (true, 1 << 5)] {
        let config = DiskConfig {
            readonly,
            ..config(file.path())
        };
        let opened = open(&config, &[]).unwrap();
        let device = opened.device(nobody());
        let mut capacity = [0; 8];
        device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 2048);
        assert_eq!(device.features() & (1 << 5), feature);
    }
}

#[test]
fn queues_and_sparseness_reach_the_guest() {
    let file = image(1 << 20);
    let features = |num_queues, sparse| {
        let config = DiskConfig {
            num_queues,
            sparse,
            ..config(file.path())
        };
        let device = open(&config, &[]).unwrap().device(nobody());
        (device.queue_sizes().len(), device.features())
    };
    let (queues, several) = features(3, true);
    assert_eq!((queues, several & (1 << 12)), (3, 1 << 12));
    let (queues, one) = features(1, false);
    assert_eq!((queues, one & (1 << 12)), (1, 0));
    assert_eq!((several & (1 << 13), one & (1 << 13)), (1 << 13, 0));
}

#[test]
fn cpu_that_does_not_exist_is_named() {
    let affinity = |host_cpus| VirtQueueAffinity {
        queue_index: 0,
        host_cpus,
    };
    let file = image(1 << 20);
    let config = |cpus| DiskConfig {
        id: Some("root".to_owned()),
        queue_affinity: Some(vec![affinity(cpus)]),
        ..config(file.path())
    };
    open(&config(vec![0]), &[]).unwrap();
    let text = failure(&config(vec![0, 5000]));
    assert!(
        text.starts_with(
            "--disk: queue_affinity of root cannot be had for queue 0: host CPU 5000 is not there for this process"
        ),
        "{text}"
    );
}

#[test]
fn opened_disk_outlives_its_path_and_gives_devices_again() {
    let file = image(512);
    let opened = open(&config(file.path()), &[]).unwrap();
    file.close().unwrap();
    drop(opened.device(nobody()));
    assert_eq!(opened.device(nobody()).name(), "virtio-disk");
}

#[test]
fn descriptor_is_not_passed_to_children() {
    let opened = open(&config(image(512).path()), &[]).unwrap();
    assert_eq!(flags(&opened) & libc::O_CLOEXEC, libc::O_CLOEXEC);
}

#[test]
fn descriptor_takes_the_place_of_a_path_and_is_left_to_its_owner() {
    let file = image(1 << 20);
    let descriptors = [OwnedFd::from(file.reopen().unwrap())];
    let config = DiskConfig {
        id: Some("root".to_owned()),
        ..DiskConfig::default()
    };
    for _ in 0..2 {
        let opened = open(&config, &descriptors).unwrap();
        assert_eq!((opened.id(), opened.disk.size()), ("root", 1 << 20));
    }
}

#[test]
fn descriptor_that_cannot_be_written_is_refused_for_a_disk_that_can() {
    let file = image(512);
    let descriptors = [OwnedFd::from(File::open(file.path()).unwrap())];
    let config = DiskConfig {
        id: Some("root".to_owned()),
        ..DiskConfig::default()
    };
    let error = open(&config, &descriptors).unwrap_err().to_string();
    assert!(
        error.contains("the descriptor of root is not open for reading and writing"),
        "{error}"
    );
    let config = DiskConfig {
        readonly: true,
        ..config
    };
    open(&config, &descriptors).unwrap();
}

#[test]
fn identification_is_filled_up_with_zeros() {
    assert_eq!(&identification("_disk0")[..8], b"_disk0\0\0");
    assert_eq!(
        &identification("a serial of 20 bytes and more"),
        b"a serial of 20 bytes"
    );
}

/// The flags that the disk was opened with.
fn flags(opened: &OpenDisk) -> i32 {
    let fd = opened.disk.descriptor().unwrap().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    i32::from_str_radix(flags.unwrap().trim(), 8).unwrap()
}

#[test]
fn direct_disk_is_opened_so_by_path_and_by_descriptor() {
    let file = image(1 << 20);
    let direct = DiskConfig {
        direct: true,
        ..config(file.path())
    };
    let opened = open(&direct, &[]).unwrap();
    assert_ne!(flags(&opened) & libc::O_DIRECT, 0);
    drop(opened);
    assert_eq!(
        flags(&open(&config(file.path()), &[]).unwrap()) & libc::O_DIRECT,
        0
    );
    let descriptors = [OwnedFd::from(file.reopen().unwrap())];
    let by_descriptor = DiskConfig {
        path: None,
        ..direct
    };
    let opened = open(&by_descriptor, &descriptors).unwrap();
    assert_ne!(flags(&opened) & libc::O_DIRECT, 0);
}

#[test]
fn file_without_direct_access_is_named() {
    let text = failure(&DiskConfig {
        direct: true,
        ..config(Path::new("/proc/self/mem"))
    });
    assert!(
        text.contains("/proc/self/mem does not take direct=on"),
        "{text}"
    );
}

#[test]
fn image_in_use_is_named_with_who_uses_it() {
    let file = image(1 << 20);
    let writer = open(&config(file.path()), &[]).unwrap();
    let pid = std::process::id();
    let text = failure(&config(file.path()));
    let (origin, holder) = (file.path().display(), format!("process {pid} ("));
    assert!(
        text.starts_with(&format!("--disk: path {origin} is locked by {holder}")),
        "{text}"
    );
    assert!(
        text.ends_with(
            "expected nobody else to use it (readonly=on shares it with others that only read)"
        ),
        "{text}"
    );
    let reader = DiskConfig {
        readonly: true,
        ..config(file.path())
    };
    assert!(failure(&reader).ends_with("expected nobody else to write to it"));
    drop(writer);
    let readers = [open(&reader, &[]).unwrap(), open(&reader, &[]).unwrap()];
    assert!(failure(&config(file.path())).contains("is locked by process"));
    drop(readers);
    open(&config(file.path()), &[]).unwrap();
}

#[test]
fn image_stays_locked_for_the_next_machine() {
    let file = image(1 << 20);
    for lock_granularity in [LockGranularity::ByteRange, LockGranularity::Full] {
        let config = DiskConfig {
            lock_granularity,
            ..config(file.path())
        };
        let opened = open(&config, &[]).unwrap();
        drop(opened.device(nobody()));
        assert!(failure(&config).contains("is locked by"));
        drop(opened);
    }
}

#[test]
fn disk_by_descriptor_is_locked_until_it_is_given_up() {
    let file = image(1 << 20);
    let descriptors = [OwnedFd::from(file.reopen().unwrap())];
    let by_descriptor = DiskConfig::default();
    let opened = open(&by_descriptor, &descriptors).unwrap();
    assert!(failure(&config(file.path())).contains("is locked by"));
    drop(opened);
    let by_path = open(&config(file.path()), &[]).unwrap();
    let error = open(&by_descriptor, &descriptors).unwrap_err().to_string();
    assert!(
        error.contains("the descriptor of disk is locked by"),
        "{error}"
    );
    drop(by_path);
}

#[test]
fn disks_of_a_group_share_its_limits() {
    let bucket = config::TokenBucket {
        size: 1,
        one_time_burst: None,
        refill_time: 1000,
    };
    let groups = groups(&[RateLimitGroupConfig {
        id: "slow".to_owned(),
        rate_limiter_config: RateLimiterConfig {
            bandwidth: None,
            ops: Some(bucket),
        },
    }]);
    let files = [image(512), image(512)];
    let limiters = files.each_ref().map(|file| {
        let config = DiskConfig {
            rate_limit_group: Some("slow".to_owned()),
            ..config(file.path())
        };
        let opened = super::open(&config, &[], &groups).unwrap();
        let error = open(&config, &[]).unwrap_err().to_string();
        assert!(
            error.contains("rate_limit_group \"slow\" of disk is not there"),
            "{error}"
        );
        opened.setup.limiter
    });
    assert!(Arc::ptr_eq(&limiters[0], &limiters[1]));
    let now = Instant::now();
    limiters[0].spend(1, 0, now);
    assert!(limiters[1].wait(now).is_some());
}
