//! The parts of a built machine.

use std::sync::Arc;

use devices::acpi::EventDevice;
use devices::memory::GuestRam;
use devices::pci;

use crate::kvm::vm::Vm;
use crate::vcpu::{Buses, VcpuThread};
use crate::wire::serial::SerialHost;

/// Everything that a machine consists of while it lives. Nothing is left of it when this is dropped: no thread, no
/// descriptor, no memory.
pub(super) struct Machine {
    pub(super) vcpus: Vec<VcpuThread>,
    pub(super) pci: pci::Root,
    pub(super) serial: Option<Arc<SerialHost>>,
    pub(super) events: EventDevice,
    pub(super) buses: Buses,
    pub(super) memory: GuestRam,
    /// Held for as long as there is guest memory and a vCPU.
    pub(super) vm: Vm,
}

impl Machine {
    /// Returns when all vCPUs are out of the guest.
    pub(super) fn pause_vcpus(&self) {
        // A vCPU may wait for a slow reader of the serial port.
        if let Some(serial) = &self.serial {
            serial.pause();
        }
        let pausing: Vec<_> = self.vcpus.iter().map(VcpuThread::pause).collect();
        for vcpu in pausing {
            vcpu.wait();
        }
    }

    pub(super) fn resume_vcpus(&self) {
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    /// Returns when all devices have handed their queues back. vCPUs do not run.
    pub(super) fn pause_devices(&mut self) {
        self.pci.pause();
    }

    pub(super) fn resume_devices(&mut self) {
        self.pci.resume();
        if let Some(serial) = &self.serial {
            serial.resume();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.pause_vcpus();
        self.vcpus.clear();
        self.pause_devices();
        // The buses and the PCI root hold each other.
        self.buses.pio.clear();
        self.buses.mmio.clear();
    }
}
