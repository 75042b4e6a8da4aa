use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestMemoryMmap;

use super::super::layout::{
    BOOT_STACK_POINTER, CONVENTIONAL_END, GDT_START, IDT_START, PD_START, PDPT_START, PML4_START,
    PVH_MEMMAP_MAX, PVH_MEMMAP_START, PVH_MODLIST_START, PVH_START_INFO_START, RSDP_START,
    ZERO_PAGE_START,
};
use super::super::memory_map::memory_map;
use super::*;
use crate::kernel::{Compression, KernelImage};

const CMDLINE: &str = "console=ttyS0 quiet";
const INITRAMFS: InitramfsRange = InitramfsRange {
    start: GuestAddress(0x3ff_f000),
    len: 0x123,
};

fn guest() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap()
}

fn elf_kernel(protocol: BootProtocol) -> LoadedKernel {
    LoadedKernel {
        entry: GuestAddress(0x100_0000),
        protocol,
        end: 0x200_0000,
        setup_header: None,
        image: KernelImage::Elf,
    }
}

fn bzimage_kernel() -> LoadedKernel {
    let header = setup_header {
        header: 0x5372_6448,
        version: 0x20f,
        loadflags: 1,
        cmdline_size: 2047,
        init_size: 0x1234,
        ..setup_header::default()
    };
    let image = KernelImage::BzImage {
        compression: Compression::Lz4,
    };
    LoadedKernel {
        setup_header: Some(header),
        image,
        ..elf_kernel(BootProtocol::Linux64)
    }
}

fn configure(mem: &GuestMemoryMmap<()>, kernel: &LoadedKernel) -> BootEntry {
    configure_boot(
        mem,
        kernel,
        CMDLINE,
        Some(INITRAMFS),
        &memory_map(64 << 20),
        RSDP_START,
    )
    .unwrap()
}

fn word(mem: &GuestMemoryMmap<()>, addr: u64) -> u32 {
    mem.read_obj(GuestAddress(addr)).unwrap()
}

fn quad(mem: &GuestMemoryMmap<()>, addr: u64) -> u64 {
    mem.read_obj(GuestAddress(addr)).unwrap()
}

