//! Files that a client opened and passed on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A copy of `descriptor`, to be closed with what uses it.
pub(super) fn copy(descriptor: BorrowedFd<'_>) -> io::Result<File> {
    Ok(descriptor.try_clone_to_owned()?.into())
}

/// Whether `file` was opened for what it shall be used for: reading, and writing too if `write`.
pub(super) fn allows(file: &File, write: bool) -> io::Result<bool> {
    // SAFETY: F_GETFL takes no argument, and the descriptor is open.
    #[expect(unsafe_code)]
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match flags & libc::O_ACCMODE {
        libc::O_RDWR => true,
        libc::O_RDONLY => !write && flags & libc::O_PATH == 0,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn access_is_that_of_the_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(file.path()).unwrap();
        assert!(allows(&read_only, false).unwrap() && !allows(&read_only, true).unwrap());
        assert!(allows(file.as_file(), true).unwrap());
        let write_only = File::options().append(true).open(file.path()).unwrap();
        assert!(!allows(&write_only, true).unwrap());
    }

    #[test]
    fn copy_outlives_the_original() {
        let file = tempfile::tempfile().unwrap();
        let copy = copy(file.as_fd()).unwrap();
        drop(file);
        copy.set_len(7).unwrap();
    }
}
