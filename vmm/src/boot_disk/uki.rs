//! Unified kernel images: the Boot Loader Specification's type 2, a kernel and what goes with it in one PE file.

use super::bls::BlsEntry;
use super::filesystem::{FileError, FileSystem, join};

/// Where unified kernel images are.
const DIRECTORY: &str = "/EFI/Linux";
/// Bytes of a section that is text.
const MAX_TEXT: u64 = 64 << 10;
/// Bytes at the start of the file that hold all headers.
const MAX_HEADERS: u64 = 64 << 10;
const MAX_SECTIONS: u16 = 96;
/// Bytes of a file that are gone through.
const MAX_FILE: u64 = 2 << 30;

/// A section: where it is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    name: String,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnifiedKernel {
    pub(super) path: String,
    pub(super) entry: BlsEntry,
    pub(super) linux: Section,
    pub(super) initrd: Vec<Section>,
}

/// The sections of a PE file that begins with `head`; None if it is not one.
pub(super) fn sections(head: &[u8]) -> Option<Vec<Section>> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = usize::try_from(u32_at(0x3c)?).ok()?;
    if !head.get(pe..)?.starts_with(b"PE\0\0") {
        return None;
    }
    let coff = pe + 4;
    let count = u16_at(coff + 2)?.min(MAX_SECTIONS);
    let table = coff + 20 + usize::from(u16_at(coff + 16)?);
    let section = |index: u16| {
        let at = table + 40 * usize::from(index);
        let name = head.get(at..at + 8)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let (in_memory, in_file) = (u32_at(at + 8)?, u32_at(at + 16)?);
        Some(Section {
            name: String::from_utf8_lossy(name).into_owned(),
            offset: u32_at(at + 20)?.into(),
            // The file's length is rounded up.
            len: in_file.min(in_memory).into(),
        })
    };
    (0..count).map(section).collect()
}

/// The images on `filesystem`.
pub(super) fn read(filesystem: &FileSystem) -> Vec<UnifiedKernel> {
    let names = filesystem.list(DIRECTORY);
    names
        .iter()
        .filter_map(|name| read_one(filesystem, name))
        .collect()
}

fn read_one(filesystem: &FileSystem, name: &str) -> Option<UnifiedKernel> {
    // FAT does not tell capitals from others.
    let name_of_entry = match name
        .len()
        .checked_sub(4)
        .and_then(|at| name.split_at_checked(at))
    {
        Some((stem, suffix)) if suffix.eq_ignore_ascii_case(".efi") => format!("{stem}.efi"),
        _ => return None,
    };
    let mut entry = BlsEntry::named(&name_of_entry)?;
    let path = join(DIRECTORY, name);
    let head = part(filesystem, &path, 0, MAX_HEADERS).ok()?;
    let sections = sections(&head)?;
    let find = |name: &str| sections.iter().find(|section| section.name == name);
    let text = |name: &str| {
        let section = find(name)?;
        let bytes = part(filesystem, &path, section.offset, section.len.min(MAX_TEXT)).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_matches(['\0', '\n', ' ']).to_owned())
    };
    let release = text(".osrel").unwrap_or_default();
    let release = |key: &str| {
        let mut lines = release.lines().filter_map(|line| line.split_once('='));
        let value = lines.find(|(known, _)| *known == key)?.1;
        Some(value.trim_matches(['"', '\'']).to_owned())
    };
    let first = |keys: &[&str]| keys.iter().find_map(|key| release(key)).unwrap_or_default();
    entry.title = first(&["PRETTY_NAME", "ID"]);
    entry.sort_key = first(&["IMAGE_ID", "ID"]);
    entry.version = first(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]);
    if let Some(version) = text(".uname").filter(|version| !version.is_empty()) {
        entry.version = version;
    }
    entry.options = text(".cmdline").into_iter().collect();
    Some(UnifiedKernel {
        path,
        linux: find(".linux")?.clone(),
        // Microcode comes before what may be packed.
        initrd: [".ucode", ".initrd"]
            .into_iter()
            .filter_map(find)
            .cloned()
            .collect(),
        entry,
    })
}

/// The `len` bytes of the file at `path` from `offset` on, or those that there are of them.
fn part(filesystem: &FileSystem, path: &str, offset: u64, len: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    copy(filesystem, path, offset, len, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// Gives the `len` bytes of the file at `path` from `offset` on to `sink`, and tells how many there were.
pub(super) fn copy(
    filesystem: &FileSystem,
    path: &str,
    offset: u64,
    len: u64,
    sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<u64, FileError> {
    let (mut at, mut count) = (0_u64, 0_u64);
    let end = offset.saturating_add(len);
    // A file is read from its start: neither file system's library seeks better than that.
    let result = filesystem.copy(path, MAX_FILE, &mut |piece| {
        let piece_end = at + piece.len() as u64;
        let (from, to) = (offset.clamp(at, piece_end), end.clamp(at, piece_end));
        if from < to {
            let wanted = &piece[(from - at) as usize..(to - at) as usize];
            count += wanted.len() as u64;
            sink(wanted)?;
        }
        at = piece_end;
        if at >= end {
            // That is all: the rest need not be read.
            return Err(std::io::ErrorKind::Other.into());
        }
        Ok(())
    });
    match result {
        Ok(_) => Ok(count),
        Err(FileError::Sink(_)) if at >= end => Ok(count),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "uki/tests.rs"]
pub(in crate::boot_disk) mod tests;
