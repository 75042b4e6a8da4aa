//! Virtio over PCI, modern devices only (virtio 1.2, 4.1).
//!
//! All registers are in BAR 0, and the MSI-X table and pending bits too. Notifications are bound to eventfds wherever the
//! BAR is decoded. There is no interrupt pin: a driver uses MSI-X, or polls.

mod common;
mod interrupt;
mod layout;
mod state;
#[cfg(test)]
pub(super) mod tests;
mod window;

use std::io;
use std::sync::Arc;

use tracing::warn;

use self::common::Selectors;
use self::interrupt::Vectors;
use self::layout::{BAR, Capabilities, Layout, Region};
use super::core::{Signals, TransportCore};
use crate::memory::GuestRam;
use crate::pci::{BarChange, ConfigSpace, Identity, Msi, Msix, PciFunction};
use crate::throttle::Throttle;
use crate::virtio::{Doorbell, Interrupt, Notify, VirtioDevice};

const VENDOR: u16 = 0x1af4;
const SUBSYSTEM: u16 = 0x1100;
/// PCI device ID of a modern device less its virtio device ID.
const DEVICE_BASE: u16 = 0x1040;
/// What the MSI-X control word can count.
const MAX_VECTORS: u16 = 2048;

static UNBOUND: Throttle = Throttle::per_minute(10);

/// Why a device cannot be put on PCI.
#[derive(Debug, thiserror::Error)]
pub enum VirtioPciError {
    /// The number of MSI-X vectors is not from 1 to 2048.
    #[error("{0} MSI-X vectors, expected 1 to {MAX_VECTORS}")]
    Vectors(u16),
    /// The eventfds for notifications cannot be had.
    #[error("cannot get eventfds for queue notifications")]
    Notifiers(#[from] io::Error),
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    core: TransportCore,
    signals: Arc<Signals>,
    vectors: Arc<Vectors>,
    config: ConfigSpace,
    capabilities: Capabilities,
    layout: Layout,
    msix: Msix,
    notify: Arc<dyn Notify>,
    selectors: Selectors,
    /// Where the BAR is decoded, and which queues' notifications are bound there.
    bound: Option<(u64, Vec<bool>)>,
}

impl VirtioPci {
    /// Puts `device` behind registers. It finds its queues in `memory`, interrupts by `msi`, and is notified by `notify`.
    ///
    /// # Errors
    ///
    /// [`VirtioPciError`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        msi: Arc<dyn Msi>,
        notify: Arc<dyn Notify>,
    ) -> Result<Self, VirtioPciError> {
        if !(1..=MAX_VECTORS).contains(&msi.vectors()) {
            return Err(VirtioPciError::Vectors(msi.vectors()));
        }
        let queues = device.queue_sizes().len();
        let device_id = device.device_id();
        let signals = Arc::new(Signals::default());
        let vectors = Arc::new(Vectors::new(Arc::clone(&msi), Arc::clone(&signals), queues));
        let interrupt = Arc::clone(&vectors) as Arc<dyn Interrupt>;
        let core = TransportCore::new(device, memory, Arc::clone(&signals), interrupt)?;
        let layout = Layout::new(core.queue_count(), msi.vectors());
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + device_id,
            revision: 1,
            class: class(device_id),
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
        });
        let msix = Msix::new(msi);
        let capabilities = layout.describe(&mut config, msix.control());
        Ok(Self {
            core,
            signals,
            vectors,
            config,
            capabilities,
            layout,
            msix,
            notify,
            selectors: Selectors::default(),
            bound: None,
        })
    }

    /// The MSI-X vectors that `device` can use: one for each queue, and one for configuration changes.
    pub fn vector_count(device: &dyn VirtioDevice) -> u16 {
        let queues = u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX);
        queues.saturating_add(1).min(MAX_VECTORS)
    }

    /// The device behind the registers.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.core.device()
    }

    /// Reads registers in BAR 0.
    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        let Some((region, offset)) = self.layout.find(offset, data.len()) else {
            return;
        };
        match region {
            Region::Common => {
                let generation = self.signals.generation();
                let registers =
                    common::read(&self.core, &self.vectors, generation, &self.selectors);
                let start = offset as usize;
                data.copy_from_slice(&registers[start..start + data.len()]);
            }
            Region::Isr => data.fill(self.signals.take_isr().bits()),
            Region::Device => self.core.read_config(offset, data),
            // Notification registers are for writing.
            Region::Notify => data.fill(0),
            Region::MsixTable => self.msix.read_table(offset, data),
            Region::MsixPending => self.msix.read_pending(offset, data),
        }
    }

    /// Writes registers in BAR 0.
    fn write_registers(&mut self, offset: u64, data: &[u8]) {
        let Some((region, offset)) = self.layout.find(offset, data.len()) else {
            return;
        };
        match region {
            Region::Common => {
                common::write(
                    &mut self.core,
                    &self.vectors,
                    &mut self.selectors,
                    offset,
                    data,
                );
            }
            Region::Device => self.core.write_config(offset, data),
            Region::Notify => {
                let index = offset / u64::from(layout::NOTIFY_MULTIPLIER);
                // Bounded by the length of the region.
                self.core.notify(index as u16);
            }
            Region::MsixTable => self.msix.write_table(offset, data),
            Region::Isr | Region::MsixPending => {}
        }
    }

    /// Binds the notification registers of all queues at the BAR address `base`.
    fn bind(&mut self, base: u64) {
        let bind = |(index, eventfd)| {
            let doorbell = Doorbell::Any(base + self.layout.notify_offset(index));
            let result = self.notify.bind(doorbell, eventfd);
            if let Err(error) = &result
                && let Some(suppressed) = UNBOUND.allow()
            {
                warn!(
                    device = self.core.device().name(),
                    queue = index,
                    %error,
                    suppressed,
                    "notifications of the queue cost an exit"
                );
            }
            result.is_ok()
        };
        let bound = (0..).zip(self.core.notifiers()).map(bind).collect();
        self.bound = Some((base, bound));
    }

    fn unbind(&mut self) {
        let Some((base, bound)) = self.bound.take() else {
            return;
        };
        for ((index, eventfd), bound) in (0..).zip(self.core.notifiers()).zip(bound) {
            if bound {
                // Was bound with the same arguments.
                let doorbell = Doorbell::Any(base + self.layout.notify_offset(index));
                let _ = self.notify.unbind(doorbell, eventfd);
            }
        }
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        self.read_window(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let changes = self.config.write(offset, data);
        self.write_msix_control(offset, data);
        self.write_window(offset, data);
        changes
    }

    fn bar_mapped(&mut self, bar: u8, address: Option<u64>) {
        if bar != BAR {
            return;
        }
        self.unbind();
        if let Some(address) = address {
            self.bind(address);
        }
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == BAR {
            self.read_registers(offset, data);
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == BAR {
            self.write_registers(offset, data);
        }
    }

    fn pause(&mut self) {
        self.core.pause();
    }

    fn resume(&mut self) {
        self.core.resume();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.unbind();
    }
}

/// Base class, sub-class and programming interface by virtio device ID: other mass storage, Ethernet, or none.
fn class(device_id: u16) -> u32 {
    match device_id {
        1 => 0x02_00_00,
        2 => 0x01_80_00,
        _ => 0x00_ff_00,
    }
}
