//! What a PCI function offers, and what it is handed.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::state::Persist;

/// A base address register whose decoded range changed with a write to configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarChange {
    /// Index of the BAR, 0 to 5; a 64-bit BAR goes by its lower one.
    pub bar: u8,
    /// Where it shall be decoded now; none if memory decoding is off.
    pub to: Option<u64>,
}

/// One PCI function (device) behind the host bridge.
///
/// All calls come on a vCPU's exit with the guest's own offsets and lengths.
pub trait PciFunction: Persist + Send {
    /// Reads configuration space: `offset` is below 4096, `data` holds 1, 2 or 4 bytes and does not cross a dword.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, bounds as for reads. Returns the BARs whose decoding the write changed; the caller
    /// moves them on the bus and answers with [`PciFunction::bar_mapped`].
    fn write_config(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange>;

    /// BAR `bar` is now decoded at `address`, or nowhere.
    fn bar_mapped(&mut self, bar: u8, address: Option<u64>);

    /// Answers a read at `offset` in BAR `bar`.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes a write at `offset` in BAR `bar`.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// The machine pauses: stops all work, in-flight requests drained. vCPUs do not run.
    fn pause(&mut self);

    /// The mirror of [`PciFunction::pause`].
    fn resume(&mut self);
}

/// A message-signalled interrupt: the write that raises it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address (both halves).
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// The MSI-X vectors of one function, as the interrupt controller sees them.
///
/// Each vector has an eventfd for its whole life. While a vector is connected, a write to its eventfd raises the
/// interrupt without an exit; while it is not, the count stays in the eventfd, which therefore is the pending bit, and
/// connecting delivers it.
pub trait Msi: Send + Sync {
    /// Number of vectors.
    fn vectors(&self) -> u16;

    /// The eventfd of `vector`, which is below [`Msi::vectors`].
    fn eventfd(&self, vector: u16) -> &EventFd;

    /// Routes `vector` to `message` and connects its eventfd.
    ///
    /// # Errors
    ///
    /// The interrupt controller refused the route; the vector is then not connected.
    fn connect(&self, vector: u16, message: MsiMessage) -> io::Result<()>;

    /// Disconnects the eventfd of `vector`, connected or not.
    ///
    /// # Errors
    ///
    /// The interrupt controller refused.
    fn disconnect(&self, vector: u16) -> io::Result<()>;
}
