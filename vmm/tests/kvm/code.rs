//! A tiny assembler for 32-bit protected mode without paging, as the PVH entry leaves it, and the ELF file around it.

/// Where the code is loaded and entered.
pub(crate) const BASE: u32 = 0x10_0000;
/// A place in memory for the guest's own use.
pub(crate) const SCRATCH: u32 = 0x20_0000;

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_ENTRY: u32 = 18;

/// Machine code under construction.
#[derive(Default)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Any bytes, for what has no name here.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Address of the next instruction.
    pub(crate) fn here(&self) -> u32 {
        BASE + self.0.len() as u32
    }

    /// `mov dx, port; mov al, value; out dx, al`.
    pub(crate) fn out(self, port: u16, value: u8) -> Self {
        self.port(port).bytes(&[0xb0, value, 0xee])
    }

    /// `mov dx, port; in al, dx`.
    pub(crate) fn input(self, port: u16) -> Self {
        self.port(port).bytes(&[0xec])
    }

    /// `mov dx, port; out dx, al`.
    pub(crate) fn out_al(self, port: u16) -> Self {
        self.port(port).bytes(&[0xee])
    }

    fn port(self, port: u16) -> Self {
        self.bytes(&[0x66, 0xba]).bytes(&port.to_le_bytes())
    }

    /// `mov byte [address], value`.
    pub(crate) fn store8(self, address: u32, value: u8) -> Self {
        self.bytes(&[0xc6, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&[value])
    }

    /// `mov word [address], value`.
    pub(crate) fn store16(self, address: u32, value: u16) -> Self {
        self.bytes(&[0x66, 0xc7, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&value.to_le_bytes())
    }

    /// `mov dword [address], value`.
    pub(crate) fn store32(self, address: u32, value: u32) -> Self {
        self.bytes(&[0xc7, 0x05])
            .bytes(&address.to_le_bytes())
            .bytes(&value.to_le_bytes())
    }

    /// `mov eax, [address]`.
    pub(crate) fn load_eax(self, address: u32) -> Self {
        self.bytes(&[0xa1]).bytes(&address.to_le_bytes())
    }

    /// `mov [address], eax`.
    pub(crate) fn store_eax(self, address: u32) -> Self {
        self.bytes(&[0xa3]).bytes(&address.to_le_bytes())
    }

    /// `inc dword [address]`.
    pub(crate) fn increment(self, address: u32) -> Self {
        self.bytes(&[0xff, 0x05]).bytes(&address.to_le_bytes())
    }

    /// `test eax, mask`.
    pub(crate) fn test_eax(self, mask: u32) -> Self {
        self.bytes(&[0xa9]).bytes(&mask.to_le_bytes())
    }

    /// `jz target`.
    pub(crate) fn jump_if_zero(self, target: u32) -> Self {
        let from = self.here() + 6;
        self.bytes(&[0x0f, 0x84])
            .bytes(&target.wrapping_sub(from).to_le_bytes())
    }

    /// `jmp target`.
    pub(crate) fn jump(self, target: u32) -> Self {
        let from = self.here() + 5;
        self.bytes(&[0xe9])
            .bytes(&target.wrapping_sub(from).to_le_bytes())
    }

    /// Each byte of `text` to the serial port.
    pub(crate) fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out(0x3f8, byte))
    }

    /// Turns the machine off by ACPI's sleep control register, and waits for it.
    pub(crate) fn power_off(self) -> Self {
        self.out(0x600, 5 << 2 | 1 << 5).stop()
    }

    /// `hlt`, again and again.
    pub(crate) fn stop(self) -> Self {
        let here = self.here();
        self.bytes(&[0xf4]).jump(here)
    }

    /// The code alone.
    pub(crate) fn raw(self) -> Vec<u8> {
        self.0
    }

    /// The ELF file: one segment to load at [`BASE`], and the note that names it as PVH entry.
    pub(crate) fn elf(self) -> Vec<u8> {
        const HEADERS: u64 = 64 + 2 * 56;
        const NOTE: u64 = 24;
        let code = HEADERS + NOTE;
        let len = self.0.len() as u64;
        let base = u64::from(BASE);

        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        file.resize(16, 0);
        file.extend(2_u16.to_le_bytes()); // executable
        file.extend(62_u16.to_le_bytes()); // x86-64
        file.extend(1_u32.to_le_bytes());
        file.extend(base.to_le_bytes());
        file.extend(64_u64.to_le_bytes()); // program headers
        file.extend(0_u64.to_le_bytes()); // section headers
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 2, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for (kind, flags, offset, address, len, align) in [
            (1_u32, 7_u32, code, base, len, 1_u64),
            (4, 4, HEADERS, 0, NOTE, 4),
        ] {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for word in [offset, address, address, len, len, align] {
                file.extend(word.to_le_bytes());
            }
        }
        for word in [4_u32, 8, NOTE_ENTRY] {
            file.extend(word.to_le_bytes());
        }
        file.extend(b"Xen\0");
        file.extend(base.to_le_bytes());
        assert_eq!(file.len() as u64, code);
        file.extend(self.0);
        file
    }
}
