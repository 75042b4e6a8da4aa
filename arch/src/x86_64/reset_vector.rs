//! The code at F000:FFF0, where a PC's firmware begins after a reset.
//!
//! There is no firmware, but kernels jump there: Linux resets a hardware-reduced ACPI machine by EFI, and where there is
//! no EFI it goes back to real mode and enters the BIOS at this address. The code here resets the machine.

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryError};

use super::layout::{RESET_PORT, RESET_VALUE, RESET_VECTOR};

/// Writes the code to guest memory.
pub fn write<M: GuestMemoryBackend>(mem: &M) -> Result<(), GuestMemoryError> {
    mem.write_slice(&code(), RESET_VECTOR)
}

/// Real-mode code that writes the ACPI reset register and waits.
fn code() -> [u8; 9] {
    let [port_low, port_high] = RESET_PORT.to_le_bytes();
    [
        0xba,
        port_low,
        port_high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::x86_64::layout::{ACPI_AREA, HIGH_RAM_START};

    #[test]
    fn code_lies_between_the_acpi_tables_and_high_ram() {
        assert_eq!(RESET_VECTOR, GuestAddress(0xf_0000 + 0xfff0));
        assert!(RESET_VECTOR.0 >= ACPI_AREA.end());
        assert!(RESET_VECTOR.0 + code().len() as u64 <= HIGH_RAM_START);
    }

    #[test]
    fn code_is_written_where_the_processor_finds_it() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&mem).unwrap();
        let mut start = [0; 4];
        mem.read_slice(&mut start, RESET_VECTOR).unwrap();
        assert_eq!(start, [0xba, 0x02, 0x06, 0xb0]);
    }
}
