//! A split virtqueue from the driver's side (virtio 1.2, 2.7).

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::GuestRam;
use crate::virtio::ActiveQueue;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: false,
    }
}

/// A buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: true,
    }
}

/// An entry of a descriptor table, raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// `VRING_DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// Size of an entry in bytes.
    pub const SIZE: u64 = 16;

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// One virtqueue in guest memory: descriptor table, available ring and used ring one after the other.
///
/// # Panics
///
/// Methods panic where a test is wrong: memory that is not there, or more descriptors in flight than the ring has.
#[derive(Debug)]
pub struct Ring {
    memory: GuestRam,
    size: u16,
    table: u64,
    available: u64,
    used: u64,
    notify: EventFd,
    available_index: u16,
    used_index: u16,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
}

impl Ring {
    /// An empty ring of `size` descriptors at `base`, which is 16-byte aligned; takes [`Ring::bytes`] of memory.
    pub fn new(memory: &GuestRam, base: u64, size: u16) -> Self {
        let available = base + Descriptor::SIZE * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let ring = Self {
            memory: memory.clone(),
            size,
            table: base,
            available,
            used,
            notify: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd can be had"),
            available_index: 0,
            used_index: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
        };
        ring.write(base, &vec![0; Self::bytes(size) as usize]);
        ring
    }

    /// Bytes of guest memory that a ring of `size` takes.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (Descriptor::SIZE * size + 6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Address of the descriptor table.
    pub fn table_address(&self) -> u64 {
        self.table
    }

    /// Address of the available ring.
    pub fn available_address(&self) -> u64 {
        self.available
    }

    /// Address of the used ring.
    pub fn used_address(&self) -> u64 {
        self.used
    }

    /// The queue as a device gets it, with `VIRTIO_RING_F_EVENT_IDX` of `features` applied. [`Ring::kick`] notifies it.
    pub fn active(&self, index: u16, features: u64) -> ActiveQueue {
        let mut queue = Queue::new(self.size).expect("the size is a power of two");
        queue.set_size(self.size);
        queue.set_desc_table_address(Some(self.table as u32), Some((self.table >> 32) as u32));
        queue.set_avail_ring_address(
            Some(self.available as u32),
            Some((self.available >> 32) as u32),
        );
        queue.set_used_ring_address(Some(self.used as u32), Some((self.used >> 32) as u32));
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        ActiveQueue {
            index,
            queue,
            notify: self
                .notify
                .try_clone()
                .expect("an eventfd can be duplicated"),
        }
    }

    /// Makes a chain of `buffers` available and returns its head.
    pub fn push(&mut self, buffers: &[Buffer]) -> u16 {
        let indexes: Vec<u16> = buffers
            .iter()
            .map(|_| self.free.pop().expect("the ring has free descriptors"))
            .collect();
        let head = *indexes.first().expect("a chain has a buffer");
        for (at, buffer) in buffers.iter().enumerate() {
            let next = indexes.get(at + 1).copied();
            self.set_descriptor(indexes[at], descriptor(buffer, next));
        }
        self.chains[usize::from(head)] = indexes;
        self.offer(head);
        head
    }

