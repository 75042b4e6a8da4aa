//! A driver for tests: rings in guest memory, written by hand.
//!
//! It plays the guest against a real device. What a well-behaved driver does is one call ([`Ring::push`], [`Ring::kick`],
//! [`Ring::wait_used`]); what a hostile one does is writing any field of the ring.
//!
//! ```
//! use std::sync::Arc;
//! use devices::virtio::driver::{self, CountingInterrupt, Ring, readable, writable};
//!
//! let memory = driver::memory(&[(0, 1 << 20)]);
//! let mut ring = Ring::new(&memory, 0x1000, 16);
//! let interrupt = Arc::new(CountingInterrupt::default());
//! let activation = driver::activation(&memory, &[&ring], 0, &interrupt);
//! // device.start(activation)
//! let head = ring.push(&[readable(0x8000, 16), writable(0x9000, 512)]);
//! ring.kick();
//! # drop((activation, head));
//! ```

mod interrupt;
mod ring;

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryAtomic};

use crate::memory::{GuestRam, Ram};
use crate::virtio::{Activation, Interrupt};

pub use interrupt::CountingInterrupt;
pub use ring::{Buffer, Descriptor, Ring, Used, readable, writable};

/// Guest memory of `regions`, each an address and a length in bytes.
///
/// # Panics
///
/// The regions overlap or cannot be mapped.
pub fn memory(regions: &[(u64, usize)]) -> GuestRam {
    let ranges: Vec<_> = regions
        .iter()
        .map(|(base, len)| (GuestAddress(*base), *len))
        .collect();
    GuestMemoryAtomic::new(Ram::from_ranges(&ranges).expect("regions can be mapped"))
}

/// What a transport hands to a device for `rings`, which become its queues 0, 1, ... Each notification eventfd is readable
/// once, as after a start by a transport.
pub fn activation(
    memory: &GuestRam,
    rings: &[&Ring],
    features: u64,
    interrupt: &Arc<CountingInterrupt>,
) -> Activation {
    let queues = rings
        .iter()
        .enumerate()
        .map(|(index, ring)| {
            ring.kick();
            ring.active(index as u16, features)
        })
        .collect();
    Activation {
        memory: memory.clone(),
        queues,
        features,
        interrupt: Arc::clone(interrupt) as Arc<dyn Interrupt>,
    }
}
