//! The pvpanic port, by which a guest kernel tells that it panicked.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::platform::{Platform, PlatformEvent};

/// The guest panicked, and goes no further.
const PANICKED: u8 = 1 << 0;
/// The guest panicked, and boots its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The pvpanic device of QEMU's specification: one port, which reads as the set of events that can be told and takes
/// the events that happen.
///
/// It holds no state.
pub struct PvPanic {
    platform: Arc<dyn Platform>,
}

impl PvPanic {
    /// A port that raises [`PlatformEvent::Panicked`] and [`PlatformEvent::CrashLoaded`] at `platform`.
    pub fn new(platform: Arc<dyn Platform>) -> Self {
        Self { platform }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, [byte]) = (offset, data) {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (0, &[events]) = (offset, data) else {
            return;
        };
        // A guest that names both has panicked: the graver event is told, and only that.
        if events & PANICKED != 0 {
            self.platform.raise(PlatformEvent::Panicked);
        } else if events & CRASH_LOADED != 0 {
            self.platform.raise(PlatformEvent::CrashLoaded);
        }
    }
}
