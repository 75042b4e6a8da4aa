//! Hears of changes of the host's interfaces.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Messages taken at once; more are taken at the next wake-up.
const MAX_MESSAGES: usize = 256;

/// A socket that is readable when an interface of this network namespace came, went or changed. What it was is not told: who
/// hears of it looks at what it is concerned with.
#[derive(Debug)]
pub(super) struct LinkMonitor(OwnedFd);

impl LinkMonitor {
    /// # Errors
    ///
    /// The host gives no such socket.
    pub(super) fn new() -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes integers.
        #[allow(unsafe_code)]
        let fd = unsafe { libc::socket(libc::AF_NETLINK, flags, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and belongs to nobody else.
        #[allow(unsafe_code)]
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an address is integers, for which zero is a value.
        #[allow(unsafe_code)]
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        // SAFETY: the address is one, of the length that is said.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// Takes what was told so far, unread.
    pub(super) fn take(&self) {
        let mut byte = 0_u8;
        for _ in 0..MAX_MESSAGES {
            // SAFETY: the buffer is the byte above; what goes beyond it is cut off.
            #[allow(unsafe_code)]
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    (&raw mut byte).cast(),
                    1,
                    libc::MSG_TRUNC,
                )
            };
            // Messages that were lost for want of room are told of once, as an error.
            let lost = len < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
            if len < 0 && !lost {
                return;
            }
        }
    }
}

impl AsRawFd for LinkMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitor_has_nothing_to_tell_at_first_and_does_not_wait_for_it() {
        let monitor = LinkMonitor::new().unwrap();
        monitor.take();
        assert!(monitor.as_raw_fd() > 2);
    }
}
