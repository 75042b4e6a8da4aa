//! File systems that a kernel can be read from, and the names of those that it cannot be read from.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use fatfs::FsOptions;

use super::image::{Image, Stream};

/// Names that are read of one directory.
const MAX_NAMES: usize = 4096;

/// What is on a partition, if no kernel can be read from it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// Something that is known by its name.
    #[error("{0}")]
    Foreign(&'static str),
    /// Nothing that is known.
    #[error("no file system that is known")]
    Unknown,
    /// One of those that can be read, with something about it that cannot.
    #[error("{0} that cannot be read ({1})")]
    Broken(&'static str, String),
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It is not there.
    #[error("there is no such file")]
    Missing,
    /// It is larger than what it is for.
    #[error("it has more than {limit} bytes")]
    TooLarge {
        /// What is allowed.
        limit: u64,
    },
    /// The disk or the file system.
    #[error("{0}")]
    Unreadable(String),
    /// Whoever was to get its bytes.
    #[error("{0}")]
    Sink(io::Error),
}

/// An opened file system.
pub(super) enum FileSystem {
    Ext4(Ext4),
    Fat(Box<fatfs::FileSystem<Stream>>),
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4(_) => "Ext4",
            Self::Fat(_) => "Fat",
        })
    }
}

struct Ext4Image(Image);

impl Ext4Read for Ext4Image {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_at(start, buffer)?)
    }
}

/// Signatures of what no kernel can be read from: where, which bytes, what.
const FOREIGN: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (0x218, b"LVM2 001", "LVM"),
    (0x018, b"LVM2 001", "LVM"),
    (0x418, b"LVM2 001", "LVM"),
    (0x618, b"LVM2 001", "LVM"),
    (0, b"\xfc\x4e\x2b\xa9", "mdraid"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "mdraid"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (0x400, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0, b"hsqs", "squashfs"),
    (0x8001, b"CD001", "ISO 9660"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (
        0,
        b"QFI\xfb",
        "a qcow2 image (image_type=qcow2 has it read as one)",
    ),
];

impl FileSystem {
    /// Opens the file system on `image`.
    pub(super) fn open(image: &Image) -> Result<Self, Unreadable> {
        for (offset, magic, name) in FOREIGN {
            let mut found = vec![0; magic.len()];
            if image.read_at(*offset, &mut found).is_ok() && found == *magic {
                return Err(Unreadable::Foreign(name));
            }
        }
        if mdraid_at_end(image) {
            return Err(Unreadable::Foreign("mdraid"));
        }
        if image.bytes(0x438) == Some([0x53, 0xef]) {
            let broken = |error: Ext4Error| Unreadable::Broken("ext4", error.to_string());
            return Ext4::load(Box::new(Ext4Image(image.clone())))
                .map(Self::Ext4)
                .map_err(broken);
        }
        // Of FAT12 and FAT16, and of FAT32.
        let named = [0x36, 0x52].map(|at| image.bytes(at) == Some(*b"FAT"));
        if image.bytes(510) == Some([0x55, 0xaa]) && named.contains(&true) {
            let broken = |error: io::Error| Unreadable::Broken("FAT", error.to_string());
            return fatfs::FileSystem::new(Stream::new(image.clone()), FsOptions::new())
                .map(|fat| Self::Fat(Box::new(fat)))
                .map_err(broken);
        }
        Err(Unreadable::Unknown)
    }

    /// Its UUID as `blkid` and GRUB's `search` write it.
    pub(super) fn uuid(&self) -> String {
        match self {
            Self::Ext4(ext4) => ext4.uuid().to_string(),
            Self::Fat(fat) => {
                let id = fat.volume_id();
                format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
            }
        }
    }

    /// Its label.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Ext4(ext4) => {
                let label = ext4.label().as_bytes();
                let label = label.split(|byte| *byte == 0).next();
                String::from_utf8_lossy(label.unwrap_or_default()).into_owned()
            }
            Self::Fat(fat) => fat.volume_label(),
        }
    }

    /// The names in `directory`, at most [`MAX_NAMES`] of them; none if there is no such directory.
    pub(super) fn list(&self, directory: &str) -> Vec<String> {
        match self {
            Self::Ext4(ext4) => {
                let entries = ext4.read_dir(directory).into_iter().flatten();
                let entries = entries.map_while(Result::ok).take(MAX_NAMES);
                entries
                    .filter_map(|entry| Some(entry.file_name().as_str().ok()?.to_owned()))
                    .collect()
            }
            Self::Fat(fat) => {
                let Ok(opened) = fat.root_dir().open_dir(directory.trim_matches('/')) else {
                    return Vec::new();
                };
                let entries = opened.iter().map_while(Result::ok).take(MAX_NAMES);
                entries.map(|entry| entry.file_name()).collect()
            }
        }
    }

    /// What is in the file at `path`, at most `limit` bytes.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        self.copy(path, limit, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Whether there is a file at `path`.
    pub(super) fn has(&self, path: &str) -> bool {
        match self {
            Self::Ext4(ext4) => ext4.open(path).is_ok(),
            Self::Fat(fat) => fat.root_dir().open_file(path.trim_matches('/')).is_ok(),
        }
    }

    /// Gives what is in the file at `path` to `sink`, piece by piece, and tells how many bytes there were, at most `limit`.
    pub(super) fn copy(
        &self,
        path: &str,
        limit: u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<u64, FileError> {
        match self {
            Self::Ext4(ext4) => {
                let file = ext4.open(path).map_err(of_ext4)?;
                pump(file, limit, sink)
            }
            Self::Fat(fat) => {
                let root = fat.root_dir();
                let file = root.open_file(path.trim_matches('/')).map_err(of_fat)?;
                pump(file, limit, sink)
            }
        }
    }
}

fn of_ext4(error: Ext4Error) -> FileError {
    match error {
        Ext4Error::NotFound => FileError::Missing,
        other => FileError::Unreadable(other.to_string()),
    }
}

fn of_fat(error: io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::NotFound => FileError::Missing,
        _ => FileError::Unreadable(error.to_string()),
    }
}

fn pump(
    mut file: impl Read,
    limit: u64,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, FileError> {
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0;
    loop {
        // A file system hands out a block at a time.
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(len) => filled += len,
                Err(error) => return Err(FileError::Unreadable(error.to_string())),
            }
        }
        if filled == 0 {
            return Ok(count);
        }
        count += filled as u64;
        if count > limit {
            return Err(FileError::TooLarge { limit });
        }
        sink(&buffer[..filled]).map_err(FileError::Sink)?;
    }
}

/// The superblock of metadata versions 0.90 and 1.0 lies at the end: what comes before it looks like its contents.
fn mdraid_at_end(image: &Image) -> bool {
    const MAGIC: [u8; 4] = *b"\xfc\x4e\x2b\xa9";
    let old = (image.len() & !0xffff).checked_sub(0x10000);
    let newer = image.len().checked_sub(0x2000).map(|at| at & !0xfff);
    let places = [old, newer].into_iter().flatten();
    places
        .into_iter()
        .any(|offset| image.bytes(offset) == Some(MAGIC))
}

/// The path of `name` in `directory`, which is absolute.
pub(super) fn join(directory: &str, name: &str) -> String {
    let joined = Path::new(directory).join(name.trim_start_matches('/'));
    joined.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "filesystem/tests.rs"]
mod tests;
