use proptest::prelude::*;
use vm_memory::Bytes;

use super::fixtures::{ENTRY, Elf, LOAD, PVH_ENTRY, Phdr, file, guest};
use crate::kernel::*;

fn load(image: &[u8]) -> Result<LoadedKernel, KernelError> {
    load_kernel(&guest(32 << 20), &mut file(image))
}

fn elf_error(elf: &Elf) -> ElfError {
    match load(&elf.build()) {
        Err(KernelError::Elf(error)) => error,
        other => panic!("expected an ELF error, got {other:?}"),
    }
}

#[test]
fn kernel_with_a_note_is_entered_by_pvh() {
    let text = [0x90; 0x2345];
    for note_at in [0x800, 0x1100, 0x9000] {
        let mem = guest(32 << 20);
        let image = Elf::new(&text).with_note(note_at, PVH_ENTRY).build();
        let kernel = load_kernel(&mem, &mut file(&image)).unwrap();
        assert_eq!(
            (kernel.protocol, kernel.entry.0),
            (BootProtocol::Pvh, PVH_ENTRY.into()),
            "note at {note_at:#x}"
        );
        assert_eq!(kernel.end, LOAD + 0x1_0000 + 0x3000);
        assert!(kernel.setup_header.is_none() && matches!(kernel.image, KernelImage::Elf));
        assert_eq!(
            mem.read_obj::<u8>(GuestAddress(LOAD + 0x2344)).unwrap(),
            0x90
        );
        assert_eq!(
            mem.read_obj::<[u8; 18]>(GuestAddress(LOAD + 0x1_0000))
                .unwrap(),
            *b"data of the kernel"
        );
    }
}

#[test]
fn kernel_without_a_note_is_entered_by_the_64_bit_protocol() {
    let kernel = load(&Elf::new(&[0x90; 0x100]).build()).unwrap();
    assert_eq!(
        (kernel.protocol, kernel.entry.0),
        (BootProtocol::Linux64, ENTRY)
    );
}

#[test]
fn kernel_of_32_bits_needs_a_pvh_note() {
    let elf = |machine| Elf {
        is_64_bit: false,
        machine,
        ..Elf::new(&[0x90; 0x100])
    };
    let kernel = load(&elf(3).with_note(0x900, PVH_ENTRY).build()).unwrap();
    assert_eq!(
        (kernel.protocol, kernel.entry.0),
        (BootProtocol::Pvh, PVH_ENTRY.into())
    );
    assert!(matches!(elf_error(&elf(3)), ElfError::No64BitEntry));
}

#[test]
fn segments_without_a_place_are_refused() {
    let with = |phdr: Phdr| {
        let mut elf = Elf::new(&[0x90; 0x100]);
        elf.phdrs.push(phdr);
        elf_error(&elf)
    };
    let phdr = Phdr {
        kind: 1,
        offset: 0x1000,
        paddr: LOAD,
        filesz: 0x10,
        memsz: 0x10,
    };
    assert!(matches!(
        with(Phdr {
            paddr: 0x8000,
            ..phdr
        }),
        ElfError::SegmentTooLow { start: 0x8000 }
    ));
    assert!(matches!(
        with(Phdr { memsz: 8, ..phdr }),
        ElfError::SegmentSizes {
            file_len: 16,
            mem_len: 8,
            ..
        }
    ));
    for (paddr, memsz) in [
        (0x4000_0000, 0x10),
        (LOAD, 0x4000_0000),
        (u64::MAX - 4, 0x10),
        (LOAD, u64::MAX),
    ] {
        assert!(matches!(
            with(Phdr {
                paddr,
                memsz,
                ..phdr
            }),
            ElfError::DoesNotFit { .. }
        ));
    }
    assert!(matches!(
        with(Phdr {
            offset: 0x10_0000,
            ..phdr
        }),
        ElfError::Copy { .. }
    ));
    assert!(matches!(
        with(Phdr {
            kind: 4,
            filesz: 1 << 40,
            ..phdr
        }),
        ElfError::NotesTooLong(_)
    ));
}

#[test]
fn entry_outside_the_segments_is_refused() {
    let elf = Elf {
        entry: 0x800_0000,
        ..Elf::new(&[0x90; 0x100])
    };
    assert!(matches!(
        elf_error(&elf),
        ElfError::EntryOutside { entry: 0x800_0000 }
    ));
    let elf = Elf::new(&[0x90; 0x100]).with_note(0x900, 0x10);
    assert!(matches!(
        elf_error(&elf),
        ElfError::EntryOutside { entry: 0x10 }
    ));
}

#[test]
fn elf_without_segments_or_headers_is_refused() {
    assert!(matches!(
        elf_error(&Elf {
            phdrs: vec![],
            ..Elf::new(&[0])
        }),
        ElfError::NoSegments
    ));
    let mut image = Elf::new(&[0x90; 0x100]).build();
    image[33] = 0x80;
    assert!(matches!(
        load(&image),
        Err(KernelError::Elf(ElfError::HeadersOutOfReach))
    ));
    assert!(matches!(
        load(&image[..30]),
        Err(KernelError::Elf(ElfError::HeadersOutOfReach))
    ));
}

proptest! {
    #[test]
    fn mutated_elf_headers_never_panic(changes in proptest::collection::vec((0usize..0x140, any::<u8>()), 1..12)) {
        let mut image = Elf::new(&[0x90; 0x100]).with_note(0x100, PVH_ENTRY).build();
        for (at, value) in changes {
            image[at] = value;
        }
        if let Ok(kernel) = load(&image) {
            prop_assert!(kernel.end <= 32 << 20);
        }
    }

    #[test]
    fn arbitrary_bytes_after_an_elf_magic_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut image = b"\x7fELF\x02\x01".to_vec();
        image.extend(bytes);
        let _ = load(&image);
        image.resize(image.len().max(20), 0);
        image[18..20].copy_from_slice(&[62, 0]);
        let _ = load(&image);
    }
}

#[test]
fn firmware_is_entered_by_its_pvh_note_and_by_nothing_else() {
    let load = |image: &[u8]| load_firmware(&guest(32 << 20), &mut file(image));
    let image = Elf::new(&[0x90; 0x100]).with_note(0x900, PVH_ENTRY).build();
    let firmware = load(&image).unwrap();
    assert_eq!(
        (firmware.protocol, firmware.entry.0),
        (BootProtocol::Pvh, PVH_ENTRY.into())
    );
    let without = |is_64_bit, machine| Elf {
        is_64_bit,
        machine,
        ..Elf::new(&[0x90; 0x100])
    };
    for elf in [without(true, 62), without(false, 3)] {
        let error = load(&elf.build()).unwrap_err();
        assert!(matches!(error, FirmwareError::NoPvhEntry), "{error}");
    }
    let error = load(b"MZ and no ELF").unwrap_err().to_string();
    assert!(
        error.starts_with("the firmware file is a PE/EFI program; expected"),
        "{error}"
    );
    let small = load_firmware(&guest(1 << 20), &mut file(&image)).unwrap_err();
    assert!(
        matches!(small, FirmwareError::Elf(ElfError::DoesNotFit { .. })),
        "{small}"
    );
}
