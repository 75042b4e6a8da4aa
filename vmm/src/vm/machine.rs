//! The parts of a built machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::metrics::Metrics;
use api::request::{Counters, DeviceNode};
use arch::x86_64::layout;
use devices::acpi::EventDevice;
use devices::acpi::hotplug::CpuSlots;
use devices::virtio::Notify;
use devices::virtio::balloon::BalloonHandle;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryError};

use super::attached::AttachedDevices;
use super::ram::MachineMemory;
use super::transport::Transport;
use super::vcpus::Vcpus;
use crate::kvm::irq::Interrupts;
use crate::kvm::vm::Vm;
use crate::vcpu::Buses;
use crate::wire::generation::Generation;
use crate::wire::line::HostLine;

/// Everything that a machine consists of while it lives. Nothing is left of it when this is dropped: no thread, no
/// descriptor, no memory.
pub(super) struct Machine {
    pub(super) vcpus: Vcpus,
    /// Which vCPUs a debugger lets run.
    pub(super) hold: Hold,
    pub(super) transport: Transport,
    pub(super) attached: AttachedDevices,
    pub(super) serial: Option<Arc<HostLine>>,
    pub(super) events: EventDevice,
    pub(super) cpu_slots: CpuSlots,
    pub(super) buses: Buses,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) notify: Arc<dyn Notify>,
    pub(super) memory: MachineMemory,
    /// Held for as long as there is guest memory and a vCPU.
    pub(super) vm: Vm,
}

/// What a debugger holds. It is apart from the machine's being paused: vCPUs run when neither stands against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing.
    #[default]
    None,
    /// All vCPUs but these.
    Except(Vec<u32>),
}

impl Hold {
    /// Every vCPU.
    pub(super) const ALL: Self = Self::Except(Vec::new());
}

impl Machine {
    /// Takes all vCPUs out of the guest for a debugger. Devices go on.
    pub(super) fn hold_vcpus(&mut self) {
        self.hold = Hold::ALL;
        self.pause_vcpus();
        if let Some(serial) = &self.serial {
            serial.resume();
        }
    }

    /// Returns when all vCPUs are out of the guest.
    pub(super) fn pause_vcpus(&mut self) {
        // A vCPU may wait for a slow reader of the serial port.
        if let Some(serial) = &self.serial {
            serial.pause();
        }
        self.vcpus.pause();
    }

    /// Lets those vCPUs run that no debugger holds.
    pub(super) fn resume_vcpus(&mut self) {
        match &self.hold {
            Hold::None => self.vcpus.resume(),
            Hold::Except(free) if free.is_empty() => {}
            Hold::Except(free) => self.vcpus.resume_only(free),
        }
    }

    /// Lets `vcpu` run, which stopped by itself, unless a debugger holds it.
    pub(super) fn resume_vcpu(&mut self, vcpu: u32) {
        match &self.hold {
            Hold::Except(free) if !free.contains(&vcpu) => {}
            _ => self.vcpus.resume_only(&[vcpu]),
        }
    }

    /// Returns when all devices have handed their queues back. vCPUs do not run.
    pub(super) fn pause_devices(&mut self) {
        self.transport.pause();
    }

    pub(super) fn resume_devices(&mut self) {
        self.transport.resume();
        if let Some(serial) = &self.serial {
            serial.resume();
        }
    }

    /// Puts `generation` where the guest finds it.
    pub(super) fn write_generation(&self, generation: &Generation) -> Result<(), GuestMemoryError> {
        let memory = self.memory.map.memory();
        memory.write_slice(generation.bytes(), GuestAddress(layout::GENERATION.start))
    }

    /// The devices, with their places on the PCI bus if they have one.
    pub(super) fn device_tree(&self) -> BTreeMap<String, DeviceNode> {
        self.attached.tree()
    }

    pub(super) fn counters(&self) -> Counters {
        self.attached.counters()
    }

    /// What the guest can use of its memory, in bytes: without what it says to have in a balloon.
    pub(super) fn usable_memory(&self) -> u64 {
        let size = self.memory.size();
        let balloon = self.attached.balloon();
        size.saturating_sub(balloon.map_or(0, BalloonHandle::actual))
    }

    /// Adds what this machine measures to `metrics`.
    pub(super) fn measure(&self, metrics: &mut Metrics) {
        metrics.vcpus = self.vcpus.measure();
        metrics.memory.guest = self.memory.size();
        // A guest may say anything of its balloon.
        metrics.memory.balloon = self.memory.size() - self.usable_memory();
        metrics.balloon = self.attached.balloon_metrics();
        metrics.disks = self.attached.disks();
        metrics.nets = self.attached.nets();
        metrics.consoles = self.attached.consoles();
        metrics.backends = self.attached.backends();
        metrics.vsocks = self.attached.vsocks();
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
