//! How a machine is built. [`build`] is the list; the modules below it hold its items.

mod devices;
mod error;
mod payload;

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use ::devices::memory::Ram;
use ::devices::virtio::Notify;
use api::config::{HotplugMethod, VmConfig};
use arch::x86_64::acpi::{AcpiConfig, AcpiHotplug, AcpiTables};
use arch::x86_64::layout::AddressRange;
use arch::x86_64::{layout, reset_vector};

pub use self::error::{BuildError, EntryError};
use self::payload::Loading;
use super::Paused;
use super::attached::{AttachedDevices, Kind};
use super::machine::{Hold, Machine};
use super::notices::Notices;
use super::ram::{self, MEMORY_SLOTS, MachineMemory};
use super::vcpus::{Surroundings, VcpuPlan, Vcpus};
use crate::kvm::capabilities::Host;
use crate::kvm::irq::Interrupts;
use crate::kvm::memory;
use crate::kvm::notify::IoEvents;
use crate::kvm::vm::Vm;
use crate::vcpu::{Buses, Watch};
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
    let (ram_size, room) = ram::plan(&config.memory);
    let backing = ram::backing(&config.memory);
    let ram = memory::allocate(&layout::ram_regions(ram_size), backing)?;
    // Reading the kernel takes as long as all the rest, which needs nothing of it.
    thread::scope(|scope| {
        let loading = Loading::start(scope, resources, &ram, ram_size)?;
        let ground = Ground {
            ram: &ram,
            ram_size,
            room,
        };
        assemble(host, config, resources, notices, started, &ground, loading)
    })
}

/// What a machine stands on: the memory that it boots with, and the addresses where more can be added.
struct Ground<'a> {
    ram: &'a Ram,
    ram_size: u64,
    room: AddressRange,
}

/// The list: everything but memory and what is loaded into it.
fn assemble(
    host: &Host,
    config: &VmConfig,
    resources: &Resources,
    notices: &Arc<Notices>,
    started: Instant,
    ground: &Ground<'_>,
    loading: Loading<'_>,
) -> Result<Paused, BuildError> {
    let Ground {
        ram,
        ram_size,
        room,
    } = *ground;
    let mut plan = VcpuPlan::new(host, &config.cpus)?;

    // The machine, its memory, and the interrupt controllers, which KVM wants before any vCPU.
    let vm = Vm::new(host.kvm())?;
    memory::register(&vm, ram)?;
    let backing = ram::backing(&config.memory);
    let memory = MachineMemory::new(ram.clone(), ram_size, room, backing);
    let interrupts = Interrupts::new(&vm)?;

    // vCPUs.
    let vcpus = plan.create_first(&vm, config.cpus.boot_vcpus)?;
    let acpi_cpus = plan.acpi_cpus(config.cpus.boot_vcpus);

    // Devices.
    let buses = Buses::default();
    devices::add_legacy(&buses, notices, config.pvpanic, started)?;
    devices::add_clock(&buses, ram_size)?;
    let com1_gsi = devices::add_serial(&buses, &interrupts, resources.serial.as_deref())?;
    let events = devices::add_acpi(&buses, &interrupts, notices)?;
    let (transport, bridge) = devices::add_transport(
        &buses,
        host,
        room.end(),
        config.transport(),
        &events,
        notices,
    )?;
    let cpu_slots = devices::add_cpu_slots(&buses, &events, notices, &config.cpus)?;
    let watch: Arc<dyn Watch> = notices.clone();
    let around = Surroundings {
        buses: buses.clone(),
        memory: memory.map.clone(),
        watch,
        started,
    };
    let notify: Arc<dyn Notify> = Arc::new(IoEvents::new(&vm));
    // From here on, whatever fails takes down what is there in the order that a machine has.
    let mut machine = Machine {
        vcpus: Vcpus::new(plan, around),
        hold: Hold::None,
        transport,
        attached: AttachedDevices::default(),
        serial: resources.serial.clone(),
        events,
        cpu_slots,
        buses,
        interrupts,
        notify,
        memory,
        vm,
    };
    for disk in &resources.disks {
        let device = disk.device(notices.clone());
        let kind = Kind::disk(&device);
        machine.attach(disk.id(), device, kind)?;
    }
    for net in &resources.nets {
        let device = net.device(notices.clone())?;
        let kind = Kind::net(&device);
        machine.attach(net.id(), device, kind)?;
    }
    for fs in &resources.fs {
        let device = fs.device()?;
        let kind = Kind::fs(&device);
        machine.attach(fs.id(), device, kind)?;
    }
    let rng = &resources.rng;
    machine.attach(rng.id(), rng.device(), Kind::Fixed)?;
    let console = &resources.console;
    if let Some(device) = console.console()? {
        let kind = Kind::console(&device);
        machine.attach(console.id(), device, kind)?;
    }
    if let Some(device) = console.ports()? {
        let kind = Kind::console(&device);
        machine.attach("__ports", device, kind)?;
    }
    if let Some(vsock) = &resources.vsock {
        let device = vsock.device()?;
        let kind = Kind::vsock(&device);
        machine.attach(vsock.id(), device, kind)?;
    }
    devices::add_memory_growth(&mut machine, &config.memory, notices)?;
    devices::add_balloon(&mut machine, config.balloon.as_ref())?;
    if let Some(watchdog) = &resources.watchdog {
        let device = watchdog
            .device(notices.clone())
            .map_err(BuildError::host("a timer for the watchdog"))?;
        machine.attach_function("__watchdog", device)?;
    }

    // What the guest finds in memory.
    let memory_slots = match config.memory.hotplug_method {
        HotplugMethod::Acpi if room.len > 0 => MEMORY_SLOTS,
        _ => 0,
    };
    let tables = AcpiTables::build(&AcpiConfig {
        cpus: acpi_cpus,
        pci: bridge,
        virtio_mmio: machine.transport.acpi_virtio_mmio(),
        com1_gsi,
        pvpanic: config.pvpanic,
        cmos: true,
        generation: true,
        hotplug: AcpiHotplug {
            pci_slots: machine.transport.can_hotplug(),
            cpus: config.cpus.max_vcpus > 1,
            memory_slots,
        },
    })?;
    tables.write(ram)?;
    machine.write_generation(&resources.generation)?;
    reset_vector::write(ram)?;
    let loaded = loading.finish()?;
    let entry = loaded.boot_data(ram, ram_size, tables.rsdp_addr)?;

    // Where it begins.
    machine.vcpus.start(vcpus, &entry)?;
    Ok(Paused::new(machine))
}
