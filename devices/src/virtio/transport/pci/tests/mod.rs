//! Tests as a driver makes them: through configuration space and the MMIO bus.

mod hostile;
mod machine;
mod msix;
mod negotiation;
mod queues;
mod saved;

pub(in crate::virtio::transport) use machine::Machine;
