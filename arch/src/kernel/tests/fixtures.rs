//! Small kernels of every kind, made byte by byte.

use std::fs::File;
use std::io::{Seek, Write};

use flate2::write::GzEncoder;
use lzma_rust2::{CheckType, FilterType, LzmaOptions, LzmaWriter, XzOptions, XzWriter};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::kernel::Compression;

pub(super) const LOAD: u64 = 0x100_0000;
pub(super) const PVH_ENTRY: u32 = 0x100_0010;
pub(super) const ENTRY: u64 = 0x100_0020;

pub(super) fn guest(len: usize) -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap()
}

pub(super) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// One program header.
#[derive(Clone, Copy)]
pub(super) struct Phdr {
    pub(super) kind: u32,
    pub(super) offset: u64,
    pub(super) paddr: u64,
    pub(super) filesz: u64,
    pub(super) memsz: u64,
}

/// An ELF image to build: its program headers and what stands where in the file.
pub(super) struct Elf {
    pub(super) is_64_bit: bool,
    pub(super) machine: u16,
    pub(super) entry: u64,
    pub(super) phdrs: Vec<Phdr>,
    pub(super) parts: Vec<(u64, Vec<u8>)>,
}

impl Elf {
    /// Text at [`LOAD`], data 64 KiB higher with memory beyond its bytes.
    pub(super) fn new(text: &[u8]) -> Self {
        let data = b"data of the kernel".to_vec();
        let data_offset = 0x1000 + text.len() as u64;
        let load = |offset, paddr, filesz, memsz| Phdr {
            kind: 1,
            offset,
            paddr,
            filesz,
            memsz,
        };
        let data_paddr = LOAD + (text.len() as u64).next_multiple_of(0x1_0000);
        Self {
            is_64_bit: true,
            machine: 62,
            entry: ENTRY,
            phdrs: vec![
                load(data_offset, data_paddr, data.len() as u64, 0x3000),
                load(0x1000, LOAD, text.len() as u64, text.len() as u64),
            ],
            parts: vec![(0x1000, text.to_vec()), (data_offset, data)],
        }
    }

    /// With the PVH note at `offset` of the file, which may lie in a segment.
    pub(super) fn with_note(mut self, offset: u64, entry: u32) -> Self {
        let mut note = note(b"GNU\0", 3, &[1, 2, 3]);
        note.extend(note_xen(8, b"generic\0"));
        note.extend(note_xen(18, &entry.to_le_bytes()));
        let len = note.len() as u64;
        self.phdrs.push(Phdr {
            kind: 4,
            offset,
            paddr: 0,
            filesz: len,
            memsz: len,
        });
        self.parts.push((offset, note));
        self
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut out = vec![0; 0x1000];
        out[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1 + u8::from(self.is_64_bit), 1, 1]);
        out[16..18].copy_from_slice(&2u16.to_le_bytes());
        out[18..20].copy_from_slice(&self.machine.to_le_bytes());
        let count = (self.phdrs.len() as u16).to_le_bytes();
        if self.is_64_bit {
            out[24..32].copy_from_slice(&self.entry.to_le_bytes());
            out[32] = 64;
            out[54] = 56;
            out[56..58].copy_from_slice(&count);
        } else {
            out[24..28].copy_from_slice(&(self.entry as u32).to_le_bytes());
            out[28] = 52;
            out[42] = 32;
            out[44..46].copy_from_slice(&count);
        }
        let table: Vec<u8> = self.phdrs.iter().flat_map(|phdr| self.phdr(phdr)).collect();
        let start = if self.is_64_bit { 64 } else { 52 };
        out[start..start + table.len()].copy_from_slice(&table);
        for (offset, bytes) in &self.parts {
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            out.resize(out.len().max(end), 0);
            out[start..end].copy_from_slice(bytes);
        }
        out
    }

    fn phdr(&self, phdr: &Phdr) -> Vec<u8> {
        let Phdr {
            kind,
            offset,
            paddr,
            filesz,
            memsz,
        } = *phdr;
        if self.is_64_bit {
            let words = [u64::from(kind), offset, 0, paddr, filesz, memsz, 0];
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        } else {
            let words = [
                kind,
                offset as u32,
                0,
                paddr as u32,
                filesz as u32,
                memsz as u32,
                0,
                0,
            ];
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        }
    }
}

fn note(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = [owner.len() as u32, desc.len() as u32, kind]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    for part in [owner, desc] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn note_xen(kind: u32, desc: &[u8]) -> Vec<u8> {
    note(b"Xen\0", kind, desc)
}

/// A packed kernel as kernel builds make it: four size bytes at the end, which gzip has of its own.
pub(super) fn pack(compression: Compression, image: &[u8]) -> Vec<u8> {
    let size = (image.len() as u32).to_le_bytes();
    let mut packed = match compression {
        Compression::None => image.to_vec(),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(image).unwrap();
            return encoder.finish().unwrap();
        }
        Compression::Lz4 => lz4_legacy(image),
        Compression::Lzma => {
            let mut writer =
                LzmaWriter::new_use_header(Vec::new(), &LzmaOptions::with_preset(0), None).unwrap();
            writer.write_all(image).unwrap();
            writer.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(0);
            options.set_check_sum_type(CheckType::Crc32);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut writer = XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(image).unwrap();
            writer.finish().unwrap()
        }
        Compression::Zstd => compress_to_vec(image, CompressionLevel::Fastest),
    };
    packed.extend_from_slice(&size);
    packed
}

/// What a frame of LZ4's legacy format begins with.
pub(super) const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

fn lz4_legacy(image: &[u8]) -> Vec<u8> {
    let mut out = LZ4_MAGIC.to_vec();
    for block in image.chunks(8 << 20) {
        let packed = lz4_flex::block::compress(block);
        out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        out.extend_from_slice(&packed);
    }
    out
}

/// A bzImage to build around a payload.
pub(super) struct Bz {
    pub(super) version: u16,
    pub(super) xloadflags: u16,
    pub(super) pref_address: u64,
    pub(super) init_size: u32,
    pub(super) payload: Vec<u8>,
}

/// Offset of the payload in the protected-mode code.
pub(super) const PAYLOAD_OFFSET: usize = 0x400;
/// Offset of the protected-mode code in the file: boot sector and two setup sectors.
pub(super) const CODE_OFFSET: usize = 3 * 512;

impl Bz {
    pub(super) fn new(payload: Vec<u8>) -> Self {
        Self {
            version: 0x20f,
            xloadflags: 1,
            pref_address: LOAD,
            init_size: 0x10_0000,
            payload,
        }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut out = vec![0; CODE_OFFSET + PAYLOAD_OFFSET];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[2]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x234, &[1]);
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
        put(0x24c, &(self.payload.len() as u32).to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        out.extend_from_slice(&self.payload);
        out
    }
}
