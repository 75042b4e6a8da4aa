//! The connections of a device.

use std::collections::{HashMap, VecDeque};

use super::connection::{Connection, Key};

/// Most connections at a time, those being opened and closed included.
pub(super) const MOST_CONNECTIONS: usize = 1024;

/// Ports that the host's side of a connection by a program on the host gets: out of the way of those that listen.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// A connection as it is known to epoll: a slot, and which of its connections one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    fn new(slot: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 16 | slot as u64)
    }

    pub(super) fn to_data(self) -> u64 {
        self.0
    }

    pub(super) fn from_data(data: u64) -> Self {
        Self(data)
    }

    fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 16) as u32
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
    /// It is in the queue of those with something for the guest.
    queued: bool,
}

/// Connections by slot and by key, and the queue of those that have something for the guest, which take turns.
///
/// It allocates when it is made, and then no more.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    ready: VecDeque<usize>,
    next_port: u32,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            slots: std::iter::repeat_with(Slot::default)
                .take(MOST_CONNECTIONS)
                .collect(),
            free: (0..MOST_CONNECTIONS).rev().collect(),
            by_key: HashMap::with_capacity(MOST_CONNECTIONS),
            ready: VecDeque::with_capacity(MOST_CONNECTIONS),
            next_port: HOST_PORTS.start,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Adds a connection, whose key no other has, and returns its slot if there is room.
    pub(super) fn insert(&mut self, connection: Connection) -> Option<usize> {
        let slot = self.free.pop()?;
        if let Some(key) = connection.key() {
            self.by_key.insert(key, slot);
        }
        let entry = &mut self.slots[slot];
        entry.generation = entry.generation.wrapping_add(1);
        entry.connection = Some(connection);
        Some(slot)
    }

    /// The connection in `slot` was given `key`, which no other has.
    pub(super) fn map(&mut self, slot: usize, key: Key) {
        self.by_key.insert(key, slot);
    }

    /// The guest does not know of the connection in `slot` any more.
    pub(super) fn unmap(&mut self, slot: usize) {
        let key = self.get(slot).and_then(|connection| connection.key());
        if let Some(key) = key
            && self.by_key.get(&key) == Some(&slot)
        {
            self.by_key.remove(&key);
        }
    }

    /// Forgets the connection in `slot`.
    pub(super) fn remove(&mut self, slot: usize) {
        self.unmap(slot);
        if self.slots[slot].connection.take().is_some() {
            self.free.push(slot);
        }
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn get(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.connection.as_mut()
    }

    /// How epoll is to name the connection in `slot`.
    pub(super) fn token(&self, slot: usize) -> Token {
        Token::new(slot, self.slots[slot].generation)
    }

    /// The slot of the connection that epoll named, unless it is gone.
    pub(super) fn slot(&self, token: Token) -> Option<usize> {
        let entry = self.slots.get(token.slot())?;
        (entry.connection.is_some() && entry.generation == token.generation()).then(|| token.slot())
    }

    /// All slots, whether there is a connection in them or not.
    pub(super) fn slots() -> std::ops::Range<usize> {
        0..MOST_CONNECTIONS
    }

    /// Has the connection in `slot` take its turn, if it has something for the guest.
    pub(super) fn queue(&mut self, slot: usize) {
        let entry = &mut self.slots[slot];
        let has_next = entry.connection.as_ref().is_some_and(Connection::has_next);
        if has_next && !entry.queued {
            entry.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// The connection whose turn it is. It stays that until [`Table::take_turn`].
    pub(super) fn first(&mut self) -> Option<usize> {
        while let Some(slot) = self.ready.front().copied() {
            let connection = self.slots[slot].connection.as_ref();
            if connection.is_some_and(Connection::has_next) {
                return Some(slot);
            }
            self.take_turn();
        }
        None
    }

    /// The first connection had its turn.
    pub(super) fn take_turn(&mut self) {
        if let Some(slot) = self.ready.pop_front() {
            self.slots[slot].queued = false;
        }
    }

    /// A port for the host's side of a connection to `guest_port`.
    pub(super) fn new_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_port;
            self.next_port += 1;
            if self.next_port == HOST_PORTS.end {
                self.next_port = HOST_PORTS.start;
            }
            let key = Key {
                host_port,
                guest_port,
            };
            // There are many more ports than connections.
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;
    use crate::virtio::vsock::spec::Credit;

    fn connection(key: Option<Key>) -> Connection {
        let (stream, _) = UnixStream::pair().unwrap();
        match key {
            Some(key) => Connection::from_guest(stream, key, Credit::default()),
            None => Connection::from_host(stream, Instant::now()),
        }
    }

    fn key(host_port: u32) -> Key {
        Key {
            host_port,
            guest_port: 1,
        }
    }

    #[test]
    fn token_of_a_connection_that_is_gone_finds_none() {
        let mut table = Table::new();
        let slot = table.insert(connection(None)).unwrap();
        let token = table.token(slot);
        assert_eq!(table.slot(token), Some(slot));
        table.remove(slot);
        assert_eq!(table.slot(token), None);
        assert_eq!(table.insert(connection(None)), Some(slot));
        assert_eq!(table.slot(token), None);
        assert_eq!(table.slot(Token::from_data(u64::MAX)), None);
    }

    #[test]
    fn slot_in_the_queue_is_there_once_and_none_if_its_connection_goes() {
        let mut table = Table::new();
        let a = table.insert(connection(Some(key(1)))).unwrap();
        let b = table.insert(connection(Some(key(2)))).unwrap();
        table.queue(a);
        table.queue(b);
        table.queue(a);
        assert_eq!(table.first(), Some(a));
        table.remove(a);
        assert_eq!(table.find(key(1)), None);
        assert_eq!(table.first(), Some(b));
        table.take_turn();
        assert_eq!(table.first(), None);
    }

    #[test]
    fn key_that_is_taken_is_not_given() {
        let mut table = Table::new();
        let first = table.new_key(1);
        table.insert(connection(Some(Key {
            host_port: first.host_port + 1,
            guest_port: 1,
        })));
        assert_eq!(table.new_key(1).host_port, first.host_port + 2);
        table.next_port = HOST_PORTS.end - 1;
        assert_eq!(table.new_key(1).host_port, HOST_PORTS.end - 1);
        assert_eq!(table.new_key(2).host_port, HOST_PORTS.start);
    }
}
