//! Queue registers: what the driver wrote, and the queue that is made of it.

use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::memory::Ram;

/// The three parts of a split queue in guest memory (virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Descriptor table.
    Descriptors,
    /// Available ring (driver area).
    Available,
    /// Used ring (device area).
    Used,
}

impl Ring {
    const ALL: [Self; 3] = [Self::Descriptors, Self::Available, Self::Used];

    /// Required alignment, length in bytes for a queue of `size`, and what the device does there.
    fn layout(self, size: u16) -> (u64, usize, Permissions) {
        let size = usize::from(size);
        match self {
            Self::Descriptors => (16, 16 * size, Permissions::Read),
            Self::Available => (2, 6 + 2 * size, Permissions::Read),
            Self::Used => (4, 6 + 8 * size, Permissions::Write),
        }
    }
}

/// Why a queue cannot be made of what the driver wrote.
#[derive(Debug, thiserror::Error)]
pub enum QueueFault {
    /// The size is 0, no power of two, or more than offered.
    #[error("size is {size}, expected a power of two up to {max}")]
    Size {
        /// As written.
        size: u16,
        /// As offered.
        max: u16,
    },
    /// A part is not aligned.
    #[error("{ring:?} ring at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which part.
        ring: Ring,
        /// As written.
        address: u64,
        /// As required.
        alignment: u64,
    },
    /// A part is not wholly in guest memory, or was never set.
    #[error("{ring:?} ring at {address:#x} of {len} bytes is not in guest memory")]
    Address {
        /// Which part.
        ring: Ring,
        /// As written.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
    /// The eventfd for notifications cannot be duplicated.
    #[error("cannot duplicate the notification eventfd")]
    Notifier(#[from] io::Error),
}

/// The registers of one queue, as raw as the driver wrote them. They are checked when the queue is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRegisters {
    max_size: u16,
    size: u16,
    enabled: bool,
    addresses: [u64; 3],
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            addresses: [0; 3],
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Size offered by the device.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver enabled the queue.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Guest physical address of a part.
    pub fn address(&self, ring: Ring) -> u64 {
        self.addresses[ring as usize]
    }

    /// Sets the size; does nothing to an enabled queue.
    pub fn set_size(&mut self, size: u16) {
        if !self.enabled {
            self.size = size;
        }
    }

    /// Sets the address of a part; does nothing to an enabled queue.
    pub fn set_address(&mut self, ring: Ring, address: u64) {
        if !self.enabled {
            self.addresses[ring as usize] = address;
        }
    }

    /// Enables the queue.
    pub fn enable(&mut self) {
        self.enabled = true;
    }

    pub(super) fn disable(&mut self) {
        self.enabled = false;
    }

    /// Checks the registers against `memory` and makes a new queue of them.
    pub(super) fn build(&self, memory: &Ram, event_idx: bool) -> Result<Queue, QueueFault> {
        let Self {
            max_size,
            size,
            enabled: _,
            addresses,
        } = *self;
        if !size.is_power_of_two() || size > max_size {
            return Err(QueueFault::Size {
                size,
                max: max_size,
            });
        }
        for ring in Ring::ALL {
            let address = addresses[ring as usize];
            let (alignment, len, access) = ring.layout(size);
            if !address.is_multiple_of(alignment) {
                return Err(QueueFault::Alignment {
                    ring,
                    address,
                    alignment,
                });
            }
            // Address 0 is what a driver never set; the queue's implementation takes it as such too.
            if address == 0 || !memory.check_range(GuestAddress(address), len, access) {
                return Err(QueueFault::Address { ring, address, len });
            }
        }
        // A device offers sizes that are powers of two.
        let invalid = |_| QueueFault::Size {
            size,
            max: max_size,
        };
        let mut queue = Queue::new(max_size).map_err(invalid)?;
        queue.set_size(size);
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let [descriptors, available, used] = addresses.map(halves);
        queue.set_desc_table_address(descriptors.0, descriptors.1);
        queue.set_avail_ring_address(available.0, available.1);
        queue.set_used_ring_address(used.0, used.1);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}