fn cmdline_at(mem: &GuestMemoryMmap<()>, addr: u64) -> Vec<u8> {
    let mut bytes = vec![0xff; CMDLINE.len() + 1];
    mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

#[test]
fn pvh_start_info_names_everything() {
    let mem = guest();
    let entry = configure(&mem, &elf_kernel(BootProtocol::Pvh));
    let info = entry.boot_info.0;
    assert_eq!(
        (info, entry.entry.0, entry.protocol),
        (PVH_START_INFO_START, 0x100_0000, BootProtocol::Pvh)
    );
    assert_eq!(
        (
            word(&mem, info),
            word(&mem, info + 4),
            word(&mem, info + 12)
        ),
        (0x336e_c578, 1, 1)
    );
    assert_eq!(
        (quad(&mem, info + 16), quad(&mem, info + 32)),
        (PVH_MODLIST_START, RSDP_START.0)
    );
    assert_eq!(
        cmdline_at(&mem, quad(&mem, info + 24)),
        b"console=ttyS0 quiet\0"
    );
    assert_eq!(
        (
            quad(&mem, PVH_MODLIST_START),
            quad(&mem, PVH_MODLIST_START + 8)
        ),
        (0x3ff_f000, 0x123)
    );

    let map = memory_map(64 << 20);
    assert_eq!(
        (quad(&mem, info + 40), word(&mem, info + 48)),
        (PVH_MEMMAP_START, map.len() as u32)
    );
    for (entry, at) in map.iter().zip((PVH_MEMMAP_START..).step_by(24)) {
        let found = (quad(&mem, at), quad(&mem, at + 8), word(&mem, at + 16));
        assert_eq!(
            found,
            (entry.range.start, entry.range.len, entry.kind as u32)
        );
    }
}

#[test]
fn pvh_without_initramfs_has_no_module() {
    let mem = guest();
    let kernel = elf_kernel(BootProtocol::Pvh);
    let entry = configure_boot(&mem, &kernel, "", None, &memory_map(64 << 20), RSDP_START).unwrap();
    assert_eq!(
        (
            word(&mem, entry.boot_info.0 + 12),
            quad(&mem, entry.boot_info.0 + 16)
        ),
        (0, 0)
    );
}

#[test]
fn zero_page_names_everything() {
    for kernel in [elf_kernel(BootProtocol::Linux64), bzimage_kernel()] {
        let mem = guest();
        let entry = configure(&mem, &kernel);
        let page = entry.boot_info.0;
        assert_eq!(
            (page, entry.protocol),
            (ZERO_PAGE_START, BootProtocol::Linux64)
        );
        assert_eq!(
            (word(&mem, page + 0x202), quad(&mem, page + 0x70)),
            (0x5372_6448, RSDP_START.0)
        );
        assert_eq!(
            mem.read_obj::<u8>(GuestAddress(page + 0x210)).unwrap(),
            0xff
        );
        assert_eq!(
            (word(&mem, page + 0x218), word(&mem, page + 0x21c)),
            (0x3ff_f000, 0x123)
        );
        assert_eq!(
            cmdline_at(&mem, word(&mem, page + 0x228).into()),
            b"console=ttyS0 quiet\0"
        );
        let init_size = kernel.setup_header.map_or(0, |header| header.init_size);
        assert_eq!(word(&mem, page + 0x260), init_size);

        let map = memory_map(64 << 20);
        assert_eq!(
            mem.read_obj::<u8>(GuestAddress(page + 0x1e8)).unwrap() as usize,
            map.len()
        );
        for (entry, at) in map.iter().zip((page + 0x2d0..).step_by(20)) {
            let found = (quad(&mem, at), quad(&mem, at + 8), word(&mem, at + 16));
            assert_eq!(
                found,
                (entry.range.start, entry.range.len, entry.kind as u32)
            );
        }
    }
}

#[test]
fn command_line_over_the_limit_names_both_lengths() {
    let limit = CMDLINE_MAX as usize - 1;
    let error = |kernel: &LoadedKernel, len: usize| {
        configure_boot(&guest(), kernel, &"a".repeat(len), None, &[], RSDP_START)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&elf_kernel(BootProtocol::Pvh), limit + 1),
        "the kernel command line has 65536 bytes, expected at most 65535"
    );
    assert_eq!(
        error(&bzimage_kernel(), 2048),
        "the kernel command line has 2048 bytes, expected at most 2047"
    );
    let longest = "a".repeat(limit);
    let map = memory_map(64 << 20);
    assert!(
        configure_boot(
            &guest(),
            &elf_kernel(BootProtocol::Pvh),
            &longest,
            None,
            &map,
            RSDP_START
        )
        .is_ok()
    );
}

#[test]
fn command_line_must_be_ascii_without_nul() {
    for (text, position) in [("a\0b", 1), ("quiet \u{e9}", 6)] {
        let result = configure_boot(
            &guest(),
            &elf_kernel(BootProtocol::Pvh),
            text,
            None,
            &[],
            RSDP_START,
        );
        assert!(
            matches!(result, Err(BootError::CmdlineCharacter { position: found, .. }) if found == position)
        );
    }
}

#[test]
fn too_many_memory_map_entries_are_refused() {
    let entry = memory_map(64 << 20)[0];
    for (kernel, max) in [
        (elf_kernel(BootProtocol::Pvh), 2730),
        (bzimage_kernel(), 128),
    ] {
        let configure =
            |len| configure_boot(&guest(), &kernel, "", None, &vec![entry; len], RSDP_START);
        assert!(configure(max).is_ok());
        assert!(
            matches!(configure(max + 1), Err(BootError::MapTooLong { max: found, .. }) if found == max)
        );
    }
}

#[test]
fn boot_data_does_not_fit_a_guest_without_memory() {
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let result = configure_boot(
        &mem,
        &elf_kernel(BootProtocol::Pvh),
        "",
        None,
        &[],
        RSDP_START,
    );
    assert!(matches!(
        result,
        Err(BootError::Write { addr: 0x1_0000, .. })
    ));
}

#[test]
fn boot_data_areas_do_not_overlap() {
    let mut areas = [
        (GDT_START, 0x40),
        (IDT_START, 0x10),
        (PVH_START_INFO_START, 0x38),
        (PVH_MODLIST_START, 0x20),
        (ZERO_PAGE_START, 0x1000),
        (BOOT_STACK_POINTER & !0xfff, 0x1000),
        (PML4_START, 0x1000),
        (PDPT_START, 0x1000),
        (PD_START, 0x4000),
        (CMDLINE_START, CMDLINE_MAX),
        (PVH_MEMMAP_START, PVH_MEMMAP_MAX),
        (CONVENTIONAL_END, 0),
    ];
    areas.sort_unstable();
    assert!(
        areas
            .windows(2)
            .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
    );
}
