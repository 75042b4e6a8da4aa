//! A Unix socket with descriptors beside its bytes, as hyper reads and writes it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::intake::{Demand, Intake};
use super::limits::WRITE_TIME;

/// Most descriptors that the kernel takes in one message (`SCM_MAX_FD`).
pub(crate) const MAX_MESSAGE_DESCRIPTORS: usize = 253;
const READ_SIZE: usize = 8 << 10;

/// One read: how many bytes, with which descriptors, and whether the kernel could not hand over some of them.
struct Received {
    bytes: usize,
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(Received {
        bytes: message.bytes,
        descriptors,
        truncated: message.flags.contains(ReturnFlags::CTRUNC),
    })
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        flags,
    )?)
}

/// A moment in time that something must have happened by.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Fails when `at` has passed; otherwise the task is woken then.
    fn check(&mut self, at: Instant, context: &mut Context<'_>) -> io::Result<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        match sleep.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

/// The server's side of a connection.
pub(super) struct ServerSocket {
    stream: Arc<UnixStream>,
    intake: Intake,
    /// What was read and not handed on.
    unread: VecDeque<u8>,
    /// Descriptors that came with the last of `unread`.
    descriptors: Vec<OwnedFd>,
    truncated: bool,
    ended: bool,
    read_deadline: Deadline,
    write_deadline: Deadline,
    /// Since when the client takes nothing.
    stuck_since: Option<Instant>,
}

impl ServerSocket {
    pub(super) fn new(stream: Arc<UnixStream>, intake: Intake) -> Self {
        Self {
            stream,
            intake,
            unread: VecDeque::new(),
            descriptors: Vec::new(),
            truncated: false,
            ended: false,
            read_deadline: Deadline::default(),
            write_deadline: Deadline::default(),
            stuck_since: None,
        }
    }

    /// Reads what is there, all of which goes into `unread`.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut buffer = [0; READ_SIZE];
            let stream = &self.stream;
            let finished = self.intake.is_finished();
            let mut read = || receive(stream.as_fd(), &mut buffer);
            let result = if finished {
                // What was sent before the end was decided is answered, whether the runtime knows of it or not.
                read()
            } else {
                stream.try_io(Interest::READABLE, read)
            };
            match result {
                Ok(received) => {
                    self.ended = received.bytes == 0;
                    self.unread.extend(&buffer[..received.bytes]);
                    self.descriptors = received.descriptors;
                    self.truncated = received.truncated;
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if finished {
                        self.ended = true;
                        return Poll::Ready(Ok(()));
                    }
                    ready!(self.stream.poll_read_ready(context))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Read for ServerSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Demand::Read(deadline) = this.intake.demand(context.waker()) else {
                return Poll::Pending;
            };
            if this.unread.is_empty() {
                if this.ended {
                    return Poll::Ready(Ok(()));
                }
                match this.poll_receive(context) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => {
                        if let Some(deadline) = deadline {
                            this.read_deadline.check(deadline, context)?;
                        }
                        return Poll::Pending;
                    }
                }
                continue;
            }
            let (bytes, _) = this.unread.as_slices();
            let room = buffer.remaining().min(bytes.len());
            let admitted = this.intake.admit(&bytes[..room]);
            buffer.put_slice(&bytes[..admitted]);
            this.unread.drain(..admitted);
            if this.unread.is_empty() {
                let descriptors = std::mem::take(&mut this.descriptors);
                this.intake
                    .arrive(descriptors, std::mem::take(&mut this.truncated));
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl Write for ServerSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = poll_send(&this.stream, context, bytes, &[]);
        if result.is_ready() {
            this.stuck_since = None;
        } else {
            let since = *this.stuck_since.get_or_insert_with(Instant::now);
            this.write_deadline.check(since + WRITE_TIME, context)?;
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shut_down_write(&self.stream))
    }
}

fn poll_send(
    stream: &UnixStream,
    context: &mut Context<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        let result = stream.try_io(Interest::WRITABLE, || {
            send(stream.as_fd(), bytes, descriptors)
        });
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(stream.poll_write_ready(context))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Poll::Ready(result),
        }
    }
}

pub(super) fn shut_down_write(stream: &UnixStream) -> io::Result<()> {
    match rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The client's side of a connection, which sends descriptors with its first bytes.
pub(crate) struct ClientSocket {
    stream: UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl ClientSocket {
    pub(crate) fn new(stream: UnixStream, descriptors: Vec<OwnedFd>) -> Self {
        Self {
            stream,
            descriptors,
        }
    }
}

impl Read for ClientSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut bytes = [0; READ_SIZE];
            let room = buffer.remaining().min(READ_SIZE);
            match self.stream.try_read(&mut bytes[..room]) {
                Ok(count) => {
                    buffer.put_slice(&bytes[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_read_ready(context))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for ClientSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let descriptors: Vec<_> = this.descriptors.iter().map(AsFd::as_fd).collect();
        let sent = ready!(poll_send(&this.stream, context, bytes, &descriptors))?;
        drop(descriptors);
        this.descriptors.clear();
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shut_down_write(&self.stream))
    }
}
