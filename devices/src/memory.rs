//! The guest's memory as the devices see it.

mod discard;

use vm_memory::{GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};

pub use self::discard::{discard, populate};

/// One map of guest RAM: regions of host memory at guest physical addresses.
pub type Ram = GuestMemoryMmap<()>;

/// The current map of guest RAM. Memory hotplug replaces the map; whoever holds a [`Ram`] loaded from here keeps its
/// regions alive until it lets go.
pub type GuestRam = GuestMemoryAtomic<Ram>;

/// The map of guest RAM as it was when it was loaded, for the length of one batch of work.
pub type RamGuard = GuestMemoryLoadGuard<Ram>;

/// Who has to know of each change of guest RAM before the guest uses what is new: a process that has the memory mapped,
/// say. Called on the thread of the memory's owner.
pub trait MemoryFollower: Send + Sync {
    /// `memory` is the map from now on.
    fn memory_changed(&self, memory: &Ram);
}
