//! Tests as a driver makes them: through the MMIO bus.

mod hostile;
mod interrupt;
mod machine;
mod registers;
mod saved;
mod slots;

pub(in crate::virtio::transport) use machine::Machine;
