//! The guest's physical address map, its I/O ports and its interrupt lines.
//!
//! ```text
//! 0x0000_0000  low RAM: boot data, ACPI tables below 1 MiB, the kernel from 1 MiB on
//! 0xC000_0000  end of low RAM; boot-mark page
//! 0xC100_0000  32-bit BAR window
//! 0xE800_0000  PCI ECAM (1 MiB used, 256 MiB reserved)
//! 0xF800_0000  virtio-mmio slots
//! 0xF810_0000  ACPI event register, then a page each for hotplug of PCI functions, vCPUs and memory
//! 0xFEC0_0000  I/O APIC, 0xFEE0_0000 local APIC, 0xFFFB_C000 pages of KVM's own
//! 0x1_0000_0000  high RAM, then room for hot-plugged memory, then the 64-bit BAR window
//! ```

use vm_memory::GuestAddress;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A stretch of guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// First address, in bytes.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl AddressRange {
    /// A range from its first address and its length, both in bytes.
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, len }
    }

    /// First address after the range.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Last address of the range; the range must not be empty.
    pub const fn last(&self) -> u64 {
        self.start + self.len - 1
    }

    /// Whether `addr` lies in the range.
    pub const fn contains(&self, addr: u64) -> bool {
        addr >= self.start && addr - self.start < self.len
    }

    /// Whether the two ranges share an address.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Global descriptor table used at kernel entry.
pub const GDT_START: u64 = 0x500;
/// Interrupt descriptor table at kernel entry (empty).
pub const IDT_START: u64 = 0x540;
/// `hvm_start_info` of the PVH protocol.
pub const PVH_START_INFO_START: u64 = 0x6000;
/// Module list of the PVH protocol (the initramfs).
pub const PVH_MODLIST_START: u64 = 0x6040;
/// `boot_params` of the 64-bit Linux boot protocol, one page.
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Stack pointer at a 64-bit kernel entry; the stack grows down into the page below.
pub const BOOT_STACK_POINTER: u64 = 0x8ff0;
/// Top-level page table at a 64-bit kernel entry.
pub const PML4_START: u64 = 0x9000;
/// Page directory pointer table.
pub const PDPT_START: u64 = 0xA000;
/// First of the four page directories that map the low 4 GiB with 2 MiB pages.
pub const PD_START: u64 = 0xB000;
/// Kernel command line.
pub const CMDLINE_START: u64 = 0x1_0000;
/// Room for the command line with its terminating NUL, in bytes.
pub const CMDLINE_MAX: u64 = 64 * KIB;
/// Memory map of the PVH protocol.
pub const PVH_MEMMAP_START: u64 = 0x2_0000;
/// Room for the memory map of the PVH protocol, in bytes.
pub const PVH_MEMMAP_MAX: u64 = 64 * KIB;
/// End of conventional memory; up to [`HIGH_RAM_START`] the guest may not allocate.
pub const CONVENTIONAL_END: u64 = 0xA_0000;
/// Reserved area below 1 MiB that may hold ACPI tables when the BIOS area is too small.
pub const ACPI_OVERFLOW_AREA: AddressRange = AddressRange::new(0xA_0000, 0x3_F000);
/// Page that holds the generation of the machine and nothing else, as its specification wants it (Virtual Machine Generation
/// ID, Microsoft, 2018).
pub const GENERATION_PAGE: AddressRange = AddressRange::new(0xD_F000, 4 * KIB);
/// The generation: 16 bytes, on an 8-byte boundary. Not at the beginning of the page, where Linux looks for option ROMs.
pub const GENERATION: AddressRange = AddressRange::new(GENERATION_PAGE.start + 0x28, 16);
/// BIOS area, where an operating system looks for the RSDP and where the ACPI tables lie.
pub const ACPI_AREA: AddressRange = AddressRange::new(0xE_0000, 0x1_FFF0);
/// Where a processor begins after a reset, in the last 16 bytes of the BIOS area.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xF_FFF0);
/// The RSDP (ACPI 6.5, section 5.2.5.1: within the BIOS area on a 16-byte boundary).
pub const RSDP_START: GuestAddress = GuestAddress(ACPI_AREA.start);
/// First address a kernel may be loaded at.
pub const HIGH_RAM_START: u64 = MIB;

