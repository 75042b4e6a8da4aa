//! The memory map that both boot protocols hand to the kernel.

use super::layout::{
    ABOVE_4G_START, AddressRange, CONVENTIONAL_END, HIGH_RAM_START, KVM_RESERVED, LOW_RAM_END,
    PCI_ECAM_RESERVED,
};

/// What an entry of the memory map is; the numbers are those of the e820 and the PVH map alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM for the operating system.
    Ram = 1,
    /// Not to be used as memory.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// Addresses of the entry.
    pub range: AddressRange,
    /// What they are.
    pub kind: MemoryKind,
}

/// The memory map of a guest with `ram_size` bytes of RAM, sorted by address, without overlaps.
pub fn memory_map(ram_size: u64) -> Vec<MemoryMapEntry> {
    use MemoryKind::{Ram, Reserved};
    let low_end = ram_size.min(LOW_RAM_END);
    [
        (0, low_end.min(CONVENTIONAL_END), Ram),
        (CONVENTIONAL_END, HIGH_RAM_START, Reserved),
        (HIGH_RAM_START, low_end, Ram),
        (PCI_ECAM_RESERVED.start, PCI_ECAM_RESERVED.end(), Reserved),
        (KVM_RESERVED.start, KVM_RESERVED.end(), Reserved),
        (
            ABOVE_4G_START,
            ABOVE_4G_START.saturating_add(ram_size - low_end),
            Ram,
        ),
    ]
    .into_iter()
    .filter(|(start, end, _)| start < end)
    .map(|(start, end, kind)| MemoryMapEntry {
        range: AddressRange::new(start, end - start),
        kind,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x86_64::layout::{ACPI_AREA, ram_end, ram_regions};

    fn ram(map: &[MemoryMapEntry]) -> impl Iterator<Item = AddressRange> {
        map.iter()
            .filter(|entry| entry.kind == MemoryKind::Ram)
            .map(|entry| entry.range)
    }

    #[test]
    fn map_of_a_5_gib_guest_has_ram_on_both_sides_of_the_hole() {
        let map = memory_map(5 << 30);
        let ram: Vec<_> = ram(&map).map(|range| (range.start, range.end())).collect();
        assert_eq!(
            ram,
            [
                (0, 0xa_0000),
                (0x10_0000, 0xc000_0000),
                (0x1_0000_0000, 0x1_8000_0000)
            ]
        );
    }

    proptest! {
        #[test]
        fn map_is_sorted_without_overlap_and_has_all_ram_but_the_reserved(size in 0u64..1 << 46) {
            let map = memory_map(size);
            prop_assert!(map.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start));
            let total: u64 = ram(&map).map(|range| range.len).sum();
            let hidden = size.clamp(CONVENTIONAL_END, HIGH_RAM_START) - CONVENTIONAL_END;
            prop_assert_eq!(total, size - hidden);
            prop_assert!(ram(&map).all(|range| !range.overlaps(&ACPI_AREA)));
        }

        #[test]
        fn ram_of_the_map_lies_in_the_ram_regions(size in 0u64..1 << 46) {
            let regions = ram_regions(size);
            prop_assert_eq!(regions.iter().map(|(_, len)| *len as u64).sum::<u64>(), size);
            let regions: Vec<_> = regions.iter().map(|(start, len)| AddressRange::new(start.0, *len as u64)).collect();
            prop_assert_eq!(regions.last().map_or(0, AddressRange::end), ram_end(size));
            for range in ram(&memory_map(size)) {
                prop_assert!(regions.iter().any(|region| region.contains(range.start) && region.contains(range.last())));
            }
        }
    }
}
