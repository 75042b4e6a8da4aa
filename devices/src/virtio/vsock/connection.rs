//! One connection between a program on the host and one in the guest.

use std::io;
use std::net;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bitflags::bitflags;

use super::backlog::{Backlog, Inward, Outward};
use super::greeting::Greeting;
use super::socket;
use super::spec::{Credit, Op, Shutdown};
use crate::virtio::chain::Buffers;

/// What identifies a connection to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

bitflags! {
    /// Packets without payload that the guest is to get.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Due: u8 {
        const RESET = 1;
        const REQUEST = 2;
        const RESPONSE = 4;
        const CREDIT_REQUEST = 8;
        const CREDIT_UPDATE = 16;
        const SHUTDOWN = 32;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A host's program is connected, and has not said where to.
    Greeting,
    /// The guest is asked to accept.
    Requested,
    /// Data goes both ways, as far as neither end shut down.
    Established,
    /// The guest is done with it. What it sent before is still on its way to the host.
    Draining,
    /// Nothing is left, except perhaps a reset that the guest has to get.
    Closed,
}

/// The guest sent what it must not send now, or more than it has credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation;

/// What the guest is to get next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A packet without payload.
    Control(Op),
    /// Up to so many bytes from the host.
    Data(u32),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Absent once it is closed.
    stream: Option<UnixStream>,
    key: Option<Key>,
    state: State,
    /// The socket may have bytes, or its end.
    readable: bool,
    due: Due,
    /// When to give up what is waited for.
    deadline: Option<Instant>,
    inward: Inward,
    backlog: Backlog,
    outward: Outward,
    /// The guest was asked for credit since it last had any.
    asked: bool,
    /// What the guest said.
    guest_ended: Shutdown,
    /// What the guest was told, or is to be.
    host_ended: Shutdown,
}

impl Connection {
    fn new(stream: UnixStream, state: State) -> Self {
        Self {
            stream: Some(stream),
            key: None,
            state,
            readable: false,
            due: Due::empty(),
            deadline: None,
            inward: Inward::default(),
            backlog: Backlog::default(),
            outward: Outward::default(),
            asked: false,
            guest_ended: Shutdown::empty(),
            host_ended: Shutdown::empty(),
        }
    }

    /// A program on the host connected; it has until `deadline` to say where to.
    pub(super) fn from_host(stream: UnixStream, deadline: Instant) -> Self {
        Self {
            deadline: Some(deadline),
            ..Self::new(stream, State::Greeting)
        }
    }

    /// The guest asked for a connection, and a program on the host took it.
    pub(super) fn from_guest(stream: UnixStream, key: Key, credit: Credit) -> Self {
        let mut connection = Self {
            key: Some(key),
            due: Due::RESPONSE,
            ..Self::new(stream, State::Established)
        };
        connection.hear(credit);
        connection
    }

    pub(super) fn key(&self) -> Option<Key> {
        self.key
    }

    pub(super) fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Gives what is waited for as long as from the start, after a time in which nothing could happen.
    pub(super) fn renew_deadline(&mut self, deadline: Instant) {
        if self.deadline.is_some() {
            self.deadline = Some(deadline);
        }
    }

    pub(super) fn is_greeting(&self) -> bool {
        self.state == State::Greeting
    }

    pub(super) fn is_requested(&self) -> bool {
        self.state == State::Requested
    }

