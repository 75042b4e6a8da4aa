//! Registers of the boot vCPU at kernel entry, and the descriptor and page tables that they name.
//!
//! The other vCPUs wait for INIT and SIPI in the in-kernel local APIC and need no registers.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestMemoryBackend;

use super::boot::{BootEntry, BootError, write};
use super::layout::{BOOT_STACK_POINTER, GDT_START, IDT_START, PD_START, PDPT_START, PML4_START};
use crate::kernel::BootProtocol;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors that the Linux boot protocol asks for.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
const GDT_ENTRIES: usize = 5;
/// Length of a task state segment less one.
const TSS_LIMIT: u32 = 0x67;

const TYPE_CODE: u8 = 0b1011;
const TYPE_DATA: u8 = 0b0011;
const TYPE_BUSY_TSS: u8 = 0b1011;

const PAGE_TABLE_ENTRIES: u64 = 512;
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Page directories, each of which maps 1 GiB.
const DIRECTORIES: u64 = 4;

/// General registers at the kernel's entry.
pub fn boot_regs(entry: &BootEntry) -> kvm_regs {
    let regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.entry.0,
        ..kvm_regs::default()
    };
    match entry.protocol {
        BootProtocol::Pvh => kvm_regs {
            rbx: entry.boot_info.0,
            ..regs
        },
        BootProtocol::Linux64 => kvm_regs {
            rsi: entry.boot_info.0,
            rsp: BOOT_STACK_POINTER,
            rbp: BOOT_STACK_POINTER,
            ..regs
        },
    }
}

/// Segment, control and descriptor table registers at the kernel's entry, from those that the vCPU has after reset.
///
/// PVH: flat 32-bit protected mode without paging. 64-bit Linux boot protocol: long mode with the low 4 GiB mapped to
/// themselves.
pub fn boot_sregs(entry: &BootEntry, sregs: kvm_sregs) -> kvm_sregs {
    let data = data_segment();
    let sregs = kvm_sregs {
        cs: code_segment(entry.protocol),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: tss_segment(),
        gdt: kvm_dtable {
            base: GDT_START,
            limit: (GDT_ENTRIES * size_of::<u64>() - 1) as u16,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: IDT_START,
            limit: 0,
            ..Default::default()
        },
        ..sregs
    };
    match entry.protocol {
        BootProtocol::Pvh => kvm_sregs {
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            ..sregs
        },
        BootProtocol::Linux64 => kvm_sregs {
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: PML4_START,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..sregs
        },
    }
}

/// FPU and SSE control words after `FNINIT` and reset.
pub fn boot_fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..kvm_fpu::default()
    }
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

fn code_segment(protocol: BootProtocol) -> kvm_segment {
    let (db, l) = match protocol {
        BootProtocol::Pvh => (1, 0),
        BootProtocol::Linux64 => (0, 1),
    };
    kvm_segment {
        db,
        l,
        ..segment(CODE_SELECTOR, TYPE_CODE)
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..segment(DATA_SELECTOR, TYPE_DATA)
    }
}

fn tss_segment() -> kvm_segment {
    kvm_segment {
        s: 0,
        g: 0,
        limit: TSS_LIMIT,
        ..segment(TSS_SELECTOR, TYPE_BUSY_TSS)
    }
}

/// The descriptor of a segment with base 0, as it stands in the GDT (Intel SDM, volume 3, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.l << 1 | segment.db << 2 | segment.g << 3;
    (limit & 0xffff) | u64::from(access) << 40 | (limit >> 16) << 48 | u64::from(flags) << 52
}

/// Writes the descriptor table that [`boot_sregs`] names.
pub(super) fn write_gdt<M: GuestMemoryBackend>(
    mem: &M,
    protocol: BootProtocol,
) -> Result<(), BootError> {
    let gdt: [u64; GDT_ENTRIES] = [
        0,
        0,
        descriptor(&code_segment(protocol)),
        descriptor(&data_segment()),
        descriptor(&tss_segment()),
    ];
    write_words(mem, gdt, GDT_START)
}

