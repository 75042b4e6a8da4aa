//! An address space: ranges, and the device that answers each.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A device that answers reads and writes of a range.
///
/// Called on a vCPU's exit with the guest's own lengths: `data` holds 1 to 8 bytes, and `offset + data.len()` never
/// exceeds the range. A read that means nothing leaves `data` as it is: all ones, as an empty bus reads.
pub trait BusDevice: Send {
    /// Answers a read at `offset` from the start of the range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes a write at `offset` from the start of the range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as buses hold it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a range cannot be put on the bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps the address space.
    #[error("range at {base:#x} of {len:#x} bytes is empty or wraps")]
    Range {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device answers part of the range.
    #[error("range at {base:#x} of {len:#x} bytes overlaps the range at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the range that is there.
        other: u64,
    },
}

struct Range {
    base: u64,
    len: u64,
    device: SharedDevice,
}

/// An address space of ranges that do not overlap.
///
/// The list is read-locked only to look a range up, never while its device answers: a device may change the bus.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<Vec<Range>>,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base` for `len` bytes.
    ///
    /// # Errors
    ///
    /// [`BusError`]; the bus is unchanged.
    pub fn insert(&self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let end = match base.checked_add(len) {
            Some(end) if len > 0 => end,
            _ => return Err(BusError::Range { base, len }),
        };
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|range| range.base < base);
        let before = at.checked_sub(1).and_then(|index| ranges.get(index));
        let overlapping = before
            .filter(|range| range.base + range.len > base)
            .or_else(|| ranges.get(at).filter(|range| range.base < end));
        if let Some(other) = overlapping {
            return Err(BusError::Overlap {
                base,
                len,
                other: other.base,
            });
        }
        ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    /// Takes away the range that starts at `base`, and tells whether there was one.
    pub fn remove(&self, base: u64) -> bool {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.binary_search_by_key(&base, |range| range.base);
        // Dropped after the lock: a device may reach for the bus as it goes.
        let gone = at.ok().map(|at| ranges.remove(at));
        drop(ranges);
        gone.is_some()
    }

    /// Takes all ranges away. Devices that hold their own bus are let go only by this.
    pub fn clear(&self) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        // As in `remove`.
        let gone = std::mem::take(&mut *ranges);
        drop(ranges);
        drop(gone);
    }

    /// Reads `data.len()` bytes at `address`; `data` is all ones where nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset, data);
        }
    }

    /// Writes `data` at `address`; a write that nobody answers is lost, as on a real bus.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(SharedDevice, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let at = ranges
            .partition_point(|range| range.base <= address)
            .checked_sub(1)?;
        let range = &ranges[at];
        let offset = address - range.base;
        let end = offset.checked_add(len as u64)?;
        (end <= range.len).then(|| (Arc::clone(&range.device), offset))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(offset as u8));
        }

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn echo(value: u8) -> SharedDevice {
        Arc::new(Mutex::new(Echo(value)))
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn device_is_given_offset_in_its_range() {
        let bus = Bus::new();
        bus.insert(0x100, 0x10, echo(1)).unwrap();
        bus.insert(0x110, 0x10, echo(64)).unwrap();
        assert_eq!(read(&bus, 0x10f), 16);
        assert_eq!(read(&bus, 0x110), 64);
        bus.write(0x100, &[7]);
        assert_eq!(read(&bus, 0x100), 7);
    }

    #[test]
    fn unclaimed_address_reads_all_ones() {
        let bus = Bus::new();
        bus.insert(0x100, 0x10, echo(1)).unwrap();
        assert_eq!(read(&bus, 0xff), 0xff);
        assert_eq!(read(&bus, 0x110), 0xff);
    }

    #[test]
    fn access_across_the_end_of_a_range_is_unclaimed() {
        let bus = Bus::new();
        bus.insert(0x100, 0x10, echo(1)).unwrap();
        let mut data = [0; 4];
        bus.read(0x10d, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn removed_range_can_be_claimed_again() {
        let bus = Bus::new();
        bus.insert(0x100, 0x10, echo(1)).unwrap();
        assert!(!bus.remove(0x101));
        assert!(bus.remove(0x100));
        bus.insert(0x108, 0x10, echo(2)).unwrap();
        assert_eq!(read(&bus, 0x108), 2);
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::new();
        for (base, len) in [(0x100, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.insert(base, len, echo(1)),
                Err(BusError::Range { base, len })
            );
        }
    }

    /// A device that looks at its bus as it goes.
    struct Leaving(Arc<Bus>);

    impl BusDevice for Leaving {
        fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

        fn write(&mut self, _offset: u64, _data: &[u8]) {}
    }

    impl Drop for Leaving {
        fn drop(&mut self) {
            assert!(self.0.ranges.try_write().is_ok());
        }
    }

    #[test]
    fn device_that_is_taken_away_may_reach_for_the_bus_as_it_goes() {
        let bus = Arc::new(Bus::new());
        for base in [0, 0x10] {
            let device = Arc::new(Mutex::new(Leaving(Arc::clone(&bus))));
            bus.insert(base, 0x10, device).unwrap();
        }
        assert!(bus.remove(0));
        bus.clear();
    }

    proptest! {
        #[test]
        fn ranges_on_the_bus_never_overlap(ranges in prop::collection::vec((0_u64..256, 0_u64..64), 0..32)) {
            let bus = Bus::new();
            let mut kept: Vec<(u64, u64)> = Vec::new();
            for (base, len) in ranges {
                let free = len > 0 && kept.iter().all(|(b, l)| base + len <= *b || b + l <= base);
                prop_assert_eq!(bus.insert(base, len, echo(0)).is_ok(), free);
                if free {
                    kept.push((base, len));
                }
            }
        }
    }
}
