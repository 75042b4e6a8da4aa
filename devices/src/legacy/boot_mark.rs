//! Places where a guest writes to say how far its boot came. Each write is logged with the time since the start.

use std::time::Instant;

use tracing::info;

use crate::bus::BusDevice;

/// Log lines of one device at most; one more tells that further marks are not logged.
pub const MAX_MARKS: u32 = 64;

/// The byte that is a boot mark when written to the first byte of the boot-mark page.
pub const BOOT_MARK_VALUE: u8 = 123;

/// Counts marks against [`MAX_MARKS`]: a guest can write in a loop.
struct Marks {
    start: Instant,
    source: &'static str,
    left: u32,
}

impl Marks {
    fn new(start: Instant, source: &'static str) -> Self {
        Self {
            start,
            source,
            left: MAX_MARKS,
        }
    }

    fn log(&mut self, value: u8) {
        let Some(left) = self.left.checked_sub(1) else {
            return;
        };
        self.left = left;
        let micros = self.start.elapsed().as_micros() as u64;
        info!(target: "boot_mark", source = self.source, value, micros, "boot mark");
        if left == 0 {
            info!(target: "boot_mark", source = self.source, "further boot marks are not logged");
        }
    }
}

/// The diagnostic port 0x80 of a PC: takes any byte as a boot mark. Some kernels write to it only to pass time.
///
/// It holds no state of the guest.
pub struct DebugPort {
    marks: Marks,
}

impl DebugPort {
    /// A port that logs microseconds since `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            marks: Marks::new(start, "port 0x80"),
        }
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, &[value]) = (offset, data) {
            self.marks.log(value);
        }
    }
}

/// The boot-mark page: the byte [`BOOT_MARK_VALUE`] at its start is a boot mark, and nothing else is.
///
/// It holds no state of the guest.
pub struct BootMark {
    marks: Marks,
}

impl BootMark {
    /// A page that logs microseconds since `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            marks: Marks::new(start, "boot-mark page"),
        }
    }
}

impl BusDevice for BootMark {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, &[BOOT_MARK_VALUE]) = (offset, data) {
            self.marks.log(BOOT_MARK_VALUE);
        }
    }
}
