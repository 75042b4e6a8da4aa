use proptest::prelude::*;
use vm_memory::Bytes;

use super::fixtures::{Bz, CODE_OFFSET, ENTRY, Elf, LOAD, LZ4_MAGIC, PVH_ENTRY, file, guest, pack};
use crate::kernel::*;

const ALL: [Compression; 6] = [
    Compression::None,
    Compression::Gzip,
    Compression::Lz4,
    Compression::Lzma,
    Compression::Xz,
    Compression::Zstd,
];

/// Bytes that pack, but not to nothing.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n / 7) ^ (n >> 9)) as u8).collect()
}

fn load(image: &[u8]) -> Result<LoadedKernel, KernelError> {
    load_kernel(&guest(64 << 20), &mut file(image))
}

#[test]
fn every_packing_is_unpacked_to_the_same_kernel() {
    let text = text(300_000);
    let elf = Elf::new(&text).with_note(0x1200, PVH_ENTRY).build();
    for compression in ALL {
        let mem = guest(64 << 20);
        let image = Bz::new(pack(compression, &elf)).build();
        let kernel = load_kernel(&mem, &mut file(&image)).unwrap();
        assert_eq!(
            (kernel.protocol, kernel.entry.0),
            (BootProtocol::Pvh, PVH_ENTRY.into()),
            "{compression}"
        );
        assert!(
            matches!(kernel.image, KernelImage::BzImage { compression: used } if used == compression)
        );
        assert!(kernel.setup_header.is_some());
        let mut loaded = vec![0; text.len()];
        mem.read_slice(&mut loaded, GuestAddress(LOAD)).unwrap();
        // The note stands at offset 0x200 of the text.
        assert_eq!(&loaded[..0x200], &text[..0x200], "{compression}");
        assert_eq!(&loaded[0x300..], &text[0x300..], "{compression}");
    }
}

#[test]
fn lz4_kernel_of_several_blocks_is_unpacked() {
    let text = text(20 << 20);
    let mem = guest(64 << 20);
    let image = Bz::new(pack(Compression::Lz4, &Elf::new(&text).build())).build();
    let kernel = load_kernel(&mem, &mut file(&image)).unwrap();
    assert_eq!(
        (kernel.protocol, kernel.entry.0),
        (BootProtocol::Linux64, ENTRY)
    );
    let mut loaded = vec![0; text.len()];
    mem.read_slice(&mut loaded, GuestAddress(LOAD)).unwrap();
    assert!(loaded == text);
}

#[test]
fn lz4_frames_follow_one_another_in_any_number() {
    let elf = Elf::new(&text(5000)).build();
    let mut packed = LZ4_MAGIC.repeat(2 << 20);
    packed.extend(pack(Compression::Lz4, &elf));
    let kernel = load_kernel(&guest(64 << 20), &mut file(&Bz::new(packed).build())).unwrap();
    assert!(matches!(
        kernel.image,
        KernelImage::BzImage {
            compression: Compression::Lz4
        }
    ));
}

#[test]
fn kernel_that_cannot_be_unpacked_unpacks_itself() {
    let elf = Elf::new(&text(5000)).build();
    let good = pack(Compression::Lz4, &elf);
    let mut damaged = good.clone();
    damaged[8..].fill(0xff);
    let payloads = [
        b"BZh91AY&SY packed by bzip2".to_vec(),
        b"\x89LZO packed by lzo".to_vec(),
        good[..good.len() / 2].to_vec(),
        damaged,
        pack(Compression::Gzip, b"no kernel at all"),
        Vec::new(),
    ];
    for payload in payloads {
        let mem = guest(64 << 20);
        let image = Bz::new(payload).build();
        let kernel = load_kernel(&mem, &mut file(&image)).unwrap();
        assert!(matches!(kernel.image, KernelImage::SelfExtracting { .. }));
        assert_eq!(
            (kernel.protocol, kernel.entry.0),
            (BootProtocol::Linux64, LOAD + 0x200)
        );
        assert_eq!(kernel.end, LOAD + 0x10_0000);
        let mut code = vec![0; image.len() - CODE_OFFSET];
        mem.read_slice(&mut code, GuestAddress(LOAD)).unwrap();
        assert_eq!(code, image[CODE_OFFSET..]);
    }
}

