//! The kernel's tap driver.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::NetError;

/// Opens the driver, without an interface yet.
pub(super) fn open() -> Result<File, NetError> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|source| {
            let advice = match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    "load the driver with `modprobe tun`, and pass the device to the container if this is one"
                }
                Some(libc::EACCES | libc::EPERM) => {
                    "have it readable and writable for this user, and allowed to the container if this is one"
                }
                _ => "it has to be there to use a tap",
            };
            NetError::NoTun { advice, source }
        })
}

/// The Ethernet address of the interface that `file` is a queue of.
pub(super) fn mac(file: &File) -> io::Result<[u8; 6]> {
    // SAFETY: an ifreq is bytes and integers, for which zero is a value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: SIOCGIFHWADDR writes an ifreq.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFHWADDR filled the address.
    #[allow(unsafe_code)]
    let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let [a, b, c, d, e, f, ..] = address.map(|byte| byte.cast_unsigned());
    Ok([a, b, c, d, e, f])
}

/// Attaches `file` to a queue of the tap called `name`, which is made if it does not exist. In a new name, `%d` becomes a
/// number. A tap with `multi_queue` has a queue for each file that is attached. A macvtap takes no name, and its flags alone.
pub(super) fn attach(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    // SAFETY: an ifreq is bytes and integers, for which zero is a value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
