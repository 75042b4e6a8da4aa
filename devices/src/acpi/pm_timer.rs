//! The power management timer (ACPI 6.5, section 4.8.3.3), which a hardware-reduced machine need not have, and which
//! firmware for Cloud Hypervisor measures time by. No table names it.

use std::time::{Duration, Instant};

use crate::bus::BusDevice;

/// Ports that [`PmTimer`] takes: one register.
pub const PM_TIMER_LEN: u64 = 4;
/// Counts per second.
const FREQUENCY: u128 = 3_579_545;

/// A counter of 32 bits that never stops. It holds no state but when it began.
#[derive(Debug)]
pub struct PmTimer {
    began: Instant,
}

impl PmTimer {
    /// A timer that was 0 at `began`.
    pub fn new(began: Instant) -> Self {
        Self { began }
    }
}

/// The counter after `elapsed`.
fn count(elapsed: Duration) -> u32 {
    (elapsed.as_nanos() * FREQUENCY / 1_000_000_000) as u32
}

impl BusDevice for PmTimer {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = count(self.began.elapsed()).to_le_bytes();
        let bytes = bytes.iter().skip(offset as usize);
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = *value;
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_counts_at_its_frequency_and_wraps() {
        assert_eq!(count(Duration::ZERO), 0);
        assert_eq!(count(Duration::from_secs(1)), 3_579_545);
        assert_eq!(count(Duration::from_millis(1)), 3579);
        let wrap = Duration::from_secs(1200);
        assert_eq!(u64::from(count(wrap)), 3_579_545 * 1200 % (1 << 32));
    }

    #[test]
    fn timer_is_read_at_any_width_and_not_written() {
        let began = Instant::now() - Duration::from_secs(100);
        let mut timer = PmTimer::new(began);
        timer.write(0, &[0; 4]);
        let mut whole = [0; 4];
        timer.read(0, &mut whole);
        assert!(u32::from_le_bytes(whole) >= 357_954_500);
        let mut top = [0xff; 1];
        timer.read(3, &mut top);
        assert_eq!(top[0], whole[3]);
        let mut beyond = [0xff; 2];
        timer.read(3, &mut beyond);
        assert_eq!(beyond[1], 0xff);
    }
}
