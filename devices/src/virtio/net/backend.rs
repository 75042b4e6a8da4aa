//! Where packets come from and go to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::spec::HEADER_LEN;

bitflags::bitflags! {
    /// Work on packets that is left to whoever takes them, as the values of TUNSETOFFLOAD.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Checksums may be missing.
        const CSUM = libc::TUN_F_CSUM;
        /// TCP over IPv4 may come unsegmented.
        const TSO4 = libc::TUN_F_TSO4;
        /// TCP over IPv6 may come unsegmented.
        const TSO6 = libc::TUN_F_TSO6;
        /// Unsegmented TCP may carry the ECN bit.
        const TSO_ECN = libc::TUN_F_TSO_ECN;
        /// UDP may come unfragmented.
        const UFO = libc::TUN_F_UFO;
        /// UDP over IPv4 and IPv6 may come unsegmented. A tap has it for both or for none.
        const USO = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
}

impl Offloads {
    /// Whether packets longer than the MTU may come.
    pub fn segmentation(self) -> bool {
        self.intersects(Self::TSO4 | Self::TSO6 | Self::UFO | Self::USO)
    }
}

/// A port for Ethernet frames, each with a 12-byte virtio net header (virtio 1.2, 5.1.6) before it. A device with several
/// queue pairs has one for each, all of one interface.
///
/// Its descriptor is non-blocking, and can be waited for by epoll, edge-triggered. All methods take `&self`: the device keeps
/// the port while a worker uses it.
pub trait Backend: AsRawFd + Send + Sync + 'static {
    /// What the port can be told to leave to the guest, and takes from it.
    fn offloads(&self) -> Offloads;

    /// Sets what the guest can do itself, in place of what was set before, for all ports of the interface.
    ///
    /// # Errors
    ///
    /// The host refused.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Takes part in receiving from now on, or not. One that does not receives nothing, and what waited in it is lost; the
    /// interface gives its packets to the others. Does nothing if it is so already.
    ///
    /// # Errors
    ///
    /// The host refused.
    fn set_receiving(&self, receiving: bool) -> io::Result<()>;

    /// A descriptor that is readable when the port may be gone, for one whose own does not tell. It can be waited for by
    /// epoll, level-triggered, until [`Backend::take_changes`].
    fn changes(&self) -> Option<RawFd> {
        None
    }

    /// Empties what [`Backend::changes`] gave.
    fn take_changes(&self) {}

    /// Whether the port is still there. One that is gone does not come back.
    fn is_attached(&self) -> bool;

    /// Takes one packet, and returns its length with the header. A packet longer than `buffers` is cut off, and the length
    /// is then that of `buffers`.
    ///
    /// # Safety
    ///
    /// Each of `buffers` is memory that may be written, for the length of the call.
    ///
    /// # Errors
    ///
    /// What `readv` reports; [`io::ErrorKind::WouldBlock`] if there is no packet.
    #[allow(unsafe_code)]
    unsafe fn receive(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: the caller vouches for the memory; the slice gives the number of its elements.
        retry(|| unsafe { libc::readv(self.as_raw_fd(), buffers.as_ptr(), count(buffers)) })
    }

    /// Gives one packet away. Its bytes are read once; the guest may change them meanwhile, and gets what it deserves.
    ///
    /// # Safety
    ///
    /// Each of `buffers` is memory that may be read, for the length of the call.
    ///
    /// # Errors
    ///
    /// What `writev` reports; [`io::ErrorKind::WouldBlock`] if there is no room.
    #[allow(unsafe_code)]
    unsafe fn send(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: the caller vouches for the memory; the slice gives the number of its elements.
        retry(|| unsafe { libc::writev(self.as_raw_fd(), buffers.as_ptr(), count(buffers)) })
    }
}

/// Takes one packet and forgets it. Tells its length as far as it was read: 0 if there is none to come any more.
pub(super) fn discard(backend: &impl Backend) -> io::Result<usize> {
    // A tap refuses to cut off a packet within its header.
    let mut header = [0_u8; HEADER_LEN as usize];
    let buffer = libc::iovec {
        iov_base: header.as_mut_ptr().cast(),
        iov_len: header.len(),
    };
    // SAFETY: the buffer is the array above.
    #[allow(unsafe_code)]
    unsafe {
        backend.receive(&[buffer])
    }
}

/// The number of buffers as the system calls take it; too many is for them to refuse.
fn count(buffers: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(buffers.len()).unwrap_or(libc::c_int::MAX)
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(len) = usize::try_from(call()) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// What a failed call says of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing to take, or no room to give.
    WouldBlock,
    /// The interface was set down; it may come up again.
    Down,
    /// The port is gone for good.
    Gone,
    /// This packet was refused.
    Packet,
}

impl Fault {
    /// Sorts an error of [`Backend::receive`] or [`Backend::send`] on `backend`.
    pub(super) fn of(error: &io::Error, backend: &impl Backend) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
            Some(libc::EIO | libc::ENETDOWN) => Self::Down,
            Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO) => Self::Gone,
            Some(libc::EINVAL | libc::EMSGSIZE) => Self::Packet,
            // A tap that is being deleted fails in other ways too, depending on how far that got.
            _ if backend.is_attached() => Self::Packet,
            _ => Self::Gone,
        }
    }
}