#[test]
fn payload_is_not_unpacked_beyond_the_size_it_claims() {
    let elf = Elf::new(&text(300_000))
        .with_note(0x1200, PVH_ENTRY)
        .build();
    for compression in [
        Compression::Lz4,
        Compression::Zstd,
        Compression::Xz,
        Compression::Lzma,
    ] {
        let mut payload = pack(compression, &elf);
        let len = payload.len();
        payload[len - 4..].copy_from_slice(&10_000u32.to_le_bytes());
        let kernel = load(&Bz::new(payload).build()).unwrap();
        assert!(matches!(
            kernel.image,
            KernelImage::SelfExtracting {
                reason: PayloadError::Elf(_)
            }
        ));
    }
}

#[test]
fn kernel_of_32_bits_that_cannot_be_unpacked_is_refused() {
    let image = Bz {
        xloadflags: 0,
        ..Bz::new(b"BZh91AY&SY".to_vec())
    }
    .build();
    let Err(error @ KernelError::Not64Bit(PayloadError::UnknownMethod(_))) = load(&image) else {
        panic!("loaded or refused for another reason");
    };
    assert!(error.to_string().contains("32-bit bzImage"));
}

#[test]
fn bzimage_that_needs_too_much_memory_is_refused() {
    let elf = Elf::new(&text(5000)).build();
    let small = guest(12 << 20);
    let packed = Bz::new(pack(Compression::Gzip, &elf)).build();
    let error = load_kernel(&small, &mut file(&packed)).unwrap_err();
    assert!(matches!(
        error,
        KernelError::Elf(ElfError::DoesNotFit { start: LOAD, .. })
    ));
    for bz in [
        Bz {
            init_size: u32::MAX,
            ..Bz::new(vec![])
        },
        Bz {
            pref_address: u64::MAX - 10,
            ..Bz::new(vec![])
        },
        Bz {
            pref_address: 1 << 40,
            ..Bz::new(vec![])
        },
    ] {
        let error = load_kernel(&small, &mut file(&bz.build())).unwrap_err();
        assert!(matches!(error, KernelError::BzImageDoesNotFit { .. }));
    }
}

#[test]
fn bzimage_that_is_cut_short_is_refused() {
    let image = Bz::new(vec![1; 100]).build();
    for len in [0x210, 0x26b, 0x280, CODE_OFFSET, CODE_OFFSET + 0x200] {
        assert!(
            matches!(load(&image[..len]), Err(KernelError::DamagedBzImage(_))),
            "{len:#x}"
        );
    }
    let payload_cut = load(&image[..image.len() - 1]).unwrap();
    assert!(matches!(
        payload_cut.image,
        KernelImage::SelfExtracting {
            reason: PayloadError::OutOfFile
        }
    ));
}

#[test]
fn initramfs_limit_is_the_kernels_or_the_end_of_low_ram() {
    let kernel = load(&Bz::new(vec![]).build()).unwrap();
    let limit = |kernel, size| InitramfsPlacement::after(kernel, size).limit;
    assert_eq!(
        (limit(&kernel, 1 << 30), limit(&kernel, 4 << 30)),
        (1 << 30, 0x8000_0000)
    );
    let elf = load(&Elf::new(&[0x90; 0x100]).build()).unwrap();
    assert_eq!(limit(&elf, 4 << 30), 3 << 30);
    assert_eq!(InitramfsPlacement::after(&elf, 1 << 30).lowest, elf.end);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_bzimages_never_panic(
        which in 0usize..6,
        header in proptest::collection::vec((0x1f1usize..0x268, any::<u8>()), 0..4),
        body in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let elf = Elf::new(&text(20_000)).with_note(0x1200, PVH_ENTRY).build();
        let mut image = Bz::new(pack(ALL[which], &elf)).build();
        for (at, value) in header {
            image[at] = value;
        }
        for (at, value) in body {
            let payload = &mut image[CODE_OFFSET..];
            payload[at.index(payload.len())] = value;
        }
        if let Ok(kernel) = load(&image) {
            prop_assert!(kernel.end <= 64 << 20);
        }
    }

    #[test]
    fn arbitrary_payloads_of_every_packing_never_panic(
        which in 0usize..6,
        body in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let start = pack(ALL[which], b"x").into_iter().take(6);
        let payload: Vec<u8> = start.chain(body).collect();
        let _ = load(&Bz::new(payload).build());
    }
}