/// Writes page tables that map the low 4 GiB to themselves by 2 MiB pages.
pub(super) fn write_page_tables<M: GuestMemoryBackend>(mem: &M) -> Result<(), BootError> {
    write_words(mem, [PDPT_START | PAGE_PRESENT_WRITABLE], PML4_START)?;
    let directory = |n| PD_START + n * PAGE_TABLE_ENTRIES * 8;
    write_words(
        mem,
        (0..DIRECTORIES).map(|n| directory(n) | PAGE_PRESENT_WRITABLE),
        PDPT_START,
    )?;
    let pages = 0..DIRECTORIES * PAGE_TABLE_ENTRIES;
    write_words(
        mem,
        pages.map(|n| (n * LARGE_PAGE_SIZE) | PAGE_PRESENT_WRITABLE | PAGE_LARGE),
        PD_START,
    )
}

fn write_words<M: GuestMemoryBackend>(
    mem: &M,
    words: impl IntoIterator<Item = u64>,
    addr: u64,
) -> Result<(), BootError> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    write(mem, &bytes, addr)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    fn entry(protocol: BootProtocol) -> BootEntry {
        BootEntry {
            protocol,
            entry: GuestAddress(0x100_0000),
            boot_info: GuestAddress(0x6000),
        }
    }

    #[test]
    fn pvh_starts_in_flat_protected_mode_with_start_info_in_ebx() {
        let entry = entry(BootProtocol::Pvh);
        let regs = boot_regs(&entry);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0000, 0x6000, 2));
        let sregs = boot_sregs(
            &entry,
            kvm_sregs {
                apic_base: 0xfee0_0900,
                cr4: 0x20,
                ..kvm_sregs::default()
            },
        );
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!(
            (sregs.cs.db, sregs.cs.l, sregs.cs.base, sregs.cs.limit),
            (1, 0, 0, u32::MAX)
        );
        assert_eq!(sregs.apic_base, 0xfee0_0900);
    }

    #[test]
    fn linux64_starts_in_long_mode_with_zero_page_in_rsi() {
        let entry = entry(BootProtocol::Linux64);
        let regs = boot_regs(&entry);
        assert_eq!((regs.rip, regs.rsi), (0x100_0000, 0x6000));
        let sregs = boot_sregs(&entry, kvm_sregs::default());
        assert_eq!(
            (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3),
            (0x8000_0011, 0x20, 0x500, PML4_START)
        );
        assert_eq!(
            (
                sregs.cs.selector,
                sregs.cs.db,
                sregs.cs.l,
                sregs.ds.selector
            ),
            (0x10, 0, 1, 0x18)
        );
    }

    #[test]
    fn descriptors_have_their_known_values() {
        assert_eq!(
            descriptor(&code_segment(BootProtocol::Linux64)),
            0x00af_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&code_segment(BootProtocol::Pvh)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(descriptor(&data_segment()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&tss_segment()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn page_tables_map_the_low_4_gib_to_themselves() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&mem).unwrap();
        let word = |addr: u64| mem.read_obj::<u64>(GuestAddress(addr)).unwrap();
        let translate = |addr: u64| {
            let pdpt = word(PML4_START + (addr >> 39) * 8) & !0xfff;
            let pd = word(pdpt + (addr >> 30 & 0x1ff) * 8) & !0xfff;
            (word(pd + (addr >> 21 & 0x1ff) * 8) & !0x1f_ffff) | (addr & 0x1f_ffff)
        };
        for addr in [
            0,
            0x7000,
            0x1f_ffff,
            0x20_0000,
            0x3fff_ffff,
            0x4000_0000,
            0xbfff_ffff,
            0xffff_ffff,
        ] {
            assert_eq!(translate(addr), addr);
        }
        assert_eq!(word(PML4_START + 8), 0);
        assert_eq!(word(PDPT_START + 4 * 8), 0);
    }
}
