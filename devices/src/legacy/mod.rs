//! Devices of the PC that predate PCI: serial port, CMOS clock, keyboard controller reset, boot marks, pvpanic.
//!
//! Registers are one byte wide. An access of another length means nothing: a read leaves the bytes as they are, a write
//! is lost.

mod boot_mark;
mod cmos;
mod i8042;
mod pvpanic;
mod serial;

pub use boot_mark::{BOOT_MARK_VALUE, BootMark, DebugPort, MAX_MARKS};
pub use cmos::{CENTURY, Cmos};
pub use i8042::I8042;
pub use pvpanic::PvPanic;
pub use serial::{RECEIVE_FIFO_SIZE, SerialInput, SerialLine, SerialPort};

#[cfg(test)]
mod tests;
