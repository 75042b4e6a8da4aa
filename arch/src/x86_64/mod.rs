//! The `x86_64` machine: address map, boot protocols, registers, CPUID and ACPI tables.

pub mod acpi;
pub mod boot;
mod boot_params;
pub mod cpuid;
pub mod interrupts;
pub mod layout;
pub mod memory_map;
pub mod msr;
mod pvh;
pub mod registers;
pub mod reset_vector;
