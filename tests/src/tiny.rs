//! Guests of a few instructions, for tests that need no operating system.
//!
//! A [`Program`] is entered by its PVH note in 32-bit protected mode without paging. Its instructions are so plain that
//! a KVM which emulates the guest's kernel mode runs them too.

/// Where the program is loaded and entered.
const ENTRY: u32 = 0x10_0000;
const HEADER: u32 = 64;
const PROGRAM_HEADER: u32 = 56;
const NOTE: u32 = HEADER + 2 * PROGRAM_HEADER;
const NOTE_SIZE: u32 = 20;
const CODE: u32 = 0x1000;

/// The type of the note that gives the PVH entry (XEN_ELFNOTE_PHYS32_ENTRY).
const PHYS32_ENTRY: u32 = 18;

/// Machine code, one instruction after the other. What follows the last one is a halt for ever.
#[derive(Default)]
pub struct Program {
    code: Vec<u8>,
}

impl Program {
    /// A program that only halts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a byte to an I/O port.
    pub fn out(mut self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code.extend([0x66, 0xba, low, high]); // mov dx, port
        self.code.extend([0xb0, value]); // mov al, value
        self.code.push(0xee); // out dx, al
        self
    }

    /// Writes text to the first serial port.
    pub fn print(self, text: &str) -> Self {
        text.bytes()
            .fold(self, |program, byte| program.out(0x3f8, byte))
    }

    /// Writes a byte to a guest-physical address below 4 GiB.
    pub fn store(mut self, address: u32, value: u8) -> Self {
        self.code.extend([0xc6, 0x05]); // mov byte [address], value
        self.code.extend(address.to_le_bytes());
        self.code.push(value);
        self
    }

    /// Asks the keyboard controller to pulse the reset line.
    pub fn reset(self) -> Self {
        self.out(0x64, 0xfe)
    }

    /// Executes an undefined instruction. With no handler for it the CPU shuts down: a triple fault.
    pub fn triple_fault(mut self) -> Self {
        self.code.extend([0x0f, 0x01, 0x1d]); // lidt [zeroes]
        let zeroes = ENTRY + u32::try_from(self.code.len()).unwrap_or(0) + 6;
        self.code.extend(zeroes.to_le_bytes());
        self.code.extend([0x0f, 0x0b]); // ud2
        self.code.extend([0; 6]); // the empty table's limit and base
        self
    }

    /// The program as an ELF file.
    pub fn elf(&self) -> Vec<u8> {
        let mut code = self.code.clone();
        code.extend([0xfa, 0xf4, 0xeb, 0xfc]); // cli; again: hlt; jmp again
        let size = code.len() as u64;

        let mut file = b"\x7fELF\x02\x01\x01".to_vec(); // 64-bit, little-endian
        file.resize(16, 0);
        put16(&mut file, &[2, 62]); // ET_EXEC, EM_X86_64
        put32(&mut file, &[1]);
        put64(&mut file, &[u64::from(ENTRY), u64::from(HEADER), 0]);
        put32(&mut file, &[0]);
        put16(&mut file, &[64, 56, 2, 64, 0, 0]);

        put32(&mut file, &[1, 5]); // PT_LOAD, readable and executable
        put64(
            &mut file,
            &[
                u64::from(CODE),
                u64::from(ENTRY),
                u64::from(ENTRY),
                size,
                size,
                0x1000,
            ],
        );
        put32(&mut file, &[4, 4]); // PT_NOTE
        let note = u64::from(NOTE_SIZE);
        put64(&mut file, &[u64::from(NOTE), 0, 0, note, note, 4]);

        put32(&mut file, &[4, 4, PHYS32_ENTRY]);
        file.extend(b"Xen\0");
        put32(&mut file, &[ENTRY]);

        file.resize(CODE as usize, 0);
        file.extend(code);
        file
    }
}

fn put16(file: &mut Vec<u8>, values: &[u16]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put32(file: &mut Vec<u8>, values: &[u32]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put64(file: &mut Vec<u8>, values: &[u64]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
