//! A backend made by hand, which serves rings or misbehaves. Its messages are written from the specification.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const SET_VRING_ERR: u32 = 14;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const GET_QUEUE_NUM: u32 = 17;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(crate) const ADD_MEM_REG: u32 = 37;
pub(crate) const REM_MEM_REG: u32 = 38;

const REPLY: u32 = 1 | 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

pub(crate) const F_PROTOCOL: u64 = 1 << 30;
pub(crate) const P_MQ: u64 = 1;
pub(crate) const P_REPLY_ACK: u64 = 1 << 3;
pub(crate) const P_MEM_SLOTS: u64 = 1 << 15;

/// What a backend does when a request comes that it does not serve as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Nothing.
    Silent,
    /// It sends one byte after the other of an answer that never ends.
    Slow,
    /// It goes away.
    Close,
    /// It answers that it failed, where it can.
    Refuse,
    /// It answers something else.
    OtherRequest,
    /// Its answer is longer than it says.
    Descriptors,
}

/// How a backend behaves.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) features: u64,
    pub(crate) protocol: u64,
    pub(crate) queues: u64,
    pub(crate) slots: u64,
    pub(crate) wrong: Option<(u32, Wrong)>,
}

impl Manner {
    pub(crate) fn good() -> Self {
        Self {
            features: 1 << 32 | 1 << 29 | 1 << 28 | F_PROTOCOL,
            protocol: P_MQ | P_REPLY_ACK | P_MEM_SLOTS | 0xffff_0000,
            queues: 4,
            slots: 32,
            wrong: None,
        }
    }

    pub(crate) fn wrong(request: u32, wrong: Wrong) -> Self {
        Self {
            wrong: Some((request, wrong)),
            ..Self::good()
        }
    }
}

/// What a backend has seen, for the test to look at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<u32>,
    pub(crate) features: u64,
    /// Guest physical address and length of each region.
    pub(crate) regions: Vec<(u64, u64)>,
    pub(crate) bases: BTreeMap<u32, u32>,
    pub(crate) served: u64,
    /// The other end went away.
    pub(crate) ended: bool,
}

#[derive(Clone)]
struct Region {
    guest: u64,
    len: u64,
    user: u64,
    offset: u64,
    file: Arc<File>,
}

#[derive(Default)]
struct Ring {
    size: u16,
    base: u16,
    addresses: [u64; 3],
    kick: Option<EventFd>,
    call: Option<EventFd>,
    error: Option<EventFd>,
    enabled: bool,
}

pub(crate) struct Fake {
    stream: UnixStream,
    manner: Manner,
    seen: Arc<Mutex<Seen>>,
    regions: Vec<Region>,
    rings: BTreeMap<u32, Ring>,
}

/// Serves `stream` on a thread, which ends with the connection.
pub(crate) fn serve(stream: UnixStream, manner: Manner, seen: Arc<Mutex<Seen>>) {
    let mut fake = Fake {
        stream,
        manner,
        seen,
        regions: Vec::new(),
        rings: BTreeMap::new(),
    };
    thread::spawn(move || {
        while fake.turn().is_some() {}
        // The test has a copy of this end.
        let _ = fake.stream.shutdown(std::net::Shutdown::Both);
        fake.seen.lock().unwrap().ended = true;
    });
}

