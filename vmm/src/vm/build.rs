//! How a machine is built. [`build`] is the list; the functions below it are its items.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use api::config::{CpusConfig, MemoryConfig, VmConfig};
use arch::kernel::{InitramfsError, InitramfsPlacement, KernelError};
use arch::x86_64::acpi::{AcpiConfig, AcpiCpu, AcpiError, AcpiPci, AcpiTables};
use arch::x86_64::boot::{self, BootEntry, BootError};
use arch::x86_64::cpuid::{self, CpuidConfig, CpuidError, Topology, TopologyError};
use arch::x86_64::layout::{self, LayoutError};
use arch::x86_64::memory_map::memory_map;
use devices::acpi::{EventDevice, POWER_REGISTERS_LEN, Power};
use devices::bus::{BusDevice, BusError, SharedDevice};
use devices::legacy::{BootMark, DebugPort, I8042, PvPanic};
use devices::memory::{GuestRam, Ram};
use devices::pci::{self, RootError};
use devices::platform::Platform;
use devices::virtio::transport::pci::{VirtioPci, VirtioPciError};
use devices::virtio::{Notify, VirtioDevice};
use vm_memory::GuestAddress;

use super::Paused;
use super::machine::Machine;
use super::notices::Notices;
use crate::kvm::KvmError;
use crate::kvm::capabilities::Host;
use crate::kvm::irq::Interrupts;
use crate::kvm::memory::{self, Backing, HugePages, MemoryError};
use crate::kvm::notify::IoEvents;
use crate::kvm::vcpu::{Vcpu, VcpuError};
use crate::kvm::vm::Vm;
use crate::vcpu::{Buses, VcpuThread, Watch};
use crate::wire::Resources;
use crate::wire::net::NetError;
use crate::wire::payload::{Opened, Payload};
use crate::wire::serial::SerialHost;

