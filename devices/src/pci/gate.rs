//! Functions that the guest gave up, until their owner takes them off the bus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The slots of bus 0 whose functions do not answer configuration accesses, one bit each.
///
/// A guest that ejects a function looks at the bus for another one at any time after that, and must not find it again.
/// The function's BARs stay where they are until it is taken off the bus. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct SlotGate {
    closed: Arc<AtomicU32>,
}

impl SlotGate {
    /// Hides the functions in `slots`, one bit each.
    pub fn close(&self, slots: u32) {
        self.closed.fetch_or(slots, Ordering::AcqRel);
    }

    /// Shows the functions in `slots` again.
    pub fn open(&self, slots: u32) {
        self.closed.fetch_and(!slots, Ordering::AcqRel);
    }

    pub(crate) fn is_open(&self, slot: u8) -> bool {
        let bit = 1u32.checked_shl(slot.into()).unwrap_or(0);
        self.closed.load(Ordering::Acquire) & bit == 0
    }
}
