//! Devices of a hardware-reduced ACPI machine (ACPI 6.5, section 4.1): power registers, the generic event device, and the
//! registers for what comes and goes while it runs.

mod event;
pub mod hotplug;
mod pm_timer;
mod power;

pub use event::{Event, EventDevice};
pub use pm_timer::{PM_TIMER_LEN, PmTimer};
pub use power::{POWER_REGISTERS_LEN, Power, RESET_VALUE, SLEEP_TYPE_S5};

#[cfg(test)]
mod tests;