/// Widest guest physical address that a machine uses, however wide the host's are.
const MAX_PHYS_BITS: u8 = 46;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// More vCPUs than KVM takes.
    #[error(
        "cpus.max_vcpus is {asked}, expected at most {limit}: this host's KVM takes no more vCPUs"
    )]
    TooManyVcpus {
        /// As configured.
        asked: u32,
        /// What KVM takes.
        limit: usize,
    },
    /// A topology that cannot be made.
    #[error("cpus.topology")]
    Topology(#[from] TopologyError),
    /// More memory than fits below the devices.
    #[error("memory.size")]
    Layout(#[from] LayoutError),
    /// A kernel that cannot be loaded.
    #[error("--kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// An initramfs that cannot be loaded.
    #[error("--initramfs {}", path.display())]
    Initramfs {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InitramfsError,
    },
    /// Boot data that cannot be written, such as too long a command line.
    #[error("cannot prepare the boot of the kernel")]
    Boot(#[from] BootError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM refused something.
    #[error("KVM refused to build the machine")]
    Kvm(#[from] KvmError),
    /// KVM refused a vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// CPUID.
    #[error("cannot make the guest's CPUID")]
    Cpuid(#[from] CpuidError),
    /// ACPI tables.
    #[error("cannot make the guest's ACPI tables")]
    Acpi(#[from] AcpiError),
    /// Two devices at one address.
    #[error("cannot put a device on its bus")]
    Bus(#[from] BusError),
    /// More devices than the PCI bus has room for.
    #[error("cannot put a device on the PCI bus")]
    Pci(#[from] RootError),
    /// A virtio device cannot be put on PCI.
    #[error("cannot add a virtio device")]
    Virtio(#[from] VirtioPciError),
    /// A network that was opened before.
    #[error(transparent)]
    Net(#[from] NetError),
    /// An eventfd, a thread.
    #[error("cannot get {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::TooManyVcpus { .. }
                | Self::Topology(_)
                | Self::Layout(_)
                | Self::Kernel { .. }
                | Self::Initramfs { .. }
                | Self::Boot(_)
                | Self::Pci(_)
        )
    }

    fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

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
    let topology = topology(host, &config.cpus)?;

    // Memory, and the interrupt controllers, which KVM wants before any vCPU.
    let vm = Vm::new(host.kvm())?;
    let ram_size = config.memory.size.bytes();
    let ram = memory::allocate(&layout::ram_regions(ram_size), backing(&config.memory))?;
    memory::register(&vm, &ram)?;
    let memory = GuestRam::new(ram.clone());
    let interrupts = Interrupts::new(&vm)?;

    // Devices.
    let buses = Buses::default();
    add_legacy(&buses, notices, config.pvpanic, started)?;
    let com1_gsi = add_serial(&buses, &interrupts, resources.serial.as_deref())?;
    let events = add_acpi(&buses, &interrupts, notices)?;
    let (mut pci, bridge) = add_pci(&buses, host, ram_size)?;
    let mut slots = VirtioSlots {
        pci: &mut pci,
        memory: &memory,
        interrupts: &interrupts,
        notify: Arc::new(IoEvents::new(&vm)),
    };
    for disk in &resources.disks {
        slots.add(disk.device())?;
    }
    for net in &resources.nets {
        slots.add(net.device()?)?;
    }
    slots.add(resources.rng.device())?;

    // What the guest finds in memory.
    let acpi = AcpiConfig {
        cpus: acpi_cpus(&topology, &config.cpus),
        pci: Some(bridge),
        com1_gsi,
        pvpanic: config.pvpanic,
        cmos: false,
        events: Vec::new(),
        extra_aml: Vec::new(),
    };
    let tables = AcpiTables::build(&acpi)?;
    tables.write(&ram)?;
    let entry = load(&resources.payload, &ram, ram_size, tables.rsdp_addr)?;

    // vCPUs.
    let vcpus = create_vcpus(&vm, host, &topology, config.cpus.boot_vcpus, &entry)?;
    let watch: Arc<dyn Watch> = notices.clone();
    let vcpus = vcpus
        .into_iter()
        .map(|vcpu| VcpuThread::spawn(vcpu, buses.clone(), memory.clone(), watch.clone(), started))
        .collect::<io::Result<_>>()
        .map_err(BuildError::host("a thread for a vCPU"))?;

    Ok(Paused::new(Machine {
        vcpus,
        pci,
        serial: resources.serial.clone(),
        events,
        buses,
        memory,
        _vm: vm,
    }))
}

fn topology(host: &Host, cpus: &CpusConfig) -> Result<Topology, BuildError> {
    let limit = host.max_vcpus();
    if cpus.max_vcpus as usize > limit {
        return Err(BuildError::TooManyVcpus {
            asked: cpus.max_vcpus,
            limit,
        });
    }
    Ok(match cpus.topology {
        Some(topology) => Topology::new(
            topology.threads_per_core.into(),
            topology.cores_per_die.into(),
            topology.dies_per_package.into(),
            topology.packages.into(),
        )?,
        None => Topology::flat(cpus.max_vcpus)?,
    })
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

fn shared(device: impl BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn add_legacy(
    buses: &Buses,
    notices: &Arc<Notices>,
    pvpanic: bool,
    started: Instant,
) -> Result<(), BusError> {
    let platform: Arc<dyn Platform> = notices.clone();
    let keyboard = u64::from(layout::I8042_DATA_PORT);
    let keyboard_len = u64::from(layout::I8042_COMMAND_PORT) + 1 - keyboard;
    let i8042 = I8042::new(platform.clone());
    buses.pio.insert(keyboard, keyboard_len, shared(i8042))?;
    let debug_port = DebugPort::new(started);
    buses
        .pio
        .insert(layout::DEBUG_PORT.into(), 1, shared(debug_port))?;
    if pvpanic {
        let port = PvPanic::new(platform);
        buses
            .pio
            .insert(layout::PVPANIC_PORT.into(), 1, shared(port))?;
    }
    let marks = layout::BOOT_MARK;
    buses
        .mmio
        .insert(marks.start, marks.len, shared(BootMark::new(started)))
}

/// Adds the serial port, and tells its interrupt.
fn add_serial(
    buses: &Buses,
    interrupts: &Interrupts,
    serial: Option<&SerialHost>,
) -> Result<Option<u32>, BuildError> {
    let Some(serial) = serial else {
        return Ok(None);
    };
    let line = interrupts
        .line(layout::COM1_GSI)
        .map_err(BuildError::host("the interrupt of the serial port"))?;
    buses.pio.insert(
        layout::COM1_PORT.into(),
        layout::COM_PORT_COUNT.into(),
        shared(serial.port(line)),
    )?;
    Ok(Some(layout::COM1_GSI))
}

fn add_acpi(
    buses: &Buses,
    interrupts: &Interrupts,
    notices: &Arc<Notices>,
) -> Result<EventDevice, BuildError> {
    let power = Power::new(notices.clone());
    buses.pio.insert(
        layout::SLEEP_CONTROL_PORT.into(),
        POWER_REGISTERS_LEN,
        shared(power),
    )?;
    let line = interrupts
        .line(layout::GED_GSI)
        .map_err(BuildError::host("the interrupt of the ACPI event device"))?;
    let events = EventDevice::new(line);
    let page = layout::ACPI_EVENT;
    buses
        .mmio
        .insert(page.start, page.len, shared(events.clone()))?;
    Ok(events)
}

/// Adds an empty PCI bus, and tells where it is found.
fn add_pci(buses: &Buses, host: &Host, ram_size: u64) -> Result<(pci::Root, AcpiPci), BuildError> {
    let phys_bits = cpuid::physical_address_bits(host.cpuid()).min(MAX_PHYS_BITS);
    let low = layout::PCI_MMIO32;
    let high = layout::pci_mmio64(layout::ram_end(ram_size), phys_bits)?;
    let windows = pci::Windows {
        low: low.start..low.end(),
        high: high.start..high.end(),
    };
    let root = pci::Root::new(Arc::clone(&buses.mmio), windows);
    let ecam = layout::PCI_ECAM;
    buses.mmio.insert(ecam.start, ecam.len, root.ecam())?;
    buses.pio.insert(
        layout::PCI_CONFIG_PORT.into(),
        layout::PCI_CONFIG_PORT_COUNT.into(),
        root.config_ports(),
    )?;
    let bridge = AcpiPci {
        ecam,
        ecam_reserved: layout::PCI_ECAM_RESERVED,
        mmio32: low,
        mmio64: high,
    };
    Ok((root, bridge))
}

/// Puts virtio devices on the PCI bus, each in the next free slot.
struct VirtioSlots<'a> {
    pci: &'a mut pci::Root,
    memory: &'a GuestRam,
    interrupts: &'a Arc<Interrupts>,
    notify: Arc<dyn Notify>,
}

impl VirtioSlots<'_> {
    fn add(&mut self, device: impl VirtioDevice + 'static) -> Result<(), BuildError> {
        let vectors = self
            .interrupts
            .vectors(VirtioPci::vector_count(&device))
            .map_err(BuildError::host("MSI-X vectors for a virtio device"))?;
        let name = device.name().to_owned();
        let function = VirtioPci::new(
            Box::new(device),
            self.memory.clone(),
            vectors,
            self.notify.clone(),
        )?;
        let slot = self.pci.add(Arc::new(Mutex::new(function)))?;
        tracing::debug!(name, slot, "virtio device added");
        Ok(())
    }
}

fn acpi_cpus(topology: &Topology, cpus: &CpusConfig) -> Vec<AcpiCpu> {
    (0..cpus.max_vcpus)
        .map(|vcpu| AcpiCpu {
            apic_id: topology.apic_id(vcpu),
            enabled: vcpu < cpus.boot_vcpus,
        })
        .collect()
}

/// Puts kernel, initramfs and boot data into `ram`.
fn load(
    payload: &Payload,
    ram: &Ram,
    ram_size: u64,
    rsdp: GuestAddress,
) -> Result<BootEntry, BuildError> {
    let Payload {
        kernel: Opened { file, path },
        initramfs,
        cmdline,
    } = payload;
    let again = BuildError::host("another descriptor of the kernel or the initramfs");
    let mut file = file.try_clone().map_err(again)?;
    let kernel =
        arch::kernel::load_kernel(ram, &mut file).map_err(|source| BuildError::Kernel {
            path: path.clone(),
            source,
        })?;
    tracing::debug!(image = ?kernel.image, protocol = ?kernel.protocol, entry = kernel.entry.0, "kernel loaded");
    let initramfs = initramfs
        .as_ref()
        .map(|Opened { file, path }| {
            let again = BuildError::host("another descriptor of the kernel or the initramfs");
            let mut file = file.try_clone().map_err(again)?;
            let place = InitramfsPlacement::after(&kernel, ram_size);
            arch::kernel::load_initramfs(ram, &mut file, place).map_err(|source| {
                BuildError::Initramfs {
                    path: path.clone(),
                    source,
                }
            })
        })
        .transpose()?;
    let map = memory_map(ram_size);
    Ok(boot::configure_boot(
        ram, &kernel, cmdline, initramfs, &map, rsdp,
    )?)
}

fn create_vcpus(
    vm: &Vm,
    host: &Host,
    topology: &Topology,
    count: u32,
    entry: &BootEntry,
) -> Result<Vec<Vcpu>, BuildError> {
    let vcpus = (0..count)
        .map(|index| Vcpu::create(vm, index, topology.apic_id(index)))
        .collect::<Result<Vec<_>, _>>()?;
    let config = CpuidConfig {
        topology: *topology,
        tsc_khz: vcpus.first().and_then(Vcpu::tsc_khz),
        tsc_deadline_timer: host.tsc_deadline_timer(),
        pmu: false,
        nested: true,
    };
    for vcpu in &vcpus {
        let cpuid = cpuid::configure(host.cpuid(), &config, vcpu.index())?;
        let boot = (vcpu.index() == 0).then_some(entry);
        vcpu.configure(&cpuid, boot)?;
    }
    Ok(vcpus)
}
