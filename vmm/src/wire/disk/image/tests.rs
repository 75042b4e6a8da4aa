//! Chains and overlays that are opened, and refused.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Instant;

use api::config::{DiskConfig, ImageType};
use vm_memory::VolatileSlice;

use super::super::{Groups, OpenDisk};
use super::*;

fn qemu_img(folder: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("qemu-img starts: apt-get install qemu-utils");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
}

/// A folder with a raw image of 1 MiB, whose bytes are all 7.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base"), vec![7; 1 << 20]).unwrap();
    folder
}

fn create(folder: &tempfile::TempDir, name: &str, arguments: &[&str]) {
    let arguments = [&["create", "-q", "-f", "qcow2"], arguments, &[name, "1M"]].concat();
    qemu_img(folder.path(), &arguments);
}

fn qcow2(folder: &tempfile::TempDir, name: &str) -> DiskConfig {
    DiskConfig {
        path: Some(folder.path().join(name)),
        image_type: ImageType::Qcow2,
        ..DiskConfig::default()
    }
}

fn overlay(folder: &tempfile::TempDir, name: &str) -> DiskConfig {
    DiskConfig {
        path: Some(folder.path().join("base")),
        overlay: Some(folder.path().join(name)),
        ..DiskConfig::default()
    }
}

fn open(config: &DiskConfig) -> Result<OpenDisk, DiskError> {
    config.validate_with(&|_| 0).unwrap();
    super::super::open(config, &[], &Groups::new())
}

/// The error and its causes, as the binary prints them.
fn failure(config: &DiskConfig) -> String {
    let error = open(config).unwrap_err();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The first byte of a disk.
fn first(disk: &OpenDisk) -> u8 {
    let mut byte = [0];
    let list = [libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    }];
    // SAFETY: the list is of a buffer that nothing else uses.
    #[expect(unsafe_code)]
    let pieces = unsafe { devices::virtio::block::Pieces::new(&list) };
    assert_eq!(disk.disk.read_at(pieces, 0).unwrap(), 1);
    byte[0]
}

fn write(disk: &OpenDisk, value: u8) {
    let mut bytes = [value; 512];
    let slice = VolatileSlice::from(&mut bytes[..]);
    let list = [libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: 512,
    }];
    // SAFETY: as for reading.
    #[expect(unsafe_code)]
    let pieces = unsafe { devices::virtio::block::Pieces::new(&list) };
    assert_eq!(disk.disk.write_at(pieces, 0).unwrap(), 512);
    disk.disk.flush().unwrap();
}

#[test]
fn image_that_builds_on_another_is_opened_only_if_that_is_allowed() {
    let folder = folder();
    create(&folder, "layer", &["-b", "base", "-F", "raw"]);
    let base = folder.path().canonicalize().unwrap().join("base");
    let config = qcow2(&folder, "layer");
    let text = failure(&config);
    let expected = format!(
        "layer builds on {}, expected an image that builds on no other (backing_files=on allows it)",
        base.display()
    );
    assert!(text.ends_with(&expected), "{text}");
    let allowed = DiskConfig {
        backing_files: true,
        ..config.clone()
    };
    let disk = open(&allowed).unwrap();
    assert_eq!(first(&disk), 7);
    write(&disk, 8);
    assert_eq!(first(&disk), 8);
    assert!(fs::read(base).unwrap().iter().all(|byte| *byte == 7));
    // What is below may be a chain of its own.
    drop(disk);
    create(&folder, "top", &["-b", "layer", "-F", "qcow2"]);
    let top = DiskConfig {
        backing_files: true,
        ..qcow2(&folder, "top")
    };
    assert_eq!(first(&open(&top).unwrap()), 8);
}

#[test]
fn image_by_descriptor_builds_on_nothing() {
    let folder = folder();
    create(&folder, "disk", &[]);
    create(&folder, "layer", &["-b", "base", "-F", "raw"]);
    let by_descriptor = |name: &str| {
        let file = File::options()
            .read(true)
            .write(true)
            .open(folder.path().join(name));
        let config = DiskConfig {
            image_type: ImageType::Qcow2,
            id: Some("root".to_owned()),
            ..DiskConfig::default()
        };
        super::super::open(&config, &[OwnedFd::from(file.unwrap())], &Groups::new())
    };
    let disk = by_descriptor("disk").unwrap();
    write(&disk, 3);
    assert_eq!(first(&disk), 3);
    let text = by_descriptor("layer").unwrap_err().to_string();
    assert_eq!(
        text,
        "--disk: the descriptor of root builds on base, expected an image that builds on no other where a descriptor is \
         all there is of it"
    );
}

