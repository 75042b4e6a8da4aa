//! Open descriptors that come with a request.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// The name under which a descriptor of the kernel comes.
pub const KERNEL: &str = "kernel";
/// The name under which a descriptor of the initial RAM disk comes.
pub const INITRAMFS: &str = "initramfs";

/// Descriptors by the name of the device that they belong to, or by [`KERNEL`] or [`INITRAMFS`]. Those of one device are
/// in the order that the client named them in. What nobody takes is closed.
#[derive(Debug, Default)]
pub struct Descriptors(BTreeMap<String, Vec<OwnedFd>>);

impl Descriptors {
    /// The name of a device that is added without one, until it has got one.
    pub const UNNAMED: &str = "";

    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds those of `id`, in place of any that were there.
    pub fn insert(&mut self, id: impl Into<String>, descriptors: Vec<OwnedFd>) {
        self.0.insert(id.into(), descriptors);
    }

    /// Takes those of `id`; empty if there are none.
    pub fn take(&mut self, id: &str) -> Vec<OwnedFd> {
        self.0.remove(id).unwrap_or_default()
    }

    /// Those of `id`; empty if there are none.
    pub fn get(&self, id: &str) -> &[OwnedFd] {
        self.0.get(id).map_or(&[], Vec::as_slice)
    }

    /// Gives those of the device without a name ([`Descriptors::UNNAMED`]) to `id`: the name that it has got.
    pub fn assign(&mut self, id: &str) {
        if let Some(descriptors) = self.0.remove(Self::UNNAMED) {
            self.insert(id, descriptors);
        }
    }

    /// How many belong to `id`.
    pub fn count(&self, id: &str) -> usize {
        self.0.get(id).map_or(0, Vec::len)
    }
}
