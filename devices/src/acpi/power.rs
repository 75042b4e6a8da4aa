//! The sleep and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::platform::{Platform, PlatformEvent};

/// Ports that [`Power`] takes: sleep control, sleep status, reset, one byte each.
pub const POWER_REGISTERS_LEN: u64 = 3;
/// `SLP_TYP` of soft-off, which the `\_S5` object of the tables has to name.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value that resets the machine when written to the reset register; the FADT has to name it.
pub const RESET_VALUE: u8 = 1;

const SLEEP_CONTROL: u64 = 0;
const SLEEP_STATUS: u64 = 1;
const RESET: u64 = 2;

/// `SLP_EN` of the sleep control register. It is write-only and reads 0.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Where `SLP_TYP` begins, and its three bits.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// The registers by which a guest turns the machine off and resets it.
///
/// All read 0: `SLP_EN` and `SLP_TYP` need not be kept, and `WAK_STS` is never set, since there is no state to wake
/// from. They hold no state.
pub struct Power {
    platform: Arc<dyn Platform>,
}

impl Power {
    /// Registers that raise [`PlatformEvent::PowerOff`] and [`PlatformEvent::Reset`] at `platform`.
    pub fn new(platform: Arc<dyn Platform>) -> Self {
        Self { platform }
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (SLEEP_CONTROL | SLEEP_STATUS | RESET, [byte]) = (offset, data) {
            *byte = 0;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[value] = data else {
            return;
        };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                self.platform.raise(PlatformEvent::PowerOff);
            }
            RESET if value == RESET_VALUE => self.platform.raise(PlatformEvent::Reset),
            _ => {}
        }
    }
}
