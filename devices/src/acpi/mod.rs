//! Devices of a hardware-reduced ACPI machine (ACPI 6.5, section 4.1): power registers and the generic event device.

mod event;
mod power;

pub use event::{Event, EventDevice};
pub use power::{POWER_REGISTERS_LEN, Power, RESET_VALUE, SLEEP_TYPE_S5};

#[cfg(test)]
mod tests;
