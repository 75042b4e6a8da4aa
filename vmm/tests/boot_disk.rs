//! The process that reads boot disks, as it is: confined, and on disks that are made to harm it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use devices::virtio::block::FileDisk;
use proptest::prelude::*;
use tempfile::TempDir;
use vmm::boot_disk::{BootDiskError, Booted, Limits, Reader};

const KERNEL: &str = "/boot/vmlinuz";

fn reader() -> Reader {
    Reader::start(Path::new(env!("CARGO_BIN_EXE_podvisor"))).unwrap()
}

/// An ext4 file system whose kernel is `kernel`.
fn image(kernel: &[u8]) -> (TempDir, File) {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    let menu = format!("menuentry 'Linux' {{ linux {KERNEL} ro }}");
    fs::write(tree.join("boot/grub/grub.cfg"), menu).unwrap();
    fs::write(tree.join(&KERNEL[1..]), kernel).unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^metadata_csum", "-d"])
        .args([&tree, &path])
        .status()
        .expect("this test needs: apt-get install e2fsprogs");
    assert!(made.success());
    let file = File::options().read(true).write(true).open(path).unwrap();
    (folder, file)
}

fn read(reader: &mut Reader, file: &File) -> Result<Booted, BootDiskError> {
    let disk = FileDisk::new(file.try_clone().unwrap(), true).unwrap();
    reader.read(&disk, Limits::of_guest(64 << 20))
}

#[test]
fn process_reads_one_disk_after_the_other() {
    let mut reader = reader();
    for kernel in ["one", "two"] {
        let (_folder, file) = image(kernel.as_bytes());
        let booted = read(&mut reader, &file).unwrap();
        assert_eq!(std::io::read_to_string(booted.kernel).unwrap(), kernel);
        assert_eq!(booted.cmdline, "BOOT_IMAGE=/boot/vmlinuz ro");
        assert_eq!(booted.title, "Linux (hd0)");
        assert!(booted.initramfs.is_none());
    }
}

#[test]
fn process_has_given_up_all_but_its_socket() {
    let mut reader = reader();
    let (_folder, file) = image(b"kernel");
    read(&mut reader, &file).unwrap();
    let of_process = |name: &str| format!("/proc/{}/{name}", reader.pid());
    let status = fs::read_to_string(of_process("status")).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    let limits = fs::read_to_string(of_process("limits")).unwrap();
    for limit in [
        "Max open files 0 0",
        "Max processes 0 0",
        "Max address space 1073741824 1073741824",
    ] {
        let words: Vec<_> = limits.split_whitespace().collect();
        assert!(words.join(" ").contains(limit), "{limit}\n{limits}");
    }
    // Others of the same user cannot look; root can.
    if let Ok(descriptors) = fs::read_dir(of_process("fd")) {
        for descriptor in descriptors {
            let target = fs::read_link(descriptor.unwrap().path()).unwrap();
            let target = target.to_string_lossy().into_owned();
            assert!(
                target.starts_with("socket:") || target == "/dev/null",
                "{target}"
            );
        }
    }
}

#[test]
fn disk_without_an_entry_leaves_the_process_for_the_next() {
    let mut reader = reader();
    let empty = tempfile::tempfile().unwrap();
    empty.set_len(1 << 20).unwrap();
    let error = read(&mut reader, &empty).unwrap_err();
    assert!(matches!(error, BootDiskError::Refused(_)), "{error}");
    let (_folder, file) = image(b"kernel");
    read(&mut reader, &file).unwrap();
}

#[test]
fn process_that_was_killed_is_told_of() {
    let mut reader = reader();
    let killed = Command::new("kill")
        .args(["-KILL", &reader.pid().to_string()])
        .status();
    assert!(killed.unwrap().success());
    while reader.is_alive() {
        std::thread::yield_now();
    }
    let (_folder, file) = image(b"kernel");
    let error = read(&mut reader, &file).unwrap_err();
    assert!(matches!(error, BootDiskError::Ended(_)), "{error}");
}

#[test]
fn process_ends_with_its_owner() {
    let reader = reader();
    let folder = format!("/proc/{}", reader.pid());
    assert!(Path::new(&folder).exists());
    drop(reader);
    assert!(!Path::new(&folder).exists());
}

#[test]
fn kernel_that_does_not_fit_the_guest_is_refused() {
    let (_folder, file) = image(&vec![1; 1 << 20]);
    let disk = FileDisk::new(file, true).unwrap();
    let error = reader()
        .read(&disk, Limits::of_guest(512 << 10))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("/boot/vmlinuz: it has more than 524288 bytes"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn damaged_disks_end_in_an_answer(damage in proptest::collection::vec((0_u64..0x20000, any::<u8>()), 1..40)) {
        thread_local!(static SOUND: (TempDir, File) = image(b"kernel"));
        let copy = tempfile::tempfile().unwrap();
        SOUND.with(|(folder, _)| {
            let mut from = File::open(folder.path().join("image")).unwrap();
            std::io::copy(&mut from, &mut &copy).unwrap();
        });
        for (at, byte) in damage {
            copy.write_all_at(&[byte], at).unwrap();
        }
        // A damaged disk may boot, be refused or crash the process; it does not keep it.
        if let Err(error) = read(&mut reader(), &copy) {
            prop_assert!(!matches!(error, BootDiskError::Time | BootDiskError::Host { .. }), "{}", error);
        }
    }
}
