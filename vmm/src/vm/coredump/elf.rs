//! The frame of an ELF64 core: its header, its program headers, its notes, and where memory goes in the file.

use std::ops::Range;

/// Size of the ELF header in bytes.
const HEADER_LEN: u64 = 64;
/// Size of a program header in bytes.
const PROGRAM_HEADER_LEN: u64 = 56;
/// Memory begins at multiples of this, so that a page of zeros can be a hole in the file.
const PAGE: u64 = 4096;

const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const EV_CURRENT: u32 = 1;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// PF_R, PF_W and PF_X.
const READ_WRITE_EXECUTE: u32 = 7;

/// Appends `words` in the byte order of the file.
pub(super) fn put_u64(bytes: &mut Vec<u8>, words: &[u64]) {
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// Appends `words` in the byte order of the file.
pub(super) fn put_u32(bytes: &mut Vec<u8>, words: &[u32]) {
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn put_u16(bytes: &mut Vec<u8>, words: &[u16]) {
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// Where everything is in the file.
pub(super) struct Layout {
    /// What stands before memory.
    pub(super) front: Vec<u8>,
    /// Where each piece of memory begins, an offset in the file in bytes.
    pub(super) offsets: Vec<u64>,
    /// Length of the file in bytes.
    pub(super) len: u64,
}

impl Layout {
    /// A core of `notes` and of the `memory` at these guest physical addresses, in whole pages, ascending.
    ///
    /// There is one PT_NOTE, and it comes first: debuggers of kernels do not look for another, and take what is in the
    /// file before the first PT_LOAD's memory as the headers. An alignment of PT_LOADs (p_align) other than 0 would tell
    /// them that the file is of another kind, a netdump. p_vaddr is p_paddr, as QEMU has it without paging: a debugger
    /// that knows virtual addresses only sees physical memory.
    pub(super) fn new(memory: &[Range<u64>], notes: &[u8]) -> Self {
        let count = memory.len() + 1;
        let notes_start = HEADER_LEN + PROGRAM_HEADER_LEN * count as u64;
        let notes_len = notes.len() as u64;
        let mut front = file_header(count);
        put_program_header(&mut front, PT_NOTE, notes_start, 0..notes_len);
        let mut end = (notes_start + notes_len).next_multiple_of(PAGE);
        let mut offsets = Vec::with_capacity(memory.len());
        for piece in memory {
            put_program_header(&mut front, PT_LOAD, end, piece.clone());
            offsets.push(end);
            end += piece.end - piece.start;
        }
        front.extend(notes);
        Self {
            front,
            offsets,
            len: end,
        }
    }
}

/// The ELF header of a core with `program_headers` of them.
fn file_header(program_headers: usize) -> Vec<u8> {
    let count = u16::try_from(program_headers).expect("KVM has fewer slots of memory than that");
    // ELFCLASS64, ELFDATA2LSB, EV_CURRENT, no ABI.
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    put_u16(&mut header, &[ET_CORE, EM_X86_64]);
    put_u32(&mut header, &[EV_CURRENT]);
    // No entry, program headers after this one, no section headers.
    put_u64(&mut header, &[0, HEADER_LEN, 0]);
    put_u32(&mut header, &[0]);
    let sizes = [HEADER_LEN as u16, PROGRAM_HEADER_LEN as u16, count];
    put_u16(&mut header, &sizes);
    put_u16(&mut header, &[0, 0, 0]);
    header
}

/// What is at `addresses` stands at `offset` of the file.
fn put_program_header(header: &mut Vec<u8>, kind: u32, offset: u64, addresses: Range<u64>) {
    let len = addresses.end - addresses.start;
    let flags = if kind == PT_LOAD {
        READ_WRITE_EXECUTE
    } else {
        0
    };
    let address = addresses.start;
    put_u32(header, &[kind, flags]);
    put_u64(header, &[offset, address, address, len, len, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u16_at(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Type, offset, virtual address, physical address, length in the file and in memory, alignment.
    fn program_header(layout: &Layout, index: usize) -> (u32, [u64; 6]) {
        let at = 64 + 56 * index;
        let bytes = &layout.front[at..at + 56];
        let kind = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        (
            kind,
            std::array::from_fn(|word| u64_at(bytes, 8 + 8 * word)),
        )
    }

    fn layout() -> Layout {
        Layout::new(&[0..0xa_0000, 1 << 32..(1 << 32) + 0x2000], &[7; 5000])
    }

    #[test]
    fn header_tells_of_a_core_for_x86_64() {
        let front = layout().front;
        assert_eq!(front[..8], *b"\x7fELF\x02\x01\x01\0");
        assert_eq!(u16_at(&front, 16), 4);
        assert_eq!(u16_at(&front, 18), 62);
        assert_eq!(u64_at(&front, 32), 64, "e_phoff");
        assert_eq!(u64_at(&front, 40), 0, "e_shoff");
        assert_eq!(u16_at(&front, 52), 64, "e_ehsize");
        assert_eq!(u16_at(&front, 54), 56, "e_phentsize");
        assert_eq!(u16_at(&front, 56), 3, "e_phnum");
        assert_eq!(u16_at(&front, 60), 0, "e_shnum");
    }

    #[test]
    fn notes_come_first_and_end_the_front() {
        let layout = layout();
        let start = 64 + 3 * 56;
        let expected = [start, 0, 0, 5000, 5000, 0];
        assert_eq!(program_header(&layout, 0), (4, expected));
        assert_eq!(layout.front[start as usize..], [7; 5000]);
    }

    #[test]
    fn memory_stands_at_pages_of_the_file_with_its_physical_address() {
        let layout = layout();
        let high = 1 << 32;
        // 232 bytes of headers and 5000 of notes are two pages.
        let first = (1, [0x2000, 0, 0, 0xa_0000, 0xa_0000, 0]);
        let second = (1, [0xa_2000, high, high, 0x2000, 0x2000, 0]);
        assert_eq!(program_header(&layout, 1), first);
        assert_eq!(program_header(&layout, 2), second);
        assert_eq!(layout.offsets, [0x2000, 0xa_2000]);
        assert_eq!(layout.len, 0xa_4000);
    }
}
