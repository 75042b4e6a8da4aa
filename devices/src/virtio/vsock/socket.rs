//! Calls on a host's socket. None waits, whatever the socket's own mode.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Sends from `buffers`, and returns how many bytes the socket took.
///
/// # Safety
///
/// Each of `buffers` is memory that may be read, for the length of the call.
///
/// # Errors
///
/// What `sendmsg` reports; [`io::ErrorKind::WouldBlock`] if there is no room.
#[expect(unsafe_code)]
pub(super) unsafe fn send(stream: &UnixStream, buffers: &[libc::iovec]) -> io::Result<usize> {
    let message = message(buffers);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message has the buffers only, for whose memory the caller vouches; sendmsg does not write them.
    retry(|| unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) })
}

/// Receives into `buffers`, and returns how many bytes there were: none if the other end sends no more.
///
/// # Safety
///
/// Each of `buffers` is memory that may be written, for the length of the call.
///
/// # Errors
///
/// What `recvmsg` reports; [`io::ErrorKind::WouldBlock`] if there is nothing now.
#[expect(unsafe_code)]
pub(super) unsafe fn receive(stream: &UnixStream, buffers: &[libc::iovec]) -> io::Result<usize> {
    let mut message = message(buffers);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message has the buffers only, for whose memory the caller vouches. There is no room for descriptors
    // that come along: the kernel closes them.
    retry(|| unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) })
}

/// Sends `bytes`, and tells how many the socket took.
///
/// # Errors
///
/// Those of [`send`].
pub(super) fn send_bytes(stream: &UnixStream, parts: &[&[u8]; 2]) -> io::Result<usize> {
    let buffers = parts.map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    // SAFETY: the buffers are the slices, which are borrowed for the call.
    #[expect(unsafe_code)]
    unsafe {
        send(stream, &buffers)
    }
}

/// Copies the next bytes to `bytes` and leaves them in the socket.
///
/// # Errors
///
/// Those of [`receive`].
pub(super) fn peek(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    take(stream, bytes, libc::MSG_PEEK)
}

/// Takes as many bytes out of the socket as `bytes` has, which were seen by [`peek`] before.
///
/// # Errors
///
/// Those of [`receive`].
pub(super) fn discard(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    take(stream, bytes, 0)
}

fn take(stream: &UnixStream, bytes: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the slice is memory that may be written, of the length given.
    #[expect(unsafe_code)]
    retry(|| unsafe {
        libc::recv(
            stream.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            flags | libc::MSG_DONTWAIT,
        )
    })
}

/// Ends one direction. It fails only if the other end is gone, which is noticed elsewhere.
pub(super) fn end(stream: &UnixStream, direction: Shutdown) {
    let _ = stream.shutdown(direction);
}

/// Whether neither direction goes on: the other end was closed.
pub(super) fn is_closed(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: the pointer is to one pollfd, as the count says.
    #[expect(unsafe_code)]
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

fn message(buffers: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no buffers, no control data.
    #[expect(unsafe_code)]
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len();
    message
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