/// End of low RAM and start of the hole for devices.
pub const LOW_RAM_END: u64 = 3 * GIB;
/// Start of RAM above the hole.
pub const ABOVE_4G_START: u64 = 4 * GIB;
/// Page where a guest may write boot marks.
pub const BOOT_MARK: AddressRange = AddressRange::new(0xC000_0000, 4 * KIB);
/// Window for 32-bit PCI memory BARs.
pub const PCI_MMIO32: AddressRange = AddressRange::new(0xC100_0000, 0xE800_0000 - 0xC100_0000);
/// PCI configuration space (ECAM) that is answered: bus 0.
pub const PCI_ECAM: AddressRange = AddressRange::new(0xE800_0000, MIB);
/// Address range kept for ECAM, as the memory map and the DSDT reserve it.
pub const PCI_ECAM_RESERVED: AddressRange = AddressRange::new(0xE800_0000, 256 * MIB);
/// Slots for virtio-mmio devices, of [`VIRTIO_MMIO_SLOT_LEN`] bytes each.
pub const VIRTIO_MMIO: AddressRange = AddressRange::new(0xF800_0000, MIB);
/// Length in bytes of the registers of one virtio-mmio device.
pub const VIRTIO_MMIO_SLOT_LEN: u64 = 4 * KIB;
/// Page of the ACPI generic event device; its 32-bit event register is at offset 0 and clears when read.
pub const ACPI_EVENT: AddressRange = AddressRange::new(0xF810_0000, 4 * KIB);
/// Page of the registers for hotplug of PCI functions (see [`registers`](super::acpi::hotplug::registers)).
///
/// Hotplug registers are memory-mapped because those of memory and vCPUs may grow with their number, and I/O ports are
/// few; they are read only when something comes or goes.
pub const ACPI_PCI_HOTPLUG: AddressRange = AddressRange::new(0xF810_1000, 4 * KIB);
/// Page of the registers for hotplug of vCPUs.
pub const ACPI_CPU_HOTPLUG: AddressRange = AddressRange::new(0xF810_2000, 4 * KIB);
/// Page of the registers for hotplug of memory.
pub const ACPI_MEMORY_HOTPLUG: AddressRange = AddressRange::new(0xF810_3000, 4 * KIB);
/// I/O APIC registers.
pub const IOAPIC_START: u64 = 0xFEC0_0000;
/// Local APIC registers.
pub const LAPIC_START: u64 = 0xFEE0_0000;
/// Page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP_START: u64 = 0xFFFB_C000;
/// First of three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS_START: u64 = 0xFFFB_D000;
/// The pages that KVM keeps for itself (identity map and TSS).
pub const KVM_RESERVED: AddressRange = AddressRange::new(KVM_IDENTITY_MAP_START, 16 * KIB);

/// Interrupt of the first serial port.
pub const COM1_GSI: u32 = 4;
/// Interrupt of the ACPI generic event device.
pub const GED_GSI: u32 = 9;
/// Interrupts of virtio-mmio devices, by slot: all pins of the I/O APIC but those that a PC has other uses for. Edges
/// cannot be shared, so that there are no more devices than pins.
pub const VIRTIO_MMIO_GSIS: [u32; 17] = [
    5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];
/// Number of pins of the I/O APIC; MSI routes take GSI numbers from here on.
pub const MSI_GSI_BASE: u32 = 24;

