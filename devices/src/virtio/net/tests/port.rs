//! A port that is one end of a socket pair.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use crate::virtio::net::{Backend, Offloads};

/// What a test makes the port do.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Error of the next send, and of each until it is set back to 0.
    pub(super) send_error: AtomicI32,
    /// Error of the next receive only.
    pub(super) receive_error: AtomicI32,
    pub(super) detached: AtomicBool,
    pub(super) refuses_offloads: AtomicBool,
    /// All that was set.
    pub(super) offloads: Mutex<Vec<Offloads>>,
    pub(super) refuses_queue: AtomicBool,
    /// Whether the port receives, as it was told; at first it does.
    pub(super) rests: AtomicBool,
}

pub(super) struct SocketPort {
    socket: UnixDatagram,
    control: Arc<Control>,
    supported: Offloads,
}

impl SocketPort {
    /// A port with its control, and the host's end.
    pub(super) fn pair(supported: Offloads) -> (Self, Arc<Control>, UnixDatagram) {
        let (socket, host) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        host.set_read_timeout(Some(5 * super::SECOND)).unwrap();
        let control = Arc::new(Control::default());
        let port = Self {
            socket,
            control: Arc::clone(&control),
            supported,
        };
        (port, control, host)
    }
}

impl AsRawFd for SocketPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Backend for SocketPort {
    fn offloads(&self) -> Offloads {
        self.supported
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if self.control.refuses_offloads.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.control.offloads.lock().unwrap().push(offloads);
        Ok(())
    }

    fn set_receiving(&self, receiving: bool) -> io::Result<()> {
        if self.control.refuses_queue.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        self.control.rests.store(!receiving, Ordering::SeqCst);
        Ok(())
    }

    fn is_attached(&self) -> bool {
        !self.control.detached.load(Ordering::SeqCst)
    }

    #[allow(unsafe_code)]
    unsafe fn receive(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        // As a tap, which loses a packet whose header finds no room.
        if buffers.iter().map(|buffer| buffer.iov_len).sum::<usize>() < 12 {
            self.socket.recv(&mut [])?;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match self.control.receive_error.swap(0, Ordering::SeqCst) {
            // SAFETY: the array is of valid iovecs by this method's contract.
            0 => result(unsafe {
                libc::readv(self.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32)
            }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    #[allow(unsafe_code)]
    unsafe fn send(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        match self.control.send_error.load(Ordering::SeqCst) {
            // SAFETY: the array is of valid iovecs by this method's contract.
            0 => result(unsafe {
                libc::writev(self.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32)
            }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn result(len: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}
