use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

/// What `command`, told `script`, makes of an empty disk of 64 MiB.
fn made(command: &[&str], script: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, vec![0; 64 * MIB]).unwrap();
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("this test needs: apt-get install fdisk");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    fs::read(path).unwrap()
}

fn sfdisk(script: &str) -> Vec<u8> {
    made(&["/sbin/sfdisk", "--quiet"], script)
}

fn image(bytes: Vec<u8>) -> Image {
    let len = bytes.len() as u64;
    Image::new(Box::new(bytes), len)
}

fn found(bytes: Vec<u8>) -> Vec<(u32, Purpose, u64)> {
    let partitions = read(&image(bytes), 512).into_iter();
    partitions
        .map(|partition| (partition.number, partition.purpose, partition.image.len()))
        .collect()
}

const GPT: &str = "label: gpt
start=1MiB, size=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=9MiB, size=16MiB, type=BC13C2FF-59E6-4262-A352-B275FD6F7172
14: start=25MiB, size=4MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
15: start=29MiB, size=4MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
";

fn of_gpt() -> Vec<(u32, Purpose, u64)> {
    let mib = MIB as u64;
    vec![
        (1, Purpose::EfiSystem, 8 * mib),
        (2, Purpose::ExtendedBoot, 16 * mib),
        (14, Purpose::Other, 4 * mib),
        (15, Purpose::Root, 4 * mib),
    ]
}

#[test]
fn gpt_is_read() {
    assert_eq!(found(sfdisk(GPT)), of_gpt());
}

#[test]
fn gpt_of_large_sectors_is_read() {
    let bytes = made(
        &["/sbin/fdisk", "-b", "4096"],
        "g\nn\n1\n256\n+8M\nt\n1\nw\n",
    );
    assert_eq!(found(bytes), [(1, Purpose::EfiSystem, 8 * MIB as u64)]);
}

#[test]
fn backup_stands_in_for_a_damaged_gpt() {
    for damage in [512 + 20, 1024 + 40] {
        let mut bytes = sfdisk(GPT);
        bytes[damage] ^= 1;
        assert_eq!(found(bytes), of_gpt(), "byte {damage}");
    }
    let mut bytes = sfdisk(GPT);
    bytes[512 + 20] ^= 1;
    let last = bytes.len() - 512 + 20;
    bytes[last] ^= 1;
    // The protective MBR is what is left.
    assert_eq!(found(bytes).len(), 1);
}

#[test]
fn logical_partitions_of_an_mbr_are_read() {
    let bytes = sfdisk(
        "label: dos
start=1MiB, size=4MiB, type=83, bootable
start=5MiB, size=40MiB, type=5
start=6MiB, size=4MiB, type=83
start=12MiB, size=5MiB, type=ef
start=20MiB, size=6MiB, type=ea
",
    );
    let mib = MIB as u64;
    let expected = [
        (1, Purpose::Root, 4 * mib),
        (5, Purpose::Other, 4 * mib),
        (6, Purpose::EfiSystem, 5 * mib),
        (7, Purpose::ExtendedBoot, 6 * mib),
    ];
    assert_eq!(found(bytes), expected);
}

#[test]
fn logical_partitions_in_a_circle_end() {
    let mut bytes = vec![0; MIB];
    let table = |bytes: &mut [u8], at: usize, entries: &[(u8, u32, u32)]| {
        for (index, (kind, start, len)) in entries.iter().enumerate() {
            let entry = &mut bytes[at + MBR_ENTRIES + 16 * index..][..16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..16].copy_from_slice(&len.to_le_bytes());
        }
        bytes[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    };
    table(&mut bytes, 0, &[(5, 8, 100)]);
    table(&mut bytes, 8 * 512, &[(0x83, 1, 4), (5, 0, 100)]);
    assert_eq!(found(bytes).len(), MAX_LOGICAL as usize);
}

#[test]
fn partitions_beyond_the_end_are_left_out() {
    let mut bytes = sfdisk("label: dos\nstart=1MiB, size=4MiB\nstart=8MiB, size=50MiB\n");
    bytes.truncate(16 * MIB);
    assert_eq!(found(bytes).len(), 1);
}

#[test]
fn empty_disks_have_no_partitions() {
    assert!(found(Vec::new()).is_empty());
    assert!(found(vec![0; 100]).is_empty());
    assert!(found(vec![0; MIB]).is_empty());
}

proptest! {
    #[test]
    fn any_gpt_is_read_or_refused(
        header in proptest::collection::vec(any::<u8>(), 80),
        entries in proptest::collection::vec(any::<u8>(), 512),
        known in any::<bool>(),
    ) {
        let mut bytes = vec![0; 64 * 512];
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[524..524 + 80].copy_from_slice(&header);
        bytes[1024..1536].copy_from_slice(&entries);
        if known {
            // Sums that fit, so that what follows them is reached.
            bytes[524..528].copy_from_slice(&92_u32.to_le_bytes());
            bytes[536..544].copy_from_slice(&1_u64.to_le_bytes());
            bytes[584..592].copy_from_slice(&2_u64.to_le_bytes());
            bytes[592..596].copy_from_slice(&4_u32.to_le_bytes());
            bytes[596..600].copy_from_slice(&128_u32.to_le_bytes());
            let sum = CRC.checksum(&bytes[1024..1536]);
            bytes[600..604].copy_from_slice(&sum.to_le_bytes());
            bytes[528..532].fill(0);
            let sum = CRC.checksum(&bytes[512..604]);
            bytes[528..532].copy_from_slice(&sum.to_le_bytes());
        }
        for partition in read(&image(bytes), 512) {
            prop_assert!(partition.image.len() <= 64 * 512);
        }
    }

    #[test]
    fn any_mbr_is_read(entries in proptest::collection::vec(any::<u8>(), 64), sector in any::<u8>()) {
        let mut bytes = vec![sector; 64 * 512];
        bytes[MBR_ENTRIES..510].copy_from_slice(&entries);
        for index in 0..4 {
            bytes[MBR_ENTRIES + 16 * index] &= 0x80;
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        for partition in read(&image(bytes), 512) {
            prop_assert!(partition.image.len() <= 64 * 512);
        }
    }
}