    /// Makes a chain of `buffers` available by an indirect table written at `table`, and returns its head.
    pub fn push_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (at, buffer) in buffers.iter().enumerate() {
            let next = (at + 1 < buffers.len()).then_some(at as u16 + 1);
            self.write_descriptor(table, at as u16, descriptor(buffer, next));
        }
        let head = self.free.pop().expect("the ring has a free descriptor");
        let descriptor = Descriptor {
            address: table,
            len: Descriptor::SIZE as u32 * buffers.len() as u32,
            flags: VRING_DESC_F_INDIRECT as u16,
            next: 0,
        };
        self.set_descriptor(head, descriptor);
        self.chains[usize::from(head)] = vec![head];
        self.offer(head);
        head
    }

    /// Puts any `head` into the available ring and moves its index on.
    pub fn offer(&mut self, head: u16) {
        self.set_available_entry(self.available_index % self.size, head);
        self.available_index = self.available_index.wrapping_add(1);
        self.set_available_index(self.available_index);
    }

    /// Notifies the device.
    pub fn kick(&self) {
        self.notify
            .write(1)
            .expect("the eventfd's counter has room");
    }

    /// Whether the device asked to be notified of what was made available since index `before` (virtio 1.2, 2.7.10).
    pub fn wants_kick(&self, before: u16, event_idx: bool) -> bool {
        fence(Ordering::SeqCst);
        if event_idx {
            let event = self.available_event();
            let new = self.available_index;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(before)
        } else {
            self.used_flags() & VRING_USED_F_NO_NOTIFY as u16 == 0
        }
    }

    /// Waits until the device asks to be notified, without `VIRTIO_RING_F_EVENT_IDX`, and tells whether it did within
    /// `timeout`.
    pub fn wait_wants_kick(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while !self.wants_kick(self.available_index, false) {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// The next element of the used ring, whose descriptors are then free again.
    pub fn pop_used(&mut self) -> Option<Used> {
        if self.used_index == self.device_used_index() {
            return None;
        }
        let element = self.used_element(self.used_index % self.size);
        self.used_index = self.used_index.wrapping_add(1);
        if let Some(chain) = self.chains.get_mut(usize::from(element.head)) {
            self.free.append(chain);
        }
        Some(element)
    }

    /// Waits for the next element of the used ring.
    pub fn wait_used(&mut self, timeout: Duration) -> Option<Used> {
        let end = Instant::now() + timeout;
        loop {
            let used = self.pop_used();
            if used.is_some() || Instant::now() >= end {
                return used;
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Asks for an interrupt when the used index passes `index` (with `VIRTIO_RING_F_EVENT_IDX`).
    pub fn set_used_event(&self, index: u16) {
        self.store(self.available + 4 + 2 * u64::from(self.size), index);
    }

    /// Writes entry `index` of the descriptor table.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.write_descriptor(self.table, index, descriptor);
    }

    /// Writes entry `index` of the descriptor table at `table`, such as an indirect one.
    pub fn write_descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        self.write(
            table + Descriptor::SIZE * u64::from(index),
            &descriptor.bytes(),
        );
    }

    /// Writes `flags` of the available ring.
    pub fn set_available_flags(&self, flags: u16) {
        self.store(self.available, flags);
    }

    /// Writes `idx` of the available ring; what the driver offers next goes on from the old one.
    pub fn set_available_index(&self, index: u16) {
        self.store(self.available + 2, index);
    }

    /// Writes slot `slot` of the available ring.
    pub fn set_available_entry(&self, slot: u16, head: u16) {
        self.write(
            self.available + 4 + 2 * u64::from(slot),
            &head.to_le_bytes(),
        );
    }

    /// Number of chains that were made available, as a wrapping index.
    pub fn available_index(&self) -> u16 {
        self.available_index
    }

    /// Reads `idx` of the used ring.
    pub fn device_used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// Reads `flags` of the used ring.
    pub fn used_flags(&self) -> u16 {
        self.load(self.used)
    }

    /// Reads `avail_event`, behind the used ring.
    pub fn available_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Reads slot `slot` of the used ring.
    pub fn used_element(&self, slot: u16) -> Used {
        let mut bytes = [0; 8];
        self.memory
            .memory()
            .read_slice(
                &mut bytes,
                GuestAddress(self.used + 4 + 8 * u64::from(slot)),
            )
            .expect("the used ring is in memory");
        let [a, b, c, d, len @ ..] = bytes;
        let head = u32::from_le_bytes([a, b, c, d]);
        Used {
            head: head
                .try_into()
                .expect("the device returns an index of the table"),
            len: u32::from_le_bytes(len),
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(address))
            .expect("the ring is in memory");
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .memory()
            .store(value.to_le(), GuestAddress(address), Ordering::Release)
            .expect("the ring is in memory");
    }

    fn load(&self, address: u64) -> u16 {
        let value: u16 = self
            .memory
            .memory()
            .load(GuestAddress(address), Ordering::Acquire)
            .expect("the ring is in memory");
        u16::from_le(value)
    }
}

fn descriptor(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let write = if buffer.writable {
        VRING_DESC_F_WRITE
    } else {
        0
    };
    let more = if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
    Descriptor {
        address: buffer.address,
        len: buffer.len,
        flags: (write | more) as u16,
        next: next.unwrap_or(0),
    }
}
