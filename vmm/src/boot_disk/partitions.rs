//! Partition tables: GPT (UEFI 2.10, 5.3) and MBR with its logical partitions.
//!
//! The crate `gpt` asserts what it finds on the disk to be as it expects, and takes the size of what it allocates from there;
//! both are for disks that one trusts.

use super::image::Image;

/// Sectors of a table that is not of the size that the disk tells its guest.
const OTHER_SECTORS: [u64; 2] = [512, 4096];
/// Entries that are read. UEFI reserves room for 128.
const MAX_ENTRIES: u32 = 1024;
/// Logical partitions that are followed.
const MAX_LOGICAL: u32 = 64;

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// What a partition is for, as its table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// `/boot`, shared by systems (the Boot Loader Specification's XBOOTLDR).
    ExtendedBoot,
    /// The EFI system partition.
    EfiSystem,
    /// The root file system of Linux on x86-64 (the Discoverable Partitions Specification), or marked as bootable.
    Root,
    /// Any other.
    Other,
}

/// Which kind of table a partition is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Gpt,
    Mbr,
}

/// A partition.
#[derive(Clone, Debug)]
pub(super) struct Partition {
    /// As Linux counts them: from 1, logical ones of an MBR from 5.
    pub(super) number: u32,
    pub(super) table: Table,
    pub(super) purpose: Purpose,
    pub(super) image: Image,
}

/// The partitions of `disk`, whose guest sees sectors of `sector` bytes; none where there is no table.
pub(super) fn read(disk: &Image, sector: u64) -> Vec<Partition> {
    let others = OTHER_SECTORS.into_iter().filter(|other| *other != sector);
    let mut sizes = std::iter::once(sector).chain(others);
    if let Some(partitions) = sizes.find_map(|sector| gpt(disk, sector)) {
        return partitions;
    }
    mbr(disk, sector)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The partitions of the primary table, or of the backup if that is damaged.
fn gpt(disk: &Image, sector: u64) -> Option<Vec<Partition>> {
    let last = (disk.len() / sector).checked_sub(1)?;
    gpt_at(disk, sector, 1).or_else(|| gpt_at(disk, sector, last))
}

fn gpt_at(disk: &Image, sector: u64, lba: u64) -> Option<Vec<Partition>> {
    const HEADER: usize = 92;
    let header: [u8; HEADER] = disk.bytes(lba.checked_mul(sector)?)?;
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let header_len = u32_at(&header, 12) as usize;
    if !(HEADER..=sector as usize).contains(&header_len) || u64_at(&header, 24) != lba {
        return None;
    }
    let mut checked = vec![0; header_len];
    disk.read_at(lba * sector, &mut checked).ok()?;
    let sum = u32_at(&checked, 16);
    checked[16..20].fill(0);
    if CRC.checksum(&checked) != sum {
        return None;
    }
    let (entries_lba, count) = (u64_at(&header, 72), u32_at(&header, 80));
    let (entry_len, entries_sum) = (u32_at(&header, 84) as usize, u32_at(&header, 88));
    if count > MAX_ENTRIES || !(128..=4096).contains(&entry_len) {
        return None;
    }
    let mut entries = vec![0; count as usize * entry_len];
    disk.read_at(entries_lba.checked_mul(sector)?, &mut entries)
        .ok()?;
    if CRC.checksum(&entries) != entries_sum {
        return None;
    }
    let entries = (1..).zip(entries.chunks_exact(entry_len));
    Some(
        entries
            .filter_map(|(number, entry)| gpt_entry(disk, sector, number, entry))
            .collect(),
    )
}

fn gpt_entry(disk: &Image, sector: u64, number: u32, entry: &[u8]) -> Option<Partition> {
    let kind: [u8; 16] = *entry.first_chunk()?;
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let count = last.checked_sub(first)?.checked_add(1)?;
    let image = disk.part(first.checked_mul(sector)?, count.checked_mul(sector)?)?;
    Some(Partition {
        number,
        table: Table::Gpt,
        purpose: purpose_of(&kind),
        image,
    })
}

/// GUIDs as they lie on the disk: the first three fields are little-endian.
fn purpose_of(kind: &[u8; 16]) -> Purpose {
    const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ]
    }
    const EFI_SYSTEM: [u8; 16] = guid(
        0xc12a_7328,
        0xf81f,
        0x11d2,
        [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b],
    );
    const EXTENDED_BOOT: [u8; 16] = guid(
        0xbc13_c2ff,
        0x59e6,
        0x4262,
        [0xa3, 0x52, 0xb2, 0x75, 0xfd, 0x6f, 0x71, 0x72],
    );
    const ROOT_X86_64: [u8; 16] = guid(
        0x4f68_bce3,
        0xe8cd,
        0x4db1,
        [0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09],
    );
    match *kind {
        EXTENDED_BOOT => Purpose::ExtendedBoot,
        EFI_SYSTEM => Purpose::EfiSystem,
        ROOT_X86_64 => Purpose::Root,
        _ => Purpose::Other,
    }
}

