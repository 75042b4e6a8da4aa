//! Images that QEMU made.

use super::*;

/// Bytes that can be compressed, and some that cannot.
fn contents(len: usize) -> Vec<u8> {
    let mut numbers = Numbers(3);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let number = numbers.next();
        match number % 3 {
            0 => bytes.extend(vec![number as u8; 70_000]),
            1 => bytes.extend((0..9000).flat_map(|_| numbers.next().to_le_bytes())),
            _ => bytes.extend(vec![0; 100_000]),
        }
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn compressed_image_reads_and_is_written_over() {
    let folder = Folder::new();
    let mut model = contents(12 << 20);
    std::fs::write(folder.path("raw"), &model).unwrap();
    for options in ["cluster_size=65536", "cluster_size=4096", "compat=0.10"] {
        let arguments = [
            "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "disk",
        ];
        qemu_img(folder.0.path(), &arguments);
        let path = folder.path("disk");
        let disk = open(&path, false, None).unwrap();
        assert!(read(&disk, 0, model.len()) == model);
        for at in (0..model.len()).step_by(150_000) {
            let at = at / 512 * 512;
            write(&disk, at as u64, &[9; 1024]);
            model[at..at + 1024].fill(9);
        }
        assert!(read(&disk, 0, model.len()) == model);
        disk.flush().unwrap();
        drop(disk);
        check(&path, true);
        assert!(folder.read("disk") == model);
        model = contents(12 << 20);
    }
}

#[test]
fn chain_reads_as_qemu_reads_it() {
    let folder = Folder::new();
    let base = contents(4 << 20);
    std::fs::write(folder.path("base"), &base).unwrap();
    let below = |name: &str, format: &str, of: &str, size: &str| {
        folder.create(name, &["-b", of, "-F", format], size);
    };
    // The second layer is larger than what is below it, and the third smaller.
    below("one", "raw", "base", "4M");
    let backing = || BackingImage::raw(file(&folder.path("base"), true), None).unwrap();
    let one = open(&folder.path("one"), false, Some(backing())).unwrap();
    write(&one, 1 << 20, &[1; 100_352]);
    one.flush().unwrap();
    drop(one);
    below("two", "qcow2", "one", "6M");
    let below_two =
        || BackingImage::qcow2(file(&folder.path("one"), true), None, Some(backing())).unwrap();
    let two = open(&folder.path("two"), false, Some(below_two())).unwrap();
    write(&two, 5 << 20, &[2; 4096]);
    two.write_zeroes(0, 200_704, true).unwrap();
    two.flush().unwrap();
    drop(two);
    below("three", "qcow2", "two", "5M");
    let all = || {
        let two = BackingImage::qcow2(file(&folder.path("two"), true), None, Some(below_two()));
        open(&folder.path("three"), true, Some(two.unwrap())).unwrap()
    };
    let disk = all();
    assert_eq!(disk.size(), 5 << 20);
    assert!(read(&disk, 0, 5 << 20) == folder.read("three"));
    assert_eq!(read(&disk, 0, 512), [0; 512]);
    assert_eq!(read(&disk, 1 << 20, 512), [1; 512]);
    assert_eq!(read(&disk, 2 << 20, 4096), base[2 << 20..(2 << 20) + 4096]);
}

#[test]
fn growing_layer_hides_what_is_below() {
    let folder = Folder::new();
    std::fs::write(folder.path("base"), vec![7; 4 << 20]).unwrap();
    let backing = || Some(BackingImage::raw(file(&folder.path("base"), true), None).unwrap());
    let path = folder.create("layer", &["-b", "base", "-F", "raw"], "1049600");
    let disk = open(&path, false, backing()).unwrap();
    disk.resize(8 << 20).unwrap();
    assert_eq!(
        read(&disk, 1_049_600 - 512, 1024),
        [[7; 512], [0; 512]].concat()
    );
    assert_eq!(
        read(&disk, 1_049_600, (4 << 20) - 1_049_600),
        vec![0; (4 << 20) - 1_049_600]
    );
    drop(disk);
    check(&path, true);
    let old = folder.create(
        "old",
        &["-o", "compat=0.10", "-b", "base", "-F", "raw"],
        "1M",
    );
    let disk = open(&old, false, backing()).unwrap();
    assert!(!disk.unmapping().discard);
    assert!(matches!(
        disk.resize(8 << 20),
        Err(ResizeError::Host { .. })
    ));
    assert_eq!(disk.size(), 1 << 20);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let folder = Folder::new();
    let refusal = |options: &[&str]| {
        let path = folder.create("disk", options, "4M");
        let error = Header::read(&file(&path, true)).unwrap_err();
        std::fs::remove_file(path).unwrap();
        error.to_string()
    };
    let secret = ["--object", "secret,id=s,data=secret"];
    let luks = [
        &secret[..],
        &[
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        ],
    ]
    .concat();
    assert_eq!(refusal(&luks), HeaderError::Encrypted("LUKS").to_string());
    let zstd = refusal(&["-o", "compression_type=zstd"]);
    assert_eq!(zstd, HeaderError::Compression("zstd").to_string());
    assert_eq!(
        refusal(&["-o", "extended_l2=on"]),
        HeaderError::ExtendedL2.to_string()
    );
    assert_eq!(
        refusal(&["-o", "data_file=data"]),
        HeaderError::DataFile.to_string()
    );

    let path = folder.create("disk", &[], "4M");
    for (byte, expected) in [
        (1, HeaderError::Dirty),
        (2, HeaderError::Corrupt),
        (0x80, HeaderError::Features(0x80)),
    ] {
        // The lowest byte of the incompatible features.
        file(&path, false).write_all_at(&[byte], 79).unwrap();
        let error = open(&path, false, None).unwrap_err();
        assert!(
            matches!(&error, Qcow2Error::Header(found) if *found == expected),
            "{error}"
        );
    }
    file(&path, false).write_all_at(&[0], 79).unwrap();
    open(&path, false, None).unwrap();
    qemu_img(folder.0.path(), &["snapshot", "-c", "one", "disk"]);
    assert!(matches!(
        open(&path, false, None),
        Err(Qcow2Error::Snapshots(1))
    ));
    let disk = open(&path, true, None).unwrap();
    assert_eq!(read(&disk, 0, 512), [0; 512]);
}

#[test]
fn what_an_image_builds_on_is_never_opened_by_its_name() {
    let folder = Folder::new();
    std::fs::write(folder.path("base"), vec![7; 1 << 20]).unwrap();
    let path = folder.create("layer", &["-b", "base", "-F", "raw"], "1M");
    let header = Header::read(&file(&path, true)).unwrap();
    let expected = Backing {
        name: "base".to_owned(),
        format: Some("raw".to_owned()),
    };
    assert_eq!(header.backing, Some(expected));
    let error = open(&path, true, None).unwrap_err().to_string();
    assert_eq!(error, "it builds on base, which was not opened with it");
}

#[test]
fn features_that_others_keep_up_to_date_are_given_up_by_a_writer() {
    let folder = Folder::new();
    let path = folder.create("disk", &[], "4M");
    qemu_img(folder.0.path(), &["bitmap", "--add", "disk", "bitmap"]);
    let autoclear = || {
        let mut bytes = [0; 8];
        file(&path, true).read_exact_at(&mut bytes, 88).unwrap();
        u64::from_be_bytes(bytes)
    };
    assert_eq!(autoclear(), 1);
    drop(open(&path, true, None).unwrap());
    assert_eq!(autoclear(), 1);
    let disk = open(&path, false, None).unwrap();
    write(&disk, 0, &[1; 512]);
    drop(disk);
    assert_eq!(autoclear(), 0);
    check(&path, false);
}
