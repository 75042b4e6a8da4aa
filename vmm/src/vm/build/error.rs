//! Why a machine could not be built.

use std::io;
use std::path::PathBuf;

use arch::kernel::{FirmwareError, InitramfsError, KernelError};
use arch::x86_64::acpi::AcpiError;
use arch::x86_64::boot::BootError;
use arch::x86_64::cpuid::{CpuidError, TopologyError};
use arch::x86_64::layout::LayoutError;
use devices::acpi::hotplug::HotplugError;
use devices::bus::BusError;
use devices::pci::RootError;
use devices::virtio::balloon::BalloonError;
use devices::virtio::mem::MemError;
use devices::virtio::transport::mmio::SlotsError;
use devices::virtio::transport::pci::VirtioPciError;
use vm_memory::GuestMemoryError;

use crate::boot_disk::BootDiskError;
use crate::kvm::KvmError;
use crate::kvm::memory::MemoryError;
use crate::kvm::vcpu::VcpuError;
use crate::wire::console::ConsoleError;
use crate::wire::fs::FsError;
use crate::wire::net::NetError;
use crate::wire::vsock::VsockError;

/// A file of a boot entry that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
}

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
    /// A firmware that cannot be loaded.
    #[error("--firmware {}", path.display())]
    Firmware {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FirmwareError,
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
    /// The guest's own disk cannot be booted.
    #[error("--boot-disk {id}")]
    BootDisk {
        /// Name of the disk.
        id: String,
        /// Why.
        #[source]
        source: BootDiskError,
    },
    /// The guest gave up the disk that it boots from.
    #[error("--boot-disk {id}: the disk is gone, the guest has ejected it")]
    BootDiskGone {
        /// Name of the disk.
        id: String,
    },
    /// A kernel or an initramfs of the guest's own disk that cannot be loaded.
    #[error("--boot-disk {id}, entry {title:?}")]
    BootEntry {
        /// Name of the disk.
        id: String,
        /// The entry, as the disk names it.
        title: String,
        /// What is wrong with its files.
        #[source]
        source: Box<EntryError>,
    },
    /// Boot data that cannot be written, such as too long a command line.
    #[error("cannot prepare the boot of the kernel")]
    Boot(#[from] BootError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The code of the reset vector.
    #[error("cannot write to guest memory")]
    Write(#[from] GuestMemoryError),
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
    /// More devices than there are places for without a PCI bus.
    #[error(
        "platform.transport is Mmio, which has places for {count} devices, and the VM has more: expected fewer devices, or \
         transport Pci"
    )]
    MmioSlots {
        /// How many places there are.
        count: usize,
    },
    /// A place for a virtio device without a PCI bus.
    #[error("cannot add a virtio device")]
    Mmio(#[from] SlotsError),
    /// Something needs a PCI bus, and there is none.
    #[error(
        "platform.transport is Mmio, which has no PCI bus for devices that come and go: expected transport Pci"
    )]
    NoPci,
    /// A virtio device cannot be put on PCI.
    #[error("cannot add a virtio device")]
    Virtio(#[from] VirtioPciError),
    /// A network that was opened before.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A directory that was opened before.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Sockets that were opened before.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The console or its ports.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The device that adds memory.
    #[error("memory.hotplug_size")]
    Mem(#[from] MemError),
    /// The balloon.
    #[error("balloon")]
    Balloon(#[from] BalloonError),
    /// The registers by which devices come and go.
    #[error("cannot tell the guest of a device")]
    Hotplug(#[from] HotplugError),
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
        match self {
            Self::TooManyVcpus { .. }
            | Self::Topology(_)
            | Self::Layout(_)
            | Self::Kernel { .. }
            | Self::Firmware { .. }
            | Self::Initramfs { .. }
            | Self::BootEntry { .. }
            | Self::BootDiskGone { .. }
            | Self::BootDisk {
                source: BootDiskError::Refused(_),
                ..
            }
            | Self::Boot(_)
            | Self::Pci(_)
            | Self::MmioSlots { .. }
            | Self::NoPci
            | Self::Mem(_)
            | Self::Balloon(BalloonError::Size(_)) => true,
            Self::Net(error) => error.is_configuration(),
            Self::Vsock(error) => error.is_configuration(),
            _ => false,
        }
    }

    pub(in crate::vm) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}