/// First serial port, eight ports.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of ports of a 16550.
pub const COM_PORT_COUNT: u8 = 8;
/// Data port of the keyboard controller.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Status and command port of the keyboard controller.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Index port of the CMOS clock; the data port follows.
pub const CMOS_PORT: u16 = 0x70;
/// Number of ports of the CMOS clock.
pub const CMOS_PORT_COUNT: u8 = 2;
/// Register of the CMOS clock that holds the century.
pub const CMOS_CENTURY: u8 = 0x32;
/// Port for boot marks.
pub const DEBUG_PORT: u16 = 0x80;
/// Port of the pvpanic device.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register (ACPI 6.5, section 4.8.3.7), 8 bits.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, 8 bits.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register, 8 bits.
pub const RESET_PORT: u16 = 0x602;
/// Power management timer, 32 bits, where firmware for Cloud Hypervisor expects it; the tables do not name it.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Value that resets the machine when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of soft-off, as `\_S5` names it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Address port of PCI configuration mechanism 1; with the data port, eight ports.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Number of ports of PCI configuration mechanism 1.
pub const PCI_CONFIG_PORT_COUNT: u8 = 8;

/// Widest physical address that x86 has, in bits.
const PHYS_BITS_MAX: u8 = 52;

/// Bit of the ACPI event register that says that the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 0;
/// Bit of the ACPI event register that says that PCI functions came or shall go.
pub const EVENT_PCI_HOTPLUG: u8 = 1;
/// Bit of the ACPI event register that says that vCPUs came or shall go.
pub const EVENT_CPU_HOTPLUG: u8 = 2;
/// Bit of the ACPI event register that says that memory came or shall go.
pub const EVENT_MEMORY_HOTPLUG: u8 = 3;
/// Bit of the ACPI event register that says that the generation of the machine is another one.
pub const EVENT_GENERATION: u8 = 4;

/// Address of the registers in virtio-mmio slot `index` and the interrupt of that slot, if there is such a slot.
pub fn virtio_mmio_slot(index: usize) -> Option<(AddressRange, u32)> {
    let gsi = *VIRTIO_MMIO_GSIS.get(index)?;
    let start = VIRTIO_MMIO.start + index as u64 * VIRTIO_MMIO_SLOT_LEN;
    Some((AddressRange::new(start, VIRTIO_MMIO_SLOT_LEN), gsi))
}

/// An address map that cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// RAM leaves no room for the 64-bit BAR window.
    #[error(
        "guest memory ends at {ram_end:#x}, which leaves no room for PCI devices below the end of a \
         {phys_bits}-bit physical address space ({limit:#x}); use less memory"
    )]
    NoRoomAboveRam {
        /// First address after RAM and its hotplug area.
        ram_end: u64,
        /// Width of a guest physical address.
        phys_bits: u8,
        /// First address after the physical address space.
        limit: u64,
    },
}

/// The RAM of a guest with `size` bytes, as pairs of first address and length in bytes, around the hole below 4 GiB.
///
/// The pairs fit `GuestMemoryMmap::from_ranges`. An empty guest has no region.
pub fn ram_regions(size: u64) -> Vec<(GuestAddress, usize)> {
    let low = size.min(LOW_RAM_END);
    let high = size - low;
    [(0, low), (ABOVE_4G_START, high)]
        .into_iter()
        .filter(|(_, len)| *len > 0)
        .map(|(start, len)| (GuestAddress(start), len as usize))
        .collect()
}

/// First address after the RAM of a guest with `size` bytes, counting the hole below 4 GiB when RAM crosses it.
pub fn ram_end(size: u64) -> u64 {
    if size <= LOW_RAM_END {
        size
    } else {
        ABOVE_4G_START.saturating_add(size - LOW_RAM_END)
    }
}

/// The window for 64-bit PCI memory BARs: from the first GiB boundary after `ram_end` (first address after RAM and its
/// hotplug area) and 4 GiB to the end of a physical address space of `phys_bits` bits.
pub fn pci_mmio64(ram_end: u64, phys_bits: u8) -> Result<AddressRange, LayoutError> {
    let limit = 1u64 << phys_bits.min(PHYS_BITS_MAX);
    ram_end
        .max(ABOVE_4G_START)
        .checked_next_multiple_of(GIB)
        .filter(|start| *start < limit)
        .map(|start| AddressRange::new(start, limit - start))
        .ok_or(LayoutError::NoRoomAboveRam {
            ram_end,
            phys_bits,
            limit,
        })
}

