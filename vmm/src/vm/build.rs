//! How a machine is built. [`build`] is the list; the modules below it hold its items.

mod cpus;
mod devices;
mod error;
mod payload;

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use ::devices::memory::{GuestRam, Ram};
use api::config::{MemoryConfig, VmConfig};
use arch::x86_64::acpi::{AcpiConfig, AcpiHotplug, AcpiTables};
use arch::x86_64::{layout, reset_vector};

use self::devices::VirtioSlots;
pub use self::error::BuildError;
use self::payload::Loading;
use super::Paused;
use super::machine::Machine;
use super::notices::Notices;
use crate::kvm::capabilities::Host;
use crate::kvm::irq::Interrupts;
use crate::kvm::memory::{self, Backing, HugePages};
use crate::kvm::notify::IoEvents;
use crate::kvm::vm::Vm;
use crate::vcpu::{Buses, VcpuThread, Watch};
use crate::wire::Resources;

/// Builds the machine of `config` from `resources`. It stands at the first instruction of its kernel.
///
/// # Errors
///
/// [`BuildError`]; nothing of the machine is left, and `resources` are as they were.
pub fn build(
    host: &Host,
    config: &VmConfig,
    resources: &Resources,
    notices: &Arc<Notices>,
    started: Instant,
) -> Result<Paused, BuildError> {
    let ram_size = config.memory.size.bytes();
    let ram = memory::allocate(&layout::ram_regions(ram_size), backing(&config.memory))?;
    // Reading the kernel takes as long as all the rest, which needs nothing of it.
    thread::scope(|scope| {
        let loading = Loading::start(scope, &resources.payload, &ram, ram_size)?;
        assemble(host, config, resources, notices, started, &ram, loading)
    })
}

/// The list: everything but memory and what is loaded into it.
fn assemble(
    host: &Host,
    config: &VmConfig,
    resources: &Resources,
    notices: &Arc<Notices>,
    started: Instant,
    ram: &Ram,
    loading: Loading<'_>,
) -> Result<Paused, BuildError> {
    let ram_size = config.memory.size.bytes();
    let topology = cpus::topology(host, &config.cpus)?;

    // The machine, its memory, and the interrupt controllers, which KVM wants before any vCPU.
    let vm = Vm::new(host.kvm())?;
    memory::register(&vm, ram)?;
    let memory = GuestRam::new(ram.clone());
    let interrupts = Interrupts::new(&vm)?;

    // vCPUs.
    let vcpus = cpus::create(&vm, host, &topology, config.cpus.boot_vcpus)?;

    // Devices.
    let buses = Buses::default();
    devices::add_legacy(&buses, notices, config.pvpanic, started)?;
    let com1_gsi = devices::add_serial(&buses, &interrupts, resources.serial.as_deref())?;
    let events = devices::add_acpi(&buses, &interrupts, notices)?;
    let (pci, bridge) = devices::add_pci(&buses, host, ram_size)?;
    // From here on, whatever fails takes down what is there in the order that a machine has.
    let mut machine = Machine {
        vcpus: Vec::new(),
        pci,
        serial: resources.serial.clone(),
        events,
        buses,
        memory,
        vm,
    };
    let mut slots = VirtioSlots {
        notify: Arc::new(IoEvents::new(&machine.vm)),
        pci: &mut machine.pci,
        memory: &machine.memory,
        interrupts: &interrupts,
    };
    for disk in &resources.disks {
        slots.add(disk.device())?;
    }
    for net in &resources.nets {
        slots.add(net.device()?)?;
    }
    slots.add(resources.rng.device())?;

    // What the guest finds in memory.
    let tables = AcpiTables::build(&AcpiConfig {
        cpus: cpus::acpi_cpus(&topology, &config.cpus),
        pci: Some(bridge),
        com1_gsi,
        pvpanic: config.pvpanic,
        cmos: false,
        hotplug: AcpiHotplug::default(),
    })?;
    tables.write(ram)?;
    reset_vector::write(ram)?;
    let cmdline = &resources.payload.cmdline;
    let loaded = loading.finish()?;
    let entry = loaded.boot_data(ram, ram_size, cmdline, tables.rsdp_addr)?;

    // Where it begins.
    if let Some(boot_vcpu) = vcpus.first() {
        boot_vcpu.enter_at(&entry)?;
    }
    for vcpu in vcpus {
        let buses = machine.buses.clone();
        let watch: Arc<dyn Watch> = notices.clone();
        let vcpu = VcpuThread::spawn(vcpu, buses, machine.memory.clone(), watch, started)
            .map_err(BuildError::host("a thread for a vCPU"))?;
        machine.vcpus.push(vcpu);
    }
    Ok(Paused::new(machine))
}

fn backing(memory: &MemoryConfig) -> Backing {
    let huge_pages = memory.hugepages.then(|| match memory.hugepage_size {
        Some(size) => HugePages::Size(size.bytes()),
        None => HugePages::Default,
    });
    Backing {
        shared: memory.shared,
        huge_pages,
        prefault: memory.prefault,
        mergeable: memory.mergeable,
        transparent_huge_pages: memory.thp,
    }
}
