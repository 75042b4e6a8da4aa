//! Names what a file is that is no kernel, so that the message about it helps.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::bytes_at;

/// Bytes that are looked at: up to the volume descriptor of an ISO 9660 image.
const LOOK: u64 = 36 << 10;

/// Signatures of formats: where, which bytes, what.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0x8001, b"CD001", "an ISO 9660 disk image"),
    (0x38, b"ARM\x64", "an arm64 Linux kernel image"),
    (0x30, b"RISCV", "a RISC-V Linux kernel image"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"MZ", "a PE/EFI program"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"\x02\x21\x4c\x18", "lz4 data"),
    (0, b"\x04\x22\x4d\x18", "lz4 data"),
    (0, b"\x5d\0\0", "lzma data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"070701", "a cpio archive (an initramfs)"),
    (0, b"070702", "a cpio archive (an initramfs)"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"conectix", "a VHD disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (0, b"hsqs", "a squashfs file system image"),
    (0, b"XFSB", "an XFS file system image"),
    (0x438, b"\x53\xef", "an ext2/3/4 file system image"),
    (512, b"EFI PART", "a disk image with a GPT partition table"),
    (510, b"\x55\xaa", "a disk image with a boot sector"),
    (0, b"!<arch>", "an ar archive or Debian package"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (257, b"ustar", "a tar archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"#!", "a script"),
];

/// What the file is, as the object of "the kernel file is".
pub(super) fn describe(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    file.take(LOOK).read_to_end(&mut head)?;
    Ok(describe_bytes(&head))
}

/// What a file with these first bytes is.
pub(super) fn describe_bytes(head: &[u8]) -> String {
    if head.is_empty() {
        return "empty".to_owned();
    }
    if head.starts_with(b"\x7fELF") {
        return describe_elf(head);
    }
    let known = SIGNATURES.iter().find(|(offset, magic, _)| {
        head.get(*offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    });
    if let Some((_, _, what)) = known {
        return (*what).to_owned();
    }
    if head.iter().all(|byte| *byte == 0) {
        return "filled with zeroes".to_owned();
    }
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    if head.iter().all(is_text) {
        return "text".to_owned();
    }
    format!(
        "data of an unknown kind (it begins with {:02x?})",
        &head[..head.len().min(8)]
    )
}

fn describe_elf(head: &[u8]) -> String {
    let big_endian = head.get(5) == Some(&2);
    let Some(bytes) = bytes_at(head, 18) else {
        return "an ELF image that is cut short".to_owned();
    };
    let machine = if big_endian {
        u16::from_be_bytes(bytes)
    } else {
        u16::from_le_bytes(bytes)
    };
    let name = match machine {
        2 | 18 | 43 => "SPARC",
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        62 => "x86-64",
        183 => "arm64 (aarch64)",
        243 => "RISC-V",
        247 => "BPF",
        258 => "LoongArch",
        _ => return format!("an ELF image for an unknown machine (number {machine})"),
    };
    format!("an ELF image for {name}")
}