/// Largest memory block of Linux on x86, to which an area for hotplug is aligned.
pub const MEMORY_BLOCK_MAX: u64 = 2 * GIB;
/// Smallest memory block of Linux on x86: one section of its memory model.
pub const MEMORY_BLOCK_MIN: u64 = 128 * MIB;
/// Where RAM must end at least for Linux to use larger blocks.
const LARGE_MEMORY_BLOCKS_FROM: u64 = 64 * GIB;

/// Size in bytes of the blocks in which a Linux guest with `ram_size` bytes of RAM adds and removes memory
/// (`probe_memory_block_size`): the smallest, and where RAM ends at 64 GiB or above, the largest that its end is a multiple
/// of. What is hot-plugged must begin and end on a block.
pub fn memory_block_size(ram_size: u64) -> u64 {
    let end = ram_end(ram_size);
    if end < LARGE_MEMORY_BLOCKS_FROM {
        return MEMORY_BLOCK_MIN;
    }
    let alignment = 1 << end.trailing_zeros();
    MEMORY_BLOCK_MAX.min(alignment).max(MEMORY_BLOCK_MIN)
}

/// The area for `hotplug_size` bytes of memory that may be added to a guest with `ram_size` bytes of RAM: from the first
/// multiple of [`MEMORY_BLOCK_MAX`] after RAM and 4 GiB. Its end is what [`pci_mmio64`] takes.
///
/// An area of no bytes lies at the end of RAM, as if there were none. One that would not end below 2^64 is cut off there,
/// where no address space has room for it.
pub fn hotplug_region(ram_size: u64, hotplug_size: u64) -> AddressRange {
    let end = ram_end(ram_size);
    if hotplug_size == 0 {
        return AddressRange::new(end, 0);
    }
    let start = end
        .max(ABOVE_4G_START)
        .checked_next_multiple_of(MEMORY_BLOCK_MAX)
        .unwrap_or(u64::MAX);
    AddressRange::new(start, hotplug_size.min(u64::MAX - start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn device_areas_lie_in_the_hole_without_overlap() {
        let areas = [
            BOOT_MARK,
            PCI_MMIO32,
            PCI_ECAM_RESERVED,
            VIRTIO_MMIO,
            ACPI_EVENT,
            ACPI_PCI_HOTPLUG,
            ACPI_CPU_HOTPLUG,
            ACPI_MEMORY_HOTPLUG,
            AddressRange::new(IOAPIC_START, 4 * KIB),
            AddressRange::new(LAPIC_START, 4 * KIB),
            KVM_RESERVED,
        ];
        assert!(areas.windows(2).all(|pair| pair[0].end() <= pair[1].start));
        assert!(
            areas
                .iter()
                .all(|area| area.start >= LOW_RAM_END && area.end() <= ABOVE_4G_START)
        );
        assert_eq!(
            (PCI_ECAM.start, PCI_ECAM_RESERVED.contains(PCI_ECAM.last())),
            (PCI_ECAM_RESERVED.start, true)
        );
        assert_eq!(KVM_TSS_START, KVM_IDENTITY_MAP_START + 4 * KIB);
    }

    #[test]
    fn virtio_mmio_slots_have_registers_and_a_pin_of_their_own() {
        let slots: Vec<_> = (0..).map_while(virtio_mmio_slot).collect();
        assert_eq!(slots.len(), VIRTIO_MMIO_GSIS.len());
        let taken = [COM1_GSI, GED_GSI];
        for (index, (range, gsi)) in slots.iter().enumerate() {
            assert!(VIRTIO_MMIO.contains(range.start) && VIRTIO_MMIO.contains(range.last()));
            assert!(*gsi < MSI_GSI_BASE && !taken.contains(gsi));
            let others = &slots[..index];
            assert!(
                others
                    .iter()
                    .all(|(other, pin)| pin != gsi && !other.overlaps(range))
            );
        }
    }

    #[test]
    fn ram_crosses_the_hole() {
        assert_eq!(ram_regions(0), []);
        assert_eq!(ram_regions(3 * GIB), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(
            ram_regions(5 * GIB),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 * GIB), 2 << 30)]
        );
        assert_eq!((ram_end(3 * GIB), ram_end(5 * GIB)), (3 * GIB, 6 * GIB));
    }

    #[test]
    fn bar_window_starts_after_ram_and_needs_address_space() {
        assert_eq!(
            pci_mmio64(MIB, 40),
            Ok(AddressRange::new(4 * GIB, (1 << 40) - 4 * GIB))
        );
        assert_eq!(
            pci_mmio64(6 * GIB + 1, 39).map(|window| window.start),
            Ok(7 * GIB)
        );
        for (ram_end, phys_bits) in [(64 * GIB, 36), (u64::MAX, 46), (0, 32)] {
            assert!(matches!(
                pci_mmio64(ram_end, phys_bits),
                Err(LayoutError::NoRoomAboveRam { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn bar_window_never_overlaps_ram_nor_leaves_the_address_space(end: u64, phys_bits: u8) {
            if let Ok(window) = pci_mmio64(end, phys_bits) {
                prop_assert!(window.start >= end.max(ABOVE_4G_START) && window.start % GIB == 0 && window.len > 0);
                prop_assert!(window.end() <= 1 << phys_bits.min(52));
            }
        }
    }

    #[test]
    fn hotplug_area_starts_on_the_largest_block_above_ram_and_4_gib() {
        for (ram, start) in [
            (128 * MIB, 4 * GIB),
            (3 * GIB, 4 * GIB),
            (3 * GIB + MIB, 6 * GIB),
            (5 * GIB, 6 * GIB),
            (5 * GIB + 4 * KIB, 8 * GIB),
            (64 * GIB, 66 * GIB),
        ] {
            let area = hotplug_region(ram, 640 * MIB);
            assert_eq!(area, AddressRange::new(start, 640 * MIB), "{ram:#x}");
        }
    }

    #[test]
    fn hotplug_area_of_no_bytes_takes_no_address() {
        for ram in [0, 512 * MIB, 3 * GIB, 5 * GIB + MIB, 1 << 45] {
            assert_eq!(hotplug_region(ram, 0).end(), ram_end(ram));
        }
    }

    #[test]
    fn bar_window_starts_after_the_hotplug_area() {
        let area = hotplug_region(5 * GIB, 1536 * MIB);
        assert_eq!(area.end(), 7 * GIB + 512 * MIB);
        let window = pci_mmio64(area.end(), 40).unwrap();
        assert_eq!(window.start, 8 * GIB);
        let area = hotplug_region(5 * GIB, 1 << 40);
        assert!(matches!(
            pci_mmio64(area.end(), 40),
            Err(LayoutError::NoRoomAboveRam { .. })
        ));
    }

    #[test]
    fn linux_uses_larger_blocks_from_64_gib_on_if_the_end_of_ram_allows() {
        for (ram, block) in [
            (0, 128 * MIB),
            (2 * GIB, 128 * MIB),
            // Ends below 64 GiB, and then at it.
            (62 * GIB, 128 * MIB),
            (63 * GIB, 2 * GIB),
            (64 * GIB, GIB),
            (65 * GIB, 2 * GIB),
            (65 * GIB + 512 * MIB, 512 * MIB),
            (65 * GIB + 128 * MIB, 128 * MIB),
            (65 * GIB + MIB, 128 * MIB),
        ] {
            assert_eq!(memory_block_size(ram), block, "{ram:#x}");
        }
    }

    proptest! {
        #[test]
        fn hotplug_area_is_aligned_above_ram_and_has_its_size(
            ram in prop_oneof![0..1_u64 << 46, any::<u64>()],
            size in prop_oneof![1..1_u64 << 46, 1..u64::MAX],
        ) {
            let area = hotplug_region(ram, size);
            prop_assert!(area.start >= ram_end(ram).max(ABOVE_4G_START));
            prop_assert!(area.end() >= area.start);
            if let Ok(window) = pci_mmio64(area.end(), 52) {
                prop_assert_eq!(area.len, size);
                prop_assert!(area.start.is_multiple_of(memory_block_size(ram)) && window.start >= area.end());
            }
        }
    }
}
