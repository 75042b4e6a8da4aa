//! The keyboard controller, of which a machine without a keyboard keeps the reset line.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::platform::{Platform, PlatformEvent};

/// Offset of the data register, port 0x60.
const DATA: u64 = 0;
/// Offset of the status register (read) and the command register (write), port 0x64.
const COMMAND: u64 = 4;
/// Commands 0xf0 to 0xff pulse those of the four output lines low whose bit is 0; bit 0 is the reset line.
const PULSE_OUTPUT: u8 = 0xf0;
const RESET_LINE: u8 = 1 << 0;

/// An 8042 whose output lines are connected and whose keyboard is not.
///
/// Goes on the port bus at 0x60 for 5 ports; only the first and the last of them are answered. The status reads 0: no
/// byte to fetch, and ready for a command, so that a driver that waits for either does not wait long.
///
/// It holds no state.
pub struct I8042 {
    platform: Arc<dyn Platform>,
}

impl I8042 {
    /// A controller that raises [`PlatformEvent::Reset`] at `platform`.
    pub fn new(platform: Arc<dyn Platform>) -> Self {
        Self { platform }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (DATA | COMMAND, [byte]) = (offset, data) {
            *byte = 0;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (COMMAND, &[command]) = (offset, data)
            && command >= PULSE_OUTPUT
            && command & RESET_LINE == 0
        {
            self.platform.raise(PlatformEvent::Reset);
        }
    }
}
