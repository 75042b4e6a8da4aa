//! A chain that is found by its head.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::RamGuard;

/// Descriptors of one chain, by the rules of virtio 1.2, 2.7.5: for a chain that was taken from its ring before, and shall be
/// looked at once more. It ends early, with a descriptor that has a next, where the rules are broken.
#[derive(Debug)]
pub struct Walk<'a> {
    memory: &'a RamGuard,
    table: GuestAddress,
    /// Descriptors in the table.
    size: u16,
    next: Option<u16>,
    /// How many more there can be: a chain that is longer than its table is a circle.
    left: u16,
    bytes: u32,
    indirect: bool,
}

impl<'a> Walk<'a> {
    /// The chain that begins with descriptor `head` of the `size` that are at `table`.
    pub fn new(memory: &'a RamGuard, table: GuestAddress, size: u16, head: u16) -> Self {
        Self {
            memory,
            table,
            size,
            next: Some(head),
            left: size,
            bytes: 0,
            indirect: false,
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        loop {
            let index = self.next.take().filter(|index| *index < self.size)?;
            self.left = self.left.checked_sub(1)?;
            let at = u64::from(index) * size_of::<Descriptor>() as u64;
            let address = GuestAddress(self.table.0.checked_add(at)?);
            let descriptor: Descriptor = self.memory.read_obj(address).ok()?;
            if descriptor.refers_to_indirect_table() {
                let len = descriptor.len();
                let entry = size_of::<Descriptor>() as u32;
                if self.indirect || !len.is_multiple_of(entry) {
                    return None;
                }
                self.size = u16::try_from(len / entry).ok()?;
                self.table = descriptor.addr();
                self.left = self.size;
                self.next = Some(0);
                self.indirect = true;
                continue;
            }
            self.bytes = self.bytes.checked_add(descriptor.len())?;
            self.next = descriptor.has_next().then(|| descriptor.next());
            return Some(descriptor);
        }
    }
}
