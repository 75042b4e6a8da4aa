//! Scratch disks: raw images that vanish with the test.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
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

    /// A copy of the image at `path`, without the zeros in it.
    pub fn copy_of(path: &Path) -> Result<Self> {
        let disk = Self::new(0)?;
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .args([path, &disk.path()])
            .status()?;
        ensure!(copied.success(), "cannot copy {}", path.display());
        Ok(disk)
    }

    /// Makes this disk, of 4 MiB at least, an ext4 file system without a partition table, with `files` of absolute paths.
    pub fn format_ext4(&self, files: &[(&str, &[u8])]) -> Result<()> {
        let tree = tempfile::tempdir_in(self.dir())?;
        for (path, contents) in files {
            let path = tree.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().context("an absolute path")?)?;
            fs::write(path, contents)?;
        }
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([tree.path(), &self.path()])
            .status()
            .context("this test needs: apt-get install e2fsprogs")?;
        ensure!(made.success(), "mke2fs failed");
        Ok(())
    }

    /// A disk by which cloud-init is told what to do (its NoCloud data source): `user_data` is its YAML.
    pub fn cloud_init_seed(user_data: &str) -> Result<Self> {
        let disk = Self::new(4 << 20)?;
        fs::write(disk.dir().join("user-data"), user_data)?;
        fs::write(disk.dir().join("meta-data"), "instance-id: one\n")?;
        let made = Command::new("sh")
            .current_dir(disk.dir())
            .args(["-e", "-c"])
            .arg("/sbin/mkfs.vfat -n CIDATA disk.img >/dev/null && mcopy -i disk.img user-data meta-data ::")
            .status()?;
        ensure!(
            made.success(),
            "this test needs: apt-get install dosfstools mtools"
        );
        Ok(disk)
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
