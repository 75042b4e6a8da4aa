//! Files that a client opened and passed on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A copy of `descriptor`, to be closed with what uses it.
pub(super) fn copy(descriptor: BorrowedFd<'_>) -> io::Result<File> {
    Ok(descriptor.try_clone_to_owned()?.into())
}

/// `descriptor` for reading from a position of its own: whoever opened the file may have passed it on to others, who read
/// it at the same time. Where the host does not let it be opened again, the position is shared with them.
pub(super) fn reader(descriptor: BorrowedFd<'_>) -> io::Result<File> {
    let copy = copy(descriptor)?;
    // Opening anything else again may have an effect.
    if !copy.metadata()?.is_file() || !allows(&copy, false)? {
        return Ok(copy);
    }
    let own = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    Ok(own.unwrap_or(copy))
}

/// Lets `file` pass the host's page cache by, wherever else it is open as a copy.
pub(super) fn make_direct(file: &File) -> io::Result<()> {
    // SAFETY: both commands take and give numbers, and the descriptor is open.
    #[expect(unsafe_code)]
    let result = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        if flags < 0 {
            flags
        } else {
            libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT)
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether `file` passes the host's page cache by.
pub(super) fn is_direct(file: &File) -> io::Result<bool> {
    Ok(flags(file)? & libc::O_DIRECT != 0)
}

fn flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes no argument, and the descriptor is open.
    #[expect(unsafe_code)]
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags)
}

/// Whether `file` was opened for what it shall be used for: reading, and writing at any position too if `write`.
pub(super) fn allows(file: &File, write: bool) -> io::Result<bool> {
    let flags = flags(file)?;
    Ok(match flags & libc::O_ACCMODE {
        // Where each write goes to the end, its position is not looked at.
        libc::O_RDWR => !write || flags & libc::O_APPEND == 0,
        libc::O_RDONLY => !write && flags & libc::O_PATH == 0,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
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
        let append = File::options()
            .read(true)
            .append(true)
            .open(file.path())
            .unwrap();
        assert!(allows(&append, false).unwrap() && !allows(&append, true).unwrap());
    }

    #[test]
    fn reader_leaves_the_position_of_others_alone() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kernel").unwrap();
        file.seek(SeekFrom::Start(2)).unwrap();
        let mut reader = reader(file.as_fd()).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kernel");
        assert_eq!(file.stream_position().unwrap(), 2);
    }

    #[test]
    fn reader_is_not_opened_for_more_than_its_descriptor_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write_only = File::options().write(true).open(file.path()).unwrap();
        let reader = reader(write_only.as_fd()).unwrap();
        assert!(!allows(&reader, false).unwrap());
    }

    #[test]
    fn copy_outlives_the_original() {
        let file = tempfile::tempfile().unwrap();
        let copy = copy(file.as_fd()).unwrap();
        drop(file);
        copy.set_len(7).unwrap();
    }
}
