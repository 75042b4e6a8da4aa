//! The watchdog, whose memory of an end outlives the machine that it resets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use devices::platform::Platform;
use devices::watchdog::I6300Esb;

/// What the watchdogs of one machine after the other have in common.
#[derive(Clone, Debug, Default)]
pub struct OpenWatchdog {
    /// One of them came to its end, and no guest has cleared that.
    expired: Arc<AtomicBool>,
}

impl OpenWatchdog {
    /// A fresh watchdog, which tells `platform` of its end.
    ///
    /// # Errors
    ///
    /// The host gives no timer or no thread.
    pub fn device(&self, platform: Arc<dyn Platform>) -> io::Result<I6300Esb> {
        I6300Esb::new(platform, Arc::clone(&self.expired))
    }
}
