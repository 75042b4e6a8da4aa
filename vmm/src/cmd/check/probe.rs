//! System calls that are made to see whether they work.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Sets up an io_uring and closes it.
pub(super) fn io_uring() -> io::Result<()> {
    /// Size of `struct io_uring_params`, which is fixed by the kernel's ABI.
    const PARAMS_BYTES: usize = 120;
    let mut params = [0_u64; PARAMS_BYTES / 8];
    let entries: libc::c_uint = 2;
    // SAFETY: params is zeroed, as long and as aligned as `struct io_uring_params`, and lives through the call.
    #[expect(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.as_mut_ptr()) };
    descriptor(result).map(drop)
}

/// Makes a userfaultfd that also handles faults of the kernel, as those of KVM, and closes it.
pub(super) fn userfaultfd() -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    #[expect(unsafe_code)]
    let result =
        unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    descriptor(result).map(drop)
}

/// The version of Landlock's ABI, 1 or more.
pub(super) fn landlock_abi() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    let no_rules: *const libc::c_void = std::ptr::null();
    // SAFETY: with this flag the kernel takes a null pointer and a length of zero, and answers a number.
    #[expect(unsafe_code)]
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            no_rules,
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Makes a tap on an opened /dev/net/tun. It goes away when the file is closed.
pub(super) fn tap(tun: &File) -> io::Result<()> {
    // SAFETY: an ifreq of zeroes is valid: an empty name and no flags.
    #[expect(unsafe_code)]
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The kernel replaces %d by the first free number.
    for (to, from) in request.ifr_name.iter_mut().zip(b"pvcheck%d") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    #[expect(unsafe_code)]
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The soft limit of a resource; None when there is none.
pub(super) fn limit(resource: libc::__rlimit_resource_t) -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit, which lives through the call.
    #[expect(unsafe_code)]
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    #[expect(unsafe_code)]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}
