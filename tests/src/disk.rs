//! Scratch disks: raw images that vanish with the test.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A raw disk image in a directory of its own.
pub struct Disk {
    dir: TempDir,
    file: File,
}

impl Disk {
    /// An empty, sparse disk of `size` bytes.
    pub fn new(size: u64) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("disk.img"))?;
        file.set_len(size)?;
        Ok(Self { dir, file })
    }

    /// Where the image is.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// The image's bytes from `offset` on, `len` of them.
    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, offset)
            .context("cannot read the scratch disk")?;
        Ok(bytes)
    }

    /// Writes `bytes` at `offset` of the image.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset)?;
        Ok(())
    }

    /// All of the image's bytes.
    pub fn contents(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.path())?)
    }

    /// A directory that lives as long as the disk, for sockets and files beside it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
