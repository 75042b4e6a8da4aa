//! The host's side: the socket where programs connect, the connections there are, and the time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Connection, Key};
use super::greeting::Greeting;
use super::metrics::{VsockMetrics, add};
use super::spec::{Credit, Ends};
use super::table::{Table, Token};

/// Answers to packets of no connection that may wait for the guest to take them.
const MOST_ANSWERS: usize = 256;

/// Connections accepted, and events handled, before other work has its turn.
const MOST_EVENTS: usize = 32;

/// How long accepting rests when the host has no descriptors left.
const REST: Duration = Duration::from_secs(1);

/// What epoll calls the listening socket.
const LISTENER: u64 = u64::MAX;
/// What epoll calls the timer.
const TIMER: u64 = u64::MAX - 1;

/// Finds the program on the host that takes connections of the guest to a port.
pub trait Connector: Send + Sync {
    /// Connects to whoever is to serve `port`. Called on the device's thread: does not wait.
    ///
    /// # Errors
    ///
    /// Nobody is there, or not ready to take a connection. The guest's is refused.
    fn connect(&self, port: u32) -> io::Result<UnixStream>;
}

/// The sockets of a device that runs or is paused.
pub(super) struct Host {
    listener: Arc<UnixListener>,
    connector: Arc<dyn Connector>,
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer will expire.
    armed: Option<Instant>,
    /// Accepting rests until then.
    resting: Option<Instant>,
    timeout: Duration,
    pub(super) table: Table,
    answers: VecDeque<Ends>,
    pub(super) metrics: Arc<VsockMetrics>,
}