#[test]
fn descriptor_with_direct_access_is_refused() {
    let folder = folder();
    create(&folder, "disk", &[]);
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(folder.path().join("disk"))
        .unwrap();
    let config = DiskConfig {
        path: None,
        ..qcow2(&folder, "disk")
    };
    let error = super::super::open(&config, &[OwnedFd::from(file)], &Groups::new()).unwrap_err();
    assert!(matches!(error, DiskError::DirectQcow2 { .. }), "{error}");
}

#[test]
fn format_of_what_is_below_is_never_guessed() {
    let folder = folder();
    create(&folder, "layer", &["-b", "base", "-F", "raw"]);
    let path = folder.path().join("layer");
    // The extension that tells the format becomes one that nobody knows.
    let mut bytes = fs::read(&path).unwrap();
    let known = 0xe279_2aca_u32.to_be_bytes();
    let at = bytes.windows(4).position(|bytes| bytes == known).unwrap();
    bytes[at] = 0x11;
    fs::write(&path, bytes).unwrap();
    let config = DiskConfig {
        backing_files: true,
        ..qcow2(&folder, "layer")
    };
    let text = failure(&config);
    assert!(
        text.contains("but does not tell its format, which is never guessed"),
        "{text}"
    );
    fs::write(folder.path().join("other"), vec![0; 1 << 20]).unwrap();
    qemu_img(
        folder.path(),
        &[
            "rebase", "-u", "-f", "qcow2", "-b", "other", "-F", "vpc", "layer",
        ],
    );
    let text = failure(&config);
    assert!(
        text.ends_with("other, which is of format \"vpc\", expected raw or qcow2"),
        "{text}"
    );
}

#[test]
fn image_below_that_is_missing_is_named() {
    let folder = folder();
    create(&folder, "layer", &["-b", "base", "-F", "raw"]);
    fs::remove_file(folder.path().join("base")).unwrap();
    let text = failure(&DiskConfig {
        backing_files: true,
        ..qcow2(&folder, "layer")
    });
    assert!(text.contains("/base for reading: No such file"), "{text}");
}

#[test]
fn loops_and_deep_chains_are_refused() {
    let folder = folder();
    create(&folder, "0", &[]);
    for layer in 1..=MAX_LAYERS {
        let below = (layer - 1).to_string();
        create(&folder, &layer.to_string(), &["-b", &below, "-F", "qcow2"]);
    }
    let config = |name: String| DiskConfig {
        backing_files: true,
        readonly: true,
        ..qcow2(&folder, &name)
    };
    open(&config((MAX_LAYERS - 1).to_string())).unwrap();
    let text = failure(&config(MAX_LAYERS.to_string()));
    assert!(
        text.ends_with("/0 is more than 32 images deep, expected no more"),
        "{text}"
    );
    qemu_img(
        folder.path(),
        &["rebase", "-u", "-f", "qcow2", "-b", "5", "-F", "qcow2", "1"],
    );
    let text = failure(&config("5".to_owned()));
    assert!(text.ends_with("/5, which builds on it"), "{text}");
}

#[test]
fn raw_disk_stays_raw_whatever_the_guest_writes() {
    let folder = folder();
    create(&folder, "layer", &["-b", "base", "-F", "raw"]);
    let path = folder.path().join("layer");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 18)
        .unwrap();
    let config = |image_type| DiskConfig {
        image_type,
        ..qcow2(&folder, "layer")
    };
    for image_type in [ImageType::Raw, ImageType::Unknown] {
        let disk = open(&config(image_type)).unwrap();
        assert_eq!(disk.disk.size(), 1 << 18);
        assert_eq!(first(&disk), b'Q');
    }
    let text = failure(&qcow2(&folder, "base"));
    assert!(
        text.ends_with("base cannot be used as image_type=qcow2: it is no qcow2 image: it does not begin with a qcow2 header"),
        "{text}"
    );
}

#[test]
fn overlay_is_made_and_gone_on_with() {
    let folder = folder();
    let config = overlay(&folder, "layer");
    let disk = open(&config).unwrap();
    assert_eq!((disk.disk.size(), first(&disk)), (1 << 20, 7));
    write(&disk, 9);
    drop(disk);
    assert_eq!(first(&open(&config).unwrap()), 9);
    assert_eq!(fs::read(folder.path().join("base")).unwrap()[0], 7);
    qemu_img(folder.path(), &["check", "-q", "-f", "qcow2", "layer"]);
    // QEMU finds what it builds on by itself.
    qemu_img(
        folder.path(),
        &["convert", "-f", "qcow2", "-O", "raw", "layer", "all"],
    );
    let all = fs::read(folder.path().join("all")).unwrap();
    assert_eq!((all[0], all[512]), (9, 7));
    assert_eq!(disk_names(&folder), ["all", "base", "layer"]);
}