const MBR_ENTRIES: usize = 446;

/// The four entries of the sector at `lba`, if it has a table: whether it is bootable, its type, first sector and length.
fn mbr_entries(disk: &Image, sector: u64, lba: u64) -> Option<[(bool, u8, u64, u64); 4]> {
    let bytes: [u8; 512] = disk.bytes(lba.checked_mul(sector)?)?;
    if bytes[510..] != [0x55, 0xaa] {
        return None;
    }
    let entry = |index: usize| {
        let entry = &bytes[MBR_ENTRIES + 16 * index..][..16];
        let (start, len) = (u32_at(entry, 8), u32_at(entry, 12));
        (entry[0] == 0x80, entry[4], start.into(), len.into())
    };
    // The boot sector of a file system ends in the same two bytes.
    let sound = (0..4).all(|index| matches!(bytes[MBR_ENTRIES + 16 * index], 0 | 0x80));
    sound.then(|| [entry(0), entry(1), entry(2), entry(3)])
}

fn mbr(disk: &Image, sector: u64) -> Vec<Partition> {
    const EMPTY: u8 = 0;
    const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
    let mut partitions = Vec::new();
    let Some(entries) = mbr_entries(disk, sector, 0) else {
        return partitions;
    };
    let mut add = |number, bootable, kind, start: u64, len: u64| {
        let image = disk.part(start * sector, len * sector);
        if let Some(image) = image.filter(|image| image.len() > 0) {
            let purpose = match kind {
                0xea => Purpose::ExtendedBoot,
                0xef => Purpose::EfiSystem,
                _ if bootable => Purpose::Root,
                _ => Purpose::Other,
            };
            partitions.push(Partition {
                number,
                table: Table::Mbr,
                purpose,
                image,
            });
        }
    };
    let mut extended = None;
    for (number, (bootable, kind, start, len)) in (1..).zip(entries) {
        match kind {
            EMPTY => {}
            _ if EXTENDED.contains(&kind) => extended = extended.or(Some(start)),
            _ => add(number, bootable, kind, start, len),
        }
    }
    // A chain of tables, each with one logical partition, relative to itself, and the next table, relative to the first.
    let Some(base) = extended else {
        return partitions;
    };
    let (mut table, mut number) = (base, 5);
    for _ in 0..MAX_LOGICAL {
        let Some([logical, next, ..]) = mbr_entries(disk, sector, table) else {
            break;
        };
        let (bootable, kind, start, len) = logical;
        if kind != EMPTY {
            add(number, bootable, kind, table + start, len);
            number += 1;
        }
        if !EXTENDED.contains(&next.1) {
            break;
        }
        table = base + next.2;
    }
    partitions
}

#[cfg(test)]
#[path = "partitions/tests.rs"]
mod tests;
