//! Descriptors that the starting process left open for the VMM.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::UsageError;

/// A duplicate of descriptor `fd`. To be called before anything else is opened: the number could otherwise be one of ours.
pub(super) fn duplicate(fd: RawFd) -> Result<OwnedFd, UsageError> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer, and any number may be asked for.
    #[expect(unsafe_code)]
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        let source = io::Error::last_os_error();
        return Err(UsageError::Descriptor { fd, source });
    }
    // SAFETY: the kernel has just made it for us, and nobody else knows its number.
    #[expect(unsafe_code)]
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    Ok(copy)
}

/// A duplicate of each of `fds`, in their order.
pub(super) fn duplicate_all(
    fds: impl IntoIterator<Item = RawFd>,
) -> Result<Vec<OwnedFd>, UsageError> {
    fds.into_iter().map(duplicate).collect()
}