impl Host {
    /// Starts to wait for programs on the host, that connect to `listener`. The guest has `timeout` to accept, and to
    /// close.
    ///
    /// # Errors
    ///
    /// An epoll instance or a timer could not be had.
    pub(super) fn new(
        listener: Arc<UnixListener>,
        connector: Arc<dyn Connector>,
        timeout: Duration,
        metrics: Arc<VsockMetrics>,
    ) -> io::Result<Self> {
        let host = Self {
            listener,
            connector,
            epoll: Epoll::new()?,
            timer: TimerFd::new()?,
            armed: None,
            resting: None,
            timeout,
            table: Table::new(),
            answers: VecDeque::with_capacity(MOST_ANSWERS),
            metrics,
        };
        host.watch_listener()?;
        // Edge-triggered, an expired timer need not be read, which would wait if it was armed anew meanwhile.
        host.epoll.ctl(
            ControlOperation::Add,
            host.timer.as_raw_fd(),
            EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, TIMER),
        )?;
        Ok(host)
    }

    /// How long the guest has to answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn watch_listener(&self) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            self.listener.as_raw_fd(),
            EpollEvent::new(EventSet::IN, LISTENER),
        )
    }

    /// After a pause, in which nobody could answer.
    pub(super) fn resume(&mut self) {
        let deadline = Instant::now() + self.timeout;
        for slot in Table::slots() {
            if let Some(connection) = self.table.get(slot) {
                connection.renew_deadline(deadline);
            }
        }
    }

    /// Handles what happened on the sockets, some of it if it is much: the descriptor stays readable then.
    pub(super) fn run(&mut self) {
        let mut events = [EpollEvent::default(); MOST_EVENTS];
        // An interrupted wait is tried again, as the descriptor stays readable.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                TIMER => self.expire(),
                data => self.event(Token::from_data(data), event.event_set()),
            }
        }
    }

    fn event(&mut self, token: Token, events: EventSet) {
        let Some(slot) = self.table.slot(token) else {
            return;
        };
        let Some(connection) = self.table.get(slot) else {
            return;
        };
        let closed = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if connection.is_greeting() {
            self.greet(slot);
        } else {
            if closed || events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
                connection.set_readable();
            }
            if closed || events.contains(EventSet::OUT) {
                connection.flush(self.timeout);
            }
        }
        if closed && let Some(connection) = self.table.get(slot) {
            connection.hang_up(self.timeout);
        }
        self.settle(slot);
    }

    fn accept(&mut self) {
        for _ in 0..MOST_EVENTS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let deadline = Instant::now() + self.timeout;
                    let connection = Connection::from_host(stream, deadline);
                    if self.insert(connection).is_none() {
                        add(&self.metrics.refused_connections, 1);
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // The program that waits would wake this thread all the time.
                    _ => return self.rest(),
                },
            }
        }
    }

    fn rest(&mut self) {
        let end = EpollEvent::default();
        let removed = self
            .epoll
            .ctl(ControlOperation::Delete, self.listener.as_raw_fd(), end);
        if removed.is_ok() {
            let until = Instant::now() + REST;
            self.resting = Some(until);
            self.arm(until);
        }
    }

    /// Adds a connection, and has epoll watch its socket. There is none if the table is full, or epoll.
    fn insert(&mut self, connection: Connection) -> Option<usize> {
        let fd = connection.stream()?.as_raw_fd();
        let slot = self.table.insert(connection)?;
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, self.table.token(slot).to_data());
        if self.epoll.ctl(ControlOperation::Add, fd, event).is_err() {
            self.table.remove(slot);
            return None;
        }
        self.metrics.connections.fetch_add(1, Ordering::Relaxed);
        self.settle(slot);
        Some(slot)
    }

    /// A program on the host said something before its connection is there.
    fn greet(&mut self, slot: usize) {
        let Some(connection) = self.table.get(slot) else {
            return;
        };
        match connection.read_greeting() {
            Greeting::Incomplete => {}
            Greeting::Invalid => {
                connection.give_up();
                add(&self.metrics.refused_connections, 1);
            }
            Greeting::Port(port) => {
                let key = self.table.new_key(port);
                self.table.map(slot, key);
                if let Some(connection) = self.table.get(slot) {
                    connection.request(key, Instant::now() + self.timeout);
                }
            }
        }
    }

    /// The guest asks for a connection. There is none if nobody takes it, or there are too many.
    pub(super) fn connect(&mut self, key: Key, credit: Credit) -> bool {
        let slot = if self.table.is_full() {
            None
        } else {
            let stream = self.connector.connect(key.host_port).ok();
            stream.and_then(|stream| self.insert(Connection::from_guest(stream, key, credit)))
        };
        let counter = match slot {
            Some(_) => &self.metrics.guest_connections,
            None => &self.metrics.refused_connections,
        };
        add(counter, 1);
        slot.is_some()
    }

    /// After something happened to the connection in `slot`: forgets it if it is finished, and has it take its turn and
    /// its time otherwise.
    pub(super) fn settle(&mut self, slot: usize) {
        let Some(connection) = self.table.get(slot) else {
            return;
        };
        if connection.is_finished() {
            self.table.remove(slot);
            self.metrics.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let forgotten = connection.is_forgotten_by_guest();
        let deadline = connection.deadline();
        if forgotten {
            self.table.unmap(slot);
        }
        if let Some(deadline) = deadline {
            self.arm(deadline);
        }
        self.table.queue(slot);
    }

    /// Has the timer expire at `deadline` at the latest.
    fn arm(&mut self, deadline: Instant) {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // No time at all would disarm it.
        let wait = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        if self.timer.reset(wait, None).is_ok() {
            self.armed = Some(deadline);
        }
    }

    fn expire(&mut self) {
        self.armed = None;
        let now = Instant::now();
        for slot in Table::slots() {
            let Some(connection) = self.table.get(slot) else {
                continue;
            };
            if connection
                .deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                let counter = if connection.is_greeting() || connection.is_requested() {
                    &self.metrics.refused_connections
                } else {
                    &self.metrics.host_resets
                };
                add(counter, 1);
                connection.expire();
            }
            self.settle(slot);
        }
        match self.resting {
            Some(until) if until <= now => {
                self.resting = None;
                if self.watch_listener().is_err() {
                    self.resting = Some(now + REST);
                    self.arm(now + REST);
                }
            }
            Some(until) => self.arm(until),
            None => {}
        }
    }

    /// Answers a packet between `ends` that is for no connection, by a reset.
    pub(super) fn refuse(&mut self, ends: Ends) {
        // The caller made sure that there is room.
        self.answers.push_back(ends.turned());
    }

    /// Whether there is no room for another answer.
    pub(super) fn answers_are_full(&self) -> bool {
        self.answers.len() >= MOST_ANSWERS
    }

    /// The next answer, which stays that until [`Host::answered`].
    pub(super) fn answer(&self) -> Option<Ends> {
        self.answers.front().copied()
    }

    /// The next answer was given.
    pub(super) fn answered(&mut self) {
        self.answers.pop_front();
    }

    /// Whether the guest is to get something.
    pub(super) fn has_packets(&mut self) -> bool {
        !self.answers.is_empty() || self.table.first().is_some()
    }
}

impl AsRawFd for Host {
    /// Readable when there is something for [`Host::run`].
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let left = Table::slots().filter(|slot| self.table.get(*slot).is_some());
        let left = left.count() as u64;
        self.metrics.connections.fetch_sub(left, Ordering::Relaxed);
    }
}
