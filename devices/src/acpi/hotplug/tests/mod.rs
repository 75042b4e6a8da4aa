mod any_access;
mod cpu;
mod memory;
mod pci;

use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::pci::SlotGate;

/// An owner, and what reached it and the guest.
struct Machine {
    events: EventDevice,
    interrupt: EventFd,
    owner: Arc<Owner>,
    gate: SlotGate,
}

#[derive(Default)]
struct Owner {
    wakes: AtomicUsize,
}

impl Platform for Owner {
    fn raise(&self, event: PlatformEvent) {
        assert_eq!(event, PlatformEvent::Ejected);
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Machine {
    fn new() -> Self {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        Self {
            events: EventDevice::new(line),
            interrupt,
            owner: Arc::default(),
            gate: SlotGate::default(),
        }
    }

    fn pci(&self) -> PciSlots {
        PciSlots::new(self.events.clone(), self.owner.clone(), self.gate.clone())
    }

    fn cpus(&self, boot: u32, max: u32) -> CpuSlots {
        CpuSlots::new(boot, max, self.events.clone(), self.owner.clone())
    }

    fn memory(&self, slots: u8) -> MemorySlots {
        MemorySlots::new(slots, self.events.clone(), self.owner.clone())
    }

    /// What the guest finds in the event register once it was interrupted; none if it was not.
    fn interrupted(&self) -> Option<u32> {
        self.interrupt.read().ok()?;
        Some(read(&mut self.events.clone(), 0))
    }

    fn wakes(&self) -> usize {
        self.owner.wakes.swap(0, Ordering::Relaxed)
    }
}

fn read(device: &mut impl BusDevice, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(device: &mut impl BusDevice, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}
