//! Entropy device (virtio 1.2, 5.4): random bytes of the host, read straight into guest memory.

mod device;
mod handler;
mod metrics;

#[cfg(test)]
mod tests;

pub use device::Rng;
pub use handler::MAX_REQUEST_LEN;
pub use metrics::RngMetrics;
