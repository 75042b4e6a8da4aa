//! Images under a driver, and against QEMU's own tools.

mod chains;
mod crash;
mod hostile;
mod model;
pub(super) mod power;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// Runs `qemu-img` in `folder`, and returns what it prints and its exit code.
pub(super) fn qemu_img_code(folder: &Path, arguments: &[&str]) -> (String, i32) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("qemu-img starts: apt-get install qemu-utils");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (text.into_owned(), output.status.code().unwrap_or(-1))
}

pub(super) fn qemu_img(folder: &Path, arguments: &[&str]) -> String {
    let (text, code) = qemu_img_code(folder, arguments);
    assert_eq!(code, 0, "qemu-img {arguments:?}: {text}");
    text
}

/// What `qemu-img check` finds: lost clusters may be no error.
pub(super) fn check(path: &Path, leaks_are_errors: bool) {
    let name = path.to_str().unwrap();
    let (text, code) = qemu_img_code(Path::new("/"), &["check", "-f", "qcow2", name]);
    assert!(
        code == 0 || (code == 3 && !leaks_are_errors),
        "{code}: {text}"
    );
}

/// A folder with images.
pub(super) struct Folder(pub(super) tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Has QEMU make a qcow2 image.
    pub(super) fn create(&self, name: &str, options: &[&str], size: &str) -> PathBuf {
        let arguments = [&["create", "-q", "-f", "qcow2"], options, &[name, size]].concat();
        qemu_img(self.0.path(), &arguments);
        self.path(name)
    }

    /// What QEMU reads of an image.
    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        qemu_img(
            self.0.path(),
            &["convert", "-f", "qcow2", "-O", "raw", name, "read.raw"],
        );
        std::fs::read(self.path("read.raw")).unwrap()
    }
}

pub(super) fn file(path: &Path, read_only: bool) -> File {
    File::options()
        .read(true)
        .write(!read_only)
        .open(path)
        .unwrap()
}

/// Opens an image that builds on nothing, or on `backing`.
pub(super) fn open(
    path: &Path,
    read_only: bool,
    backing: Option<BackingImage>,
) -> Result<Qcow2Disk, Qcow2Error> {
    Qcow2Disk::new(Qcow2Image {
        file: file(path, read_only),
        read_only,
        lock: None,
        backing,
        folder: None,
    })
}

/// Writes all of `bytes`, in two pieces.
pub(super) fn write(disk: &Qcow2Disk, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let mut done = 0;
    while done < bytes.len() {
        // Sectors are not torn apart.
        let list = iovecs(&mut bytes[done..], 512);
        // SAFETY: the list is of two parts of a buffer that nothing else uses.
        #[expect(unsafe_code)]
        let pieces = unsafe { Pieces::new(&list) };
        let count = disk.write_at(pieces, offset + done as u64).unwrap();
        assert_ne!(count, 0);
        done += count;
    }
}

pub(super) fn read(disk: &Qcow2Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    let mut done = 0;
    while done < len {
        let list = iovecs(&mut bytes[done..], 1);
        // SAFETY: as for writing.
        #[expect(unsafe_code)]
        let pieces = unsafe { Pieces::new(&list) };
        let count = disk.read_at(pieces, offset + done as u64).unwrap();
        assert_ne!(count, 0);
        done += count;
    }
    bytes
}

fn iovecs(bytes: &mut [u8], unit: usize) -> [libc::iovec; 2] {
    let middle = bytes.len() / 3 / unit * unit;
    let (first, second) = bytes.split_at_mut(middle);
    [first, second].map(|part| libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    })
}

/// A small source of numbers that are the same in each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
