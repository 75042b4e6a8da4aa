//! Virtio over MMIO, version 2 of its registers (virtio 1.2, 4.2): a page of registers and one interrupt line for each
//! device. Nothing enumerates them: the guest is told of the page and the line by other means, such as ACPI.

mod interrupt;
mod registers;
mod slots;
mod state;
#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::sync::Arc;

use tracing::warn;

use self::interrupt::Line;
use self::registers::{QUEUE_NOTIFY, Selectors};
use super::core::{Signals, TransportCore};
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::memory::GuestRam;
use crate::throttle::Throttle;
use crate::virtio::{Doorbell, Interrupt, Notify, VirtioDevice};

pub use self::slots::{SLOT_LEN, Slots, SlotsError};

/// Where device configuration space begins.
const CONFIG: u64 = 0x100;

static UNBOUND: Throttle = Throttle::per_minute(10);

/// A virtio device behind the registers of virtio-mmio.
///
/// A driver accesses control registers by 32 bits (virtio 1.2, 4.2.2.2); accesses of other widths, or across two
/// registers, read all ones and write nothing.
pub struct VirtioMmio {
    core: TransportCore,
    signals: Arc<Signals>,
    line: Arc<Line>,
    notify: Arc<dyn Notify>,
    selectors: Selectors,
    /// The queues whose notifications are bound to their eventfds.
    bound: Vec<Doorbell>,
}

impl VirtioMmio {
    /// Puts `device` behind registers at the guest physical `address`. It finds its queues in `memory`, interrupts by
    /// `line`, and is notified by `notify`.
    ///
    /// # Errors
    ///
    /// The eventfds for notifications cannot be had.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        line: InterruptLine,
        notify: Arc<dyn Notify>,
        address: u64,
    ) -> io::Result<Self> {
        let signals = Arc::new(Signals::default());
        let line = Arc::new(Line::new(line, Arc::clone(&signals)));
        let interrupt = Arc::clone(&line) as Arc<dyn Interrupt>;
        let core = TransportCore::new(device, memory, Arc::clone(&signals), interrupt)?;
        let mut mmio = Self {
            core,
            signals,
            line,
            notify,
            selectors: Selectors::default(),
            bound: Vec::new(),
        };
        mmio.bind(address + QUEUE_NOTIFY);
        Ok(mmio)
    }

    /// The device behind the registers.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.core.device()
    }

    /// The machine pauses: takes the queues back from the device, in-flight requests drained.
    pub fn pause(&mut self) {
        self.core.pause();
    }

    /// The mirror of [`VirtioMmio::pause`].
    pub fn resume(&mut self) {
        self.core.resume();
        // An edge that was made just before the machine was saved may not be part of what was saved.
        self.line.remind();
    }

    /// Binds the notifications of all queues, which are writes of their numbers to `address`.
    fn bind(&mut self, address: u64) {
        for (value, eventfd) in (0..).zip(self.core.notifiers()) {
            let doorbell = Doorbell::Value { address, value };
            match self.notify.bind(doorbell, eventfd) {
                Ok(()) => self.bound.push(doorbell),
                Err(error) => {
                    if let Some(suppressed) = UNBOUND.allow() {
                        warn!(
                            device = self.core.device().name(),
                            queue = value,
                            %error,
                            suppressed,
                            "notifications of the queue cost an exit"
                        );
                    }
                }
            }
        }
    }
}

impl BusDevice for VirtioMmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && let Some(value) = registers::read(&self.core, &self.signals, &self.selectors, offset)
        {
            *data = value.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.write_config(offset, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            registers::write(
                &mut self.core,
                &self.signals,
                &mut self.selectors,
                offset,
                u32::from_le_bytes(data),
            );
        }
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        for doorbell in std::mem::take(&mut self.bound) {
            let Doorbell::Value { value, .. } = doorbell else {
                continue;
            };
            if let Some(eventfd) = self.core.notifiers().get(value as usize) {
                // Was bound with the same arguments.
                let _ = self.notify.unbind(doorbell, eventfd);
            }
        }
    }
}
