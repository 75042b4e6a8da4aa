//! Locks that keep others off an image.
//!
//! They belong to the open file description and not to the process (`F_OFD_SETLK`), so that two disks in one process are
//! kept apart as well, and are advisory: who takes no lock is not kept off.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What of an image is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockExtent {
    /// The bytes that it has.
    ByteRange,
    /// All that it has or may get.
    Full,
}

/// Why an image is not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody writes to it; or reads it, and it shall be written to.
    #[error("somebody else has locked it")]
    Held,
    /// The host cannot lock it.
    #[error("the host cannot lock it")]
    Host(#[source] io::Error),
}

/// A lock, which ends with this value, whoever else has a copy of the descriptor.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    extent: LockExtent,
    shared: bool,
}

impl Lock {
    /// Locks the first `size` bytes of `file`, or all: shared with others that only read, if `shared`.
    pub(super) fn take(
        file: &File,
        extent: LockExtent,
        shared: bool,
        size: u64,
    ) -> Result<Self, LockError> {
        let file = file.try_clone().map_err(LockError::Host)?;
        let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
        set(&file, kind, extent, size)?;
        Ok(Self {
            file,
            extent,
            shared,
        })
    }

    /// Locks up to `size` bytes as well; on an error what was locked before still is.
    pub(super) fn cover(&self, size: u64) -> Result<(), LockError> {
        let kind = if self.shared {
            libc::F_RDLCK
        } else {
            libc::F_WRLCK
        };
        set(&self.file, kind, self.extent, size)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be unlocked is when the last copy of the descriptor is closed.
        let _ = set(&self.file, libc::F_UNLCK, LockExtent::Full, 0);
    }
}

fn set(file: &File, kind: libc::c_int, extent: LockExtent, size: u64) -> Result<(), LockError> {
    let len = match extent {
        LockExtent::ByteRange => libc::off_t::try_from(size)
            .map_err(|_| LockError::Host(io::ErrorKind::InvalidInput.into()))?,
        // Up to the end, wherever that is.
        LockExtent::Full => 0,
    };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the call reads one `flock`, and `lock` outlives it.
    #[expect(unsafe_code)]
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(LockError::Held),
        _ => Err(LockError::Host(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Disk, FileDisk, ResizeError};
    use super::*;

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    fn lock(file: &tempfile::NamedTempFile, read_only: bool) -> Result<FileDisk, LockError> {
        let mut disk = FileDisk::new(file.reopen().unwrap(), read_only).unwrap();
        disk.lock(LockExtent::ByteRange).map(|()| disk)
    }

    #[test]
    fn writer_excludes_everybody_and_readers_share() {
        let file = image();
        let writer = lock(&file, false).unwrap();
        assert!(matches!(lock(&file, false), Err(LockError::Held)));
        assert!(matches!(lock(&file, true), Err(LockError::Held)));
        drop(writer);
        let readers = [lock(&file, true).unwrap(), lock(&file, true).unwrap()];
        assert!(matches!(lock(&file, false), Err(LockError::Held)));
        drop(readers);
        lock(&file, false).unwrap();
    }

    #[test]
    fn lock_ends_with_the_disk_though_the_descriptor_is_open_elsewhere() {
        let file = image();
        let kept = file.reopen().unwrap();
        let mut disk = FileDisk::new(kept.try_clone().unwrap(), false).unwrap();
        disk.lock(LockExtent::Full).unwrap();
        assert!(matches!(lock(&file, true), Err(LockError::Held)));
        drop(disk);
        lock(&file, false).unwrap();
        drop(kept);
    }

    #[test]
    fn bytes_beyond_the_end_are_locked_if_all_is_or_the_disk_grows() {
        let beyond = |file: &tempfile::NamedTempFile| {
            let lock = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: 1 << 20,
                l_len: 512,
                l_pid: 0,
            };
            let other = file.reopen().unwrap();
            // SAFETY: the call reads one `flock`, and `lock` outlives it.
            #[expect(unsafe_code)]
            let result =
                unsafe { libc::fcntl(other.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
            (result == 0).then_some(other)
        };
        let file = image();
        let mut disk = FileDisk::new(file.reopen().unwrap(), false).unwrap();
        disk.lock(LockExtent::Full).unwrap();
        assert!(beyond(&file).is_none());
        drop(disk);
        let disk = lock(&file, false).unwrap();
        let other = beyond(&file);
        assert!(other.is_some());
        let error = disk.resize(2 << 20).unwrap_err();
        assert!(matches!(error, ResizeError::Locked { .. }), "{error}");
        assert_eq!(disk.size(), 1 << 20);
        drop(other);
        disk.resize(2 << 20).unwrap();
        assert!(beyond(&file).is_none());
    }
}