fn disk_names(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn overlay_of_a_large_image_is_made_at_once() {
    let folder = folder();
    let base = File::options()
        .write(true)
        .open(folder.path().join("base"))
        .unwrap();
    base.set_len(8 << 40).unwrap();
    let begun = Instant::now();
    let disk = open(&overlay(&folder, "layer")).unwrap();
    eprintln!("an overlay of 8 TiB was open after {:?}", begun.elapsed());
    assert_eq!(disk.disk.size(), 8 << 40);
    let layer = fs::metadata(folder.path().join("layer")).unwrap();
    // Nothing of the base is in there.
    assert!(layer.blocks() * 512 < 1 << 20, "{}", layer.blocks());
}

#[test]
fn many_overlays_share_a_base_that_nobody_writes() {
    let folder = folder();
    let layers = ["one", "two", "three"].map(|name| open(&overlay(&folder, name)).unwrap());
    for (number, layer) in layers.iter().enumerate() {
        write(layer, number as u8);
    }
    assert_eq!(layers.each_ref().map(first), [0, 1, 2]);
    let base = DiskConfig {
        path: Some(folder.path().join("base")),
        ..DiskConfig::default()
    };
    assert!(failure(&base).contains("base is locked by process"));
    drop(layers);
    let writer = open(&base).unwrap();
    let text = failure(&overlay(&folder, "four"));
    assert!(text.contains("base is locked by process"), "{text}");
    // Nothing was made then.
    assert!(!disk_names(&folder).contains(&"four".to_owned()));
    drop(writer);
    let one = open(&overlay(&folder, "one")).unwrap();
    assert!(failure(&overlay(&folder, "one")).contains("one is locked by process"));
    drop(one);
}

#[test]
fn layer_of_something_else_is_refused_by_name() {
    let folder = folder();
    fs::write(folder.path().join("other"), vec![0; 1 << 20]).unwrap();
    create(&folder, "of_other", &["-b", "other", "-F", "raw"]);
    create(&folder, "of_nothing", &[]);
    create(
        &folder,
        "of_wrong_format",
        &["-b", "of_nothing", "-F", "qcow2"],
    );
    qemu_img(
        folder.path(),
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "base",
            "-F",
            "qcow2",
            "of_wrong_format",
        ],
    );
    for (name, found) in [
        ("of_other", "other (raw)"),
        ("of_nothing", "nothing"),
        ("of_wrong_format", "base (qcow2)"),
    ] {
        let text = failure(&overlay(&folder, name));
        assert!(
            text.contains(found) && text.ends_with("/base (raw)"),
            "{text}"
        );
    }
    // The same image by another name.
    std::os::unix::fs::symlink("base", folder.path().join("link")).unwrap();
    create(&folder, "of_link", &["-b", "link", "-F", "raw"]);
    open(&overlay(&folder, "of_link")).unwrap();
    fs::hard_link(folder.path().join("base"), folder.path().join("itself")).unwrap();
    assert!(failure(&overlay(&folder, "itself")).contains("locked"));
    fs::write(folder.path().join("text"), "not an image").unwrap();
    assert!(failure(&overlay(&folder, "text")).contains("it is no qcow2 image"));
    assert_eq!(
        fs::read(folder.path().join("text")).unwrap(),
        b"not an image"
    );
}

#[test]
fn overlay_of_a_chain_needs_what_the_chain_needs() {
    let folder = folder();
    create(&folder, "middle", &["-b", "base", "-F", "raw"]);
    let config = DiskConfig {
        overlay: Some(folder.path().join("layer")),
        ..qcow2(&folder, "middle")
    };
    assert!(failure(&config).contains("backing_files=on allows it"));
    let allowed = DiskConfig {
        backing_files: true,
        ..config
    };
    let disk = open(&allowed).unwrap();
    write(&disk, 4);
    drop(disk);
    assert_eq!(first(&open(&allowed).unwrap()), 4);
}

#[test]
fn folder_that_is_missing_is_named() {
    let folder = folder();
    let text = failure(&overlay(&folder, "missing/layer"));
    assert!(
        text.contains("cannot make the overlay at path")
            && text.contains("missing/layer: No such file"),
        "{text}"
    );
}
