//! Waiting for descriptors, and asking them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use devices::virtio::console::WindowSize;

/// A descriptor to wait for, or none: poll(2) passes over a negative descriptor.
pub(super) fn entry(fd: Option<RawFd>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd: fd.unwrap_or(-1),
        events,
        revents: 0,
    }
}

/// Waits until one of `entries` is ready or `timeout` is over; forever without one. An interrupted wait finds nothing
/// ready.
pub(super) fn wait(entries: &mut [libc::pollfd], timeout: Option<Duration>) {
    let millis = timeout.map_or(-1, |timeout| {
        let millis = timeout.as_micros().div_ceil(1000);
        libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: the pointer and the length are those of a slice of pollfd.
    #[allow(unsafe_code)]
    let result = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, millis) };
    if result < 0 {
        for entry in entries {
            entry.revents = 0;
        }
    }
}

/// The events that are there now.
pub(super) fn now(fd: BorrowedFd<'_>, events: libc::c_short) -> libc::c_short {
    let mut entries = [entry(Some(fd.as_raw_fd()), events)];
    wait(&mut entries, Some(Duration::ZERO));
    entries[0].revents
}

/// The result of a libc call that returns -1 on failure.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The size of the terminal behind `fd`, if it is one.
pub(super) fn window_size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is a place for one winsize; a descriptor that is no terminal is an error and nothing more.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(WindowSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}