    /// Whether nothing is left to do: it can be forgotten.
    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Closed && self.due.is_empty()
    }

    /// Whether the guest is done with the connection, or is to learn that it is over.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Draining | State::Closed)
    }

    /// Whether the guest knows that too, so that what it sends with this key is for another connection.
    pub(super) fn is_forgotten_by_guest(&self) -> bool {
        self.is_over() && self.due.is_empty()
    }

    // What the host does.

    /// The socket has bytes, or its end.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Looks at the line that a program on the host begins with.
    pub(super) fn read_greeting(&self) -> Greeting {
        self.stream
            .as_ref()
            .map_or(Greeting::Invalid, Greeting::read)
    }

    /// Asks the guest to accept the connection `key` before `deadline`.
    pub(super) fn request(&mut self, key: Key, deadline: Instant) {
        self.key = Some(key);
        self.state = State::Requested;
        self.due = Due::REQUEST;
        self.deadline = Some(deadline);
    }

    /// The other end of the socket was closed.
    pub(super) fn hang_up(&mut self, linger: Duration) {
        match self.state {
            State::Greeting => self.close(),
            // The guest may not know of it.
            State::Requested if self.due.contains(Due::REQUEST) => self.close(),
            State::Requested => self.abort(),
            // Where the end of what it sent before is still to be read, that is where it is found.
            State::Established
                if self.host_ended.contains(Shutdown::SEND)
                    || self.guest_ended.contains(Shutdown::RECEIVE) =>
            {
                self.end_host(Shutdown::all(), linger);
            }
            State::Established | State::Draining | State::Closed => {}
        }
    }

    /// There may be room in the socket: passes on what waits for it.
    pub(super) fn flush(&mut self, linger: Duration) {
        let Some(stream) = &self.stream else { return };
        while !self.backlog.is_empty() {
            match socket::send_bytes(stream, &self.backlog.parts()) {
                Ok(len) => {
                    self.backlog.drop_front(len);
                    self.inward.forward(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.host_takes_no_more(linger),
            }
        }
        self.forwarded();
    }

    /// Nobody reads what the guest sends: it goes nowhere from now on.
    fn host_takes_no_more(&mut self, linger: Duration) {
        self.backlog.clear();
        self.inward.forward_all();
        if self.state == State::Established {
            self.end_host(Shutdown::RECEIVE, linger);
        }
        self.forwarded();
    }

    /// After bytes went on.
    fn forwarded(&mut self) {
        if self.backlog.is_empty() {
            if self.state == State::Draining {
                self.close_stream();
            } else if self.guest_ended.contains(Shutdown::SEND)
                && let Some(stream) = &self.stream
            {
                socket::end(stream, net::Shutdown::Write);
            }
        }
        if self.state == State::Established && self.inward.is_worth_telling() {
            self.due |= Due::CREDIT_UPDATE;
        }
    }

    /// The host ends one direction or both: to be told to the guest, which has `linger` to answer the last of it.
    fn end_host(&mut self, ended: Shutdown, linger: Duration) {
        if self.host_ended.contains(ended) {
            return;
        }
        self.host_ended |= ended;
        self.due |= Due::SHUTDOWN;
        if self.host_ended.is_all() {
            self.deadline = Some(Instant::now() + linger);
        }
    }

    /// The time is up.
    pub(super) fn expire(&mut self) {
        self.deadline = None;
        match self.state {
            State::Greeting => self.close(),
            State::Requested if self.due.contains(Due::REQUEST) => self.close(),
            State::Requested | State::Established => self.abort(),
            State::Draining | State::Closed => {}
        }
    }

    // What the guest does.

    /// Takes note of what the guest has room for, which every packet says.
    pub(super) fn hear(&mut self, credit: Credit) {
        self.outward.hear(credit);
        if self.outward.room() > 0 {
            self.asked = false;
        }
    }

    /// The guest accepted: tells the program on the host.
    pub(super) fn accept(&mut self) -> Result<(), Violation> {
        let (State::Requested, Some(key), Some(stream)) = (self.state, self.key, &self.stream)
        else {
            return Err(Violation);
        };
        let answer = format!("OK {}\n", key.host_port);
        self.deadline = None;
        self.state = State::Established;
        self.readable = true;
        // Nothing was sent before: a socket that has no room for a line is closed.
        if !matches!(socket::send_bytes(stream, &[answer.as_bytes(), &[]]), Ok(len) if len == answer.len())
        {
            self.abort();
        }
        Ok(())
    }

    /// The guest sends what is readable in `chain`.
    pub(super) fn receive(
        &mut self,
        chain: &mut Buffers,
        linger: Duration,
    ) -> Result<(), Violation> {
        let len = chain.readable_len();
        if self.state != State::Established
            || self.guest_ended.contains(Shutdown::SEND)
            || len > self.backlog.room() as u64
        {
            return Err(Violation);
        }
        // No more than the room.
        self.inward.receive(len as u32);
        if self.host_ended.contains(Shutdown::RECEIVE) {
            self.inward.forward_all();
            self.forwarded();
            return Ok(());
        }
        if self.backlog.is_empty() {
            match self.send(chain) {
                Ok(sent) => {
                    self.inward.forward(sent);
                    chain.skip_front(sent as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.host_takes_no_more(linger);
                    return Ok(());
                }
            }
        }
        if chain.readable_len() > 0 {
            let was_empty = self.backlog.is_empty();
            self.backlog.push(chain).map_err(|_| Violation)?;
            if was_empty {
                // Only a socket that said that it is full tells when it has room again.
                self.flush(linger);
                return Ok(());
            }
        }
        self.forwarded();
        Ok(())
    }

    fn send(&self, chain: &Buffers) -> io::Result<usize> {
        let Some(stream) = &self.stream else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        if chain.readable_len() == 0 {
            return Ok(0);
        }
        // SAFETY: the pieces are guest memory, checked when the chain was loaded, in a mapping that the chain keeps.
        #[expect(unsafe_code)]
        unsafe {
            socket::send(stream, chain.readable())
        }
    }

    /// The guest asks what it may send.
    pub(super) fn ask_credit(&mut self) {
        if self.state == State::Established {
            self.due |= Due::CREDIT_UPDATE;
        }
    }

    /// The guest ends one direction or both.
    pub(super) fn end_guest(&mut self, ended: Shutdown) -> Result<(), Violation> {
        let (State::Established, Some(stream)) = (self.state, &self.stream) else {
            return Err(Violation);
        };
        self.guest_ended |= ended;
        if self.guest_ended.contains(Shutdown::RECEIVE) {
            self.readable = false;
            socket::end(stream, net::Shutdown::Read);
        }
        if !self.guest_ended.is_all() {
            self.forwarded();
            return Ok(());
        }
        // The guest needs the answer to use its port again, and does not depend on what the host still has to take.
        self.due = Due::RESET;
        self.deadline = None;
        self.state = State::Draining;
        self.forwarded();
        Ok(())
    }

    /// The guest reset the connection, and forgot it.
    pub(super) fn reset_by_guest(&mut self) {
        self.due = Due::empty();
        if self.state != State::Draining {
            self.close();
        }
    }

    /// Resets the connection.
    pub(super) fn abort(&mut self) {
        self.close();
        self.due = Due::RESET;
    }

    /// Closes the connection, of which the guest knows nothing.
    pub(super) fn give_up(&mut self) {
        self.close();
    }

    fn close(&mut self) {
        self.due = Due::empty();
        self.deadline = None;
        self.close_stream();
    }

    fn close_stream(&mut self) {
        self.state = State::Closed;
        self.stream = None;
        self.backlog.clear();
    }

    // What the guest is to get.

    /// What to send now, if anything. It is taken as sent, unless it is data.
    pub(super) fn next(&mut self) -> Option<Next> {
        if self.may_read() {
            let room = self.outward.room();
            if room == 0 && !self.asked {
                self.asked = true;
                self.due |= Due::CREDIT_REQUEST;
            }
        }
        let first = self.due.iter().next();
        if let Some(due) = first {
            self.due.remove(due);
            return Some(Next::Control(match due {
                Due::RESET => Op::Reset,
                Due::REQUEST => Op::Request,
                Due::RESPONSE => Op::Response,
                Due::CREDIT_REQUEST => Op::CreditRequest,
                Due::CREDIT_UPDATE => Op::CreditUpdate,
                _ => Op::Shutdown(self.host_ended),
            }));
        }
        (self.may_read() && self.outward.room() > 0).then(|| Next::Data(self.outward.room()))
    }

    /// Whether [`Connection::next`] has something.
    pub(super) fn has_next(&self) -> bool {
        !self.due.is_empty() || self.may_read() && (self.outward.room() > 0 || !self.asked)
    }

    fn may_read(&self) -> bool {
        self.readable
            && self.state == State::Established
            && !self.guest_ended.contains(Shutdown::RECEIVE)
            && !self.host_ended.contains(Shutdown::SEND)
    }

    /// Reads from the socket into the writable part of `chain`, and returns how much came. Nothing came if the socket has
    /// nothing now, or no more at all, or fails; what the guest then is to get is [`Connection::next`].
    pub(super) fn read(&mut self, chain: &Buffers, linger: Duration) -> Option<u32> {
        let stream = self.stream.as_ref()?;
        // SAFETY: the pieces are guest memory, checked when the chain was loaded, in a mapping that the chain keeps.
        #[expect(unsafe_code)]
        let result = unsafe { socket::receive(stream, chain.writable()) };
        match result {
            Ok(0) => {
                self.readable = false;
                let ended = if socket::is_closed(stream) {
                    Shutdown::all()
                } else {
                    Shutdown::SEND
                };
                self.end_host(ended, linger);
                None
            }
            Ok(len) => {
                // No more than the longest payload.
                let len = len as u32;
                self.outward.send(len);
                Some(len)
            }
            Err(error) => {
                self.readable = false;
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.abort();
                }
                None
            }
        }
    }

    /// What to tell the guest of this end's buffer, in a packet that is being sent.
    pub(super) fn tell(&mut self) -> Credit {
        self.due.remove(Due::CREDIT_UPDATE);
        self.inward.tell()
    }
}
