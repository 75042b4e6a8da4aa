use proptest::prelude::*;
use vm_memory::Bytes;

use super::fixtures::{Elf, file, guest};
use crate::kernel::identify::describe_bytes;
use crate::kernel::*;

fn refusal(bytes: &[u8]) -> String {
    match load_kernel(&guest(1 << 20), &mut file(bytes)) {
        Err(error @ KernelError::NotAKernel { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn file_that_is_no_kernel_is_named_for_what_it_is() {
    let sparse = |parts: &[(usize, &[u8])]| {
        let mut bytes = vec![0u8; 0x9000];
        for (at, part) in parts {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        bytes
    };
    let arm64 = Elf {
        machine: 183,
        ..Elf::new(&[0])
    }
    .build();
    let cases: [(Vec<u8>, &str); 15] = [
        (vec![], "empty"),
        (arm64, "an ELF image for arm64 (aarch64)"),
        (b"\x7fELF".to_vec(), "an ELF image that is cut short"),
        (
            sparse(&[(0, b"MZ"), (0x38, b"ARM\x64")]),
            "an arm64 Linux kernel image",
        ),
        (sparse(&[(0, b"MZ")]), "a PE/EFI program"),
        (b"\x1f\x8b\x08\0".to_vec(), "gzip data"),
        (b"070701000".to_vec(), "a cpio archive (an initramfs)"),
        (b"#!/bin/sh\nexit\n".to_vec(), "a script"),
        (b"hello, world\n".to_vec(), "text"),
        (
            sparse(&[(510, b"\x55\xaa")]),
            "a disk image with a boot sector",
        ),
        (
            sparse(&[(510, b"\x55\xaa"), (512, b"EFI PART")]),
            "a disk image with a GPT partition table",
        ),
        (
            sparse(&[(0x438, b"\x53\xef")]),
            "an ext2/3/4 file system image",
        ),
        (b"QFI\xfb\0\0".to_vec(), "a qcow2 disk image"),
        (sparse(&[]), "filled with zeroes"),
        (
            vec![0xde, 0xad, 0xbe, 0xef],
            "data of an unknown kind (it begins with [de, ad, be, ef])",
        ),
    ];
    for (bytes, what) in cases {
        let expected = format!(
            "the kernel file is {what}; expected an x86-64 Linux kernel: an ELF image (vmlinux) or a bzImage (vmlinuz)"
        );
        assert_eq!(refusal(&bytes), expected);
    }
}

#[test]
fn directory_is_an_error_of_reading() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = File::open(dir.path()).unwrap();
    assert!(matches!(
        load_kernel(&guest(1 << 20), &mut opened),
        Err(KernelError::Read(_))
    ));
}

#[test]
fn initramfs_lies_on_the_highest_page_where_it_fits() {
    let mem = guest(16 << 20);
    let placement = InitramfsPlacement {
        lowest: 0x10_0001,
        limit: 16 << 20,
    };
    let range = load_initramfs(&mem, &mut file(b"070701 some files"), placement).unwrap();
    assert_eq!(
        range,
        InitramfsRange {
            start: GuestAddress((16 << 20) - 4096),
            len: 17
        }
    );
    assert_eq!(
        mem.read_obj::<[u8; 17]>(range.start).unwrap(),
        *b"070701 some files"
    );

    let exact = InitramfsPlacement {
        lowest: 0x10_0001,
        limit: 0x10_2000,
    };
    let range = load_initramfs(&mem, &mut file(&[7; 4096]), exact).unwrap();
    assert_eq!(range.start.0, 0x10_1000);
}

#[test]
fn initramfs_that_does_not_fit_is_refused_with_the_sizes() {
    let mem = guest(16 << 20);
    let placement = InitramfsPlacement {
        lowest: 0x10_0001,
        limit: 0x10_2000,
    };
    let error = load_initramfs(&mem, &mut file(&[7; 4097]), placement).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the initramfs has 4097 bytes, but only 8191 are free between the kernel's end at 0x100001 and 0x102000; \
         give the guest more memory"
    );
    let beyond = InitramfsPlacement {
        lowest: 0x10_0000,
        limit: 0x1000,
    };
    assert!(matches!(
        load_initramfs(&mem, &mut file(&[7]), beyond),
        Err(InitramfsError::DoesNotFit { room: 0, .. })
    ));
    assert!(matches!(
        load_initramfs(&mem, &mut file(&[]), placement),
        Err(InitramfsError::Empty)
    ));
    let hole = InitramfsPlacement {
        lowest: 0x10_0000,
        limit: 1 << 30,
    };
    assert!(matches!(
        load_initramfs(&mem, &mut file(&[7]), hole),
        Err(InitramfsError::Copy { .. })
    ));
}

proptest! {
    #[test]
    fn arbitrary_files_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(load_kernel(&guest(1 << 20), &mut file(&bytes)).is_err());
        prop_assert!(!describe_bytes(&bytes).is_empty());
    }
}