impl Fake {
    /// Waits for a message or a notification.
    fn turn(&mut self) -> Option<()> {
        let entry = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut ready = vec![entry(self.stream.as_raw_fd())];
        let mut indexes = Vec::new();
        for (index, ring) in &self.rings {
            if let (Some(kick), true) = (&ring.kick, ring.enabled) {
                ready.push(entry(kick.as_raw_fd()));
                indexes.push(*index);
            }
        }
        // SAFETY: the entries are valid for the length of the call.
        #[allow(unsafe_code)]
        let count = unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, 10_000) };
        assert!(count >= 0);
        for (index, entry) in indexes.iter().zip(&ready[1..]) {
            if entry.revents & libc::POLLIN != 0 {
                let ring = &self.rings[index];
                let _ = ring.kick.as_ref().unwrap().read();
                self.echo(*index);
            }
        }
        if ready[0].revents != 0 {
            self.message()?;
        }
        Some(())
    }

    fn memory(&self) -> GuestMemoryMmap<()> {
        let ranges: Vec<_> = self
            .regions
            .iter()
            .map(|region| {
                let file = FileOffset::from_arc(Arc::clone(&region.file), region.offset);
                (GuestAddress(region.guest), region.len as usize, Some(file))
            })
            .collect();
        GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()
    }

    fn guest_address(&self, user: u64) -> u64 {
        let region = self
            .regions
            .iter()
            .find(|region| (region.user..region.user + region.len).contains(&user))
            .expect("a ring is in the memory that was announced");
        user - region.user + region.guest
    }

    /// Answers each chain of a ring by what can be read of it.
    fn echo(&mut self, index: u32) {
        let memory = self.memory();
        let ring = &self.rings[&index];
        let [table, used, available] = ring.addresses.map(|user| self.guest_address(user));
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let mut queue = Queue::new(ring.size).unwrap();
        queue.set_size(ring.size);
        queue.set_desc_table_address(halves(table).0, halves(table).1);
        queue.set_avail_ring_address(halves(available).0, halves(available).1);
        queue.set_used_ring_address(halves(used).0, halves(used).1);
        queue.set_next_avail(ring.base);
        let next_used = queue.used_idx(&memory, std::sync::atomic::Ordering::Acquire);
        queue.set_next_used(next_used.unwrap().0);
        queue.set_ready(true);
        let mut served = 0;
        loop {
            let Ok(mut chains) = queue.iter(&memory) else {
                // No way on with such a ring.
                ring.error.as_ref().unwrap().write(1).unwrap();
                return;
            };
            let Some(chain) = chains.next() else { break };
            let head = chain.head_index();
            let mut bytes = Vec::new();
            let mut written = 0;
            for descriptor in chain {
                let len = descriptor.len() as usize;
                if descriptor.is_write_only() {
                    let part = len.min(bytes.len() - written);
                    let slice = &bytes[written..written + part];
                    memory.write_slice(slice, descriptor.addr()).unwrap();
                    written += part;
                } else {
                    let mut part = vec![0; len];
                    memory.read_slice(&mut part, descriptor.addr()).unwrap();
                    bytes.extend(part);
                }
            }
            queue.add_used(&memory, head, written as u32).unwrap();
            served += 1;
        }
        let base = queue.next_avail();
        self.rings.get_mut(&index).unwrap().base = base;
        self.seen.lock().unwrap().served += served;
        if served > 0
            && let Some(call) = &self.rings[&index].call
        {
            call.write(1).unwrap();
        }
    }

    fn message(&mut self) -> Option<()> {
        let mut header = [0; 12];
        let mut fds = [0; 32];
        let mut iovs = [libc::iovec {
            iov_base: header.as_mut_ptr().cast(),
            iov_len: header.len(),
        }];
        // SAFETY: the vector is that of an array, which any bytes may be written to.
        #[allow(unsafe_code)]
        let received = unsafe { self.stream.recv_with_fds(&mut iovs, &mut fds) };
        let (len, count) = received.ok()?;
        if len == 0 {
            return None;
        }
        assert_eq!(len, 12);
        let mut files: Vec<File> = Vec::new();
        for fd in &fds[..count] {
            // SAFETY: the descriptor came with the message, and nobody else has it.
            #[allow(unsafe_code)]
            files.push(unsafe { File::from_raw_fd(*fd) });
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags, size) = (word(0), word(4), word(8));
        let mut body = vec![0; size as usize];
        self.stream.read_exact(&mut body).ok()?;
        self.seen.lock().unwrap().requests.push(request);
        if let Some((wrong, how)) = self.manner.wrong
            && wrong == request
        {
            return self.misbehave(how, request);
        }
        let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let short = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let mut answer = None;
        match request {
            GET_FEATURES => answer = Some(self.manner.features),
            GET_PROTOCOL_FEATURES => answer = Some(self.manner.protocol),
            GET_QUEUE_NUM => answer = Some(self.manner.queues),
            GET_MAX_MEM_SLOTS => answer = Some(self.manner.slots),
            SET_FEATURES => {
                self.seen.lock().unwrap().features = long(0);
                let protocol = long(0) & F_PROTOCOL != 0;
                self.rings.clear();
                for index in 0..self.manner.queues as u32 {
                    let ring = Ring {
                        enabled: !protocol,
                        ..Ring::default()
                    };
                    self.rings.insert(index, ring);
                }
            }
            SET_MEM_TABLE => {
                let files = files.drain(..);
                self.regions = (0..)
                    .zip(files)
                    .map(|(index, file)| region(&body[8 + 32 * index..], file))
                    .collect();
                assert_eq!(self.regions.len() as u32, short(0));
                self.note_regions();
            }
            ADD_MEM_REG => {
                self.regions.push(region(&body[8..], files.remove(0)));
                self.note_regions();
            }
            REM_MEM_REG => {
                let (guest, user) = (long(8), long(24));
                let before = self.regions.len();
                self.regions
                    .retain(|region| (region.guest, region.user) != (guest, user));
                assert_eq!(self.regions.len(), before - 1);
                self.note_regions();
            }
            SET_VRING_NUM => self.ring(short(0)).size = short(4) as u16,
            SET_VRING_BASE => {
                self.seen.lock().unwrap().bases.insert(short(0), short(4));
                self.ring(short(0)).base = short(4) as u16;
            }
            // Descriptors, used, available.
            SET_VRING_ADDR => self.ring(short(0)).addresses = [long(8), long(16), long(24)],
            SET_VRING_KICK => self.ring(short(0)).kick = eventfd(files),
            SET_VRING_CALL => self.ring(short(0)).call = eventfd(files),
            SET_VRING_ERR => self.ring(short(0)).error = eventfd(files),
            SET_VRING_ENABLE => self.ring(short(0)).enabled = short(4) == 1,
            GET_VRING_BASE => {
                let ring = self.ring(short(0));
                ring.kick = None;
                ring.call = None;
                answer = Some(u64::from(short(0)) | u64::from(ring.base) << 32);
            }
            _ => {}
        }
        if answer.is_none() && flags & NEED_REPLY != 0 {
            answer = Some(0);
        }
        if let Some(answer) = answer {
            self.reply(request, &answer.to_le_bytes());
        }
        Some(())
    }

    fn misbehave(&mut self, how: Wrong, request: u32) -> Option<()> {
        match how {
            Wrong::Silent => thread::sleep(Duration::from_secs(60)),
            Wrong::Slow => {
                while self.stream.write_all(&[1]).is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            Wrong::Close => {}
            Wrong::Refuse => {
                self.reply(request, &u64::MAX.to_le_bytes());
                return Some(());
            }
            Wrong::OtherRequest => {
                self.reply(request ^ 1, &0_u64.to_le_bytes());
                return Some(());
            }
            Wrong::Descriptors => {
                let mut message = header(request, 8).to_vec();
                message.extend(0_u64.to_le_bytes());
                let fd = self.stream.as_raw_fd();
                let _ = self.stream.send_with_fds(&[&message[..]], &[fd, fd]);
                return Some(());
            }
        }
        None
    }

    fn reply(&mut self, request: u32, body: &[u8]) {
        let mut message = header(request, body.len() as u32).to_vec();
        message.extend(body);
        // Whoever asked may have gone.
        let _ = self.stream.write_all(&message);
    }

    fn ring(&mut self, index: u32) -> &mut Ring {
        self.rings.entry(index & 0xff).or_default()
    }

    fn note_regions(&self) {
        let regions = self.regions.iter();
        self.seen.lock().unwrap().regions =
            regions.map(|region| (region.guest, region.len)).collect();
    }
}

fn header(request: u32, size: u32) -> [u8; 12] {
    let mut header = [0; 12];
    header[..4].copy_from_slice(&request.to_le_bytes());
    header[4..8].copy_from_slice(&REPLY.to_le_bytes());
    header[8..].copy_from_slice(&size.to_le_bytes());
    header
}

fn region(bytes: &[u8], file: File) -> Region {
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    Region {
        guest: long(0),
        len: long(8),
        user: long(16),
        offset: long(24),
        file: Arc::new(file),
    }
}

fn eventfd(mut files: Vec<File>) -> Option<EventFd> {
    use std::os::fd::IntoRawFd;
    let file = files.pop()?;
    // SAFETY: the descriptor is an eventfd by the protocol, and belongs to nobody else.
    #[allow(unsafe_code)]
    Some(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}
