use std::fs;
use std::process::Command;

use proptest::prelude::*;

use super::*;

fn run(command: &mut Command, package: &str) {
    let output = command.output();
    let output = output.unwrap_or_else(|_| panic!("this test needs: apt-get install {package}"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The bytes of a file system of `kind` with some files in it.
fn made(kind: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("boot/entries")).unwrap();
    fs::write(tree.join("boot/kernel"), b"k".repeat(100_000)).unwrap();
    fs::write(tree.join("boot/entries/one"), b"1").unwrap();
    fs::write(tree.join("boot/entries/two"), b"2").unwrap();
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    if kind == "vfat" {
        let make = ["-n", "LABEL", "-i", "12ab34cd"];
        run(
            Command::new("/sbin/mkfs.vfat")
                .args(make)
                .args(options)
                .arg(&image),
            "dosfstools",
        );
        run(
            Command::new("mcopy")
                .arg("-s")
                .arg("-i")
                .arg(&image)
                .arg(tree.join("boot"))
                .arg("::"),
            "mtools",
        );
    } else {
        std::os::unix::fs::symlink("/boot/kernel", tree.join("link")).unwrap();
        std::os::unix::fs::symlink("loop", tree.join("loop")).unwrap();
        run(
            Command::new("/sbin/mke2fs")
                .args(["-q", "-t", kind, "-L", "LABEL"])
                .args(["-U", "12345678-9abc-def0-1234-56789abcdef0"])
                .args(options)
                .arg("-d")
                .arg(&tree)
                .arg(&image),
            "e2fsprogs",
        );
    }
    fs::read(image).unwrap()
}

fn open(bytes: Vec<u8>) -> Result<FileSystem, Unreadable> {
    let len = bytes.len() as u64;
    FileSystem::open(&Image::new(Box::new(bytes), len))
}

fn is_read(filesystem: &FileSystem) {
    assert_eq!(filesystem.label(), "LABEL");
    assert_eq!(
        filesystem.read("/boot/kernel", 100_000).unwrap(),
        b"k".repeat(100_000)
    );
    let mut names = filesystem.list("/boot/entries");
    names.retain(|name| name != "." && name != "..");
    names.sort();
    assert_eq!(names, ["one", "two"]);
    assert!(filesystem.has("/boot/entries/one"));
    assert!(!filesystem.has("/boot/entries"));
    assert!(filesystem.list("/nowhere").is_empty());
    let error = filesystem.read("/nowhere", 1).unwrap_err();
    assert!(matches!(error, FileError::Missing), "{error}");
    let error = filesystem.read("/boot/kernel", 99_999).unwrap_err();
    assert_eq!(error.to_string(), "it has more than 99999 bytes");
}

#[test]
fn ext4_is_read() {
    let filesystem = open(made("ext4", &[])).unwrap();
    is_read(&filesystem);
    assert_eq!(filesystem.uuid(), "12345678-9abc-def0-1234-56789abcdef0");
    assert_eq!(filesystem.read("/link", 100_000).unwrap().len(), 100_000);
    let error = filesystem.read("/loop", 1).unwrap_err();
    assert!(matches!(error, FileError::Unreadable(_)), "{error}");
}

#[test]
fn ext2_is_read() {
    is_read(&open(made("ext2", &[])).unwrap());
}

#[test]
fn fat_of_each_size_is_read() {
    for (size, sectors) in [("12", "8"), ("16", "1")] {
        let filesystem = open(made("vfat", &["-F", size, "-s", sectors])).unwrap();
        is_read(&filesystem);
        assert_eq!(filesystem.uuid(), "12AB-34CD");
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    for (offset, magic, name) in FOREIGN {
        let mut bytes = vec![0; 256 << 10];
        bytes[*offset as usize..][..magic.len()].copy_from_slice(magic);
        let error = open(bytes).unwrap_err();
        assert_eq!(error.to_string(), *name);
    }
    let mut bytes = vec![0; 256 << 10];
    let end = bytes.len() - 0x2000;
    bytes[end..end + 4].copy_from_slice(b"\xfc\x4e\x2b\xa9");
    assert_eq!(open(bytes).unwrap_err().to_string(), "mdraid");
    assert!(matches!(open(vec![0; 4096]), Err(Unreadable::Unknown)));
    assert!(matches!(open(Vec::new()), Err(Unreadable::Unknown)));
}

#[test]
fn truncated_file_systems_are_refused_or_end_early() {
    for kind in ["ext4", "vfat"] {
        let bytes = made(kind, &[]);
        for len in [600, 1100, 2048, 5000, 70_000, 1 << 20] {
            if let Ok(filesystem) = open(bytes[..len].to_vec()) {
                let _ = filesystem.read("/boot/kernel", 100_000);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damaged_ext4_never_panics(damage in proptest::collection::vec((0_usize..0x10000, any::<u8>()), 1..20)) {
        thread_local!(static SOUND: Vec<u8> = made("ext4", &["-O", "^metadata_csum"]));
        let mut bytes = SOUND.with(Clone::clone);
        for (at, value) in damage {
            bytes[at] = value;
        }
        if let Ok(filesystem) = open(bytes) {
            let _ = filesystem.read("/boot/kernel", 100_000);
            filesystem.list("/boot/entries");
        }
    }
}
