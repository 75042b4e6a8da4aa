//! Bodies of Cloud Hypervisor's document whose verbs and devices Podvisor does not have.
//!
//! Nothing is ever read into these types: the verbs are refused whatever their body says, and so are the fields of
//! `vm.create` at any value but none. The document needs them so that clients find every name they know.
#![expect(dead_code, reason = "only the schemas of these types are used")]

use utoipa::ToSchema;

/// A virtio device of any kind that another process serves.
#[derive(ToSchema)]
pub(crate) struct GenericVhostUserConfig {
    /// Socket of the process.
    socket: String,
    /// Descriptors per queue, for each queue.
    #[schema(format = "uint16")]
    queue_sizes: Vec<u16>,
    /// Kind of the device (virtio 1.2, 5).
    #[schema(format = "uint32")]
    device_type: u32,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
    /// Name of the device.
    id: Option<String>,
}

/// A file that the guest sees as persistent memory.
#[derive(ToSchema)]
pub(crate) struct PmemConfig {
    /// The file.
    file: String,
    /// Its size in bytes.
    size: Option<u64>,
    /// Whether a virtual IOMMU is in front.
    #[schema(default = false, required = false)]
    iommu: bool,
    /// Whether what the guest writes is forgotten.
    #[schema(default = false, required = false)]
    discard_writes: bool,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
    /// Name of the device.
    id: Option<String>,
}

/// A host device that VFIO hands to the guest.
#[derive(ToSchema)]
pub(crate) struct DeviceConfig {
    /// Its directory in sysfs.
    path: Option<String>,
    /// Whether a virtual IOMMU is in front.
    #[schema(default = false, required = false)]
    iommu: bool,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
    /// Name of the device.
    id: Option<String>,
    /// Group of NVIDIA devices that reach each other directly.
    #[schema(format = "int8")]
    x_nv_gpudirect_clique: Option<u8>,
    /// Base address registers that are not mapped into the guest.
    #[schema(format = "int64")]
    x_exclude_mmap_bars: Option<Vec<u64>>,
}

/// A device that another process serves by vfio-user.
#[derive(ToSchema)]
pub(crate) struct UserDeviceConfig {
    /// Socket of the process.
    socket: String,
    /// Name of the device.
    id: Option<String>,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
}

/// The body of `vm.add-user-device`.
#[derive(ToSchema)]
pub(crate) struct VmAddUserDevice {
    /// Socket of the process.
    socket: String,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
}

/// A device by vDPA.
#[derive(ToSchema)]
pub(crate) struct VdpaConfig {
    /// Its character device.
    path: String,
    /// Number of queues.
    #[schema(default = 1)]
    num_queues: usize,
    /// Whether a virtual IOMMU is in front.
    #[schema(default = false, required = false)]
    iommu: bool,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
    /// Name of the device.
    id: Option<String>,
}

/// A virtio clock.
#[derive(ToSchema)]
pub(crate) struct RtcConfig {
    /// Name of the device.
    id: Option<String>,
    /// Whether a virtual IOMMU is in front.
    #[schema(default = false, required = false)]
    iommu: bool,
    /// PCI segment.
    #[schema(format = "int16", required = false)]
    pci_segment: u16,
    /// PCI slot.
    #[schema(format = "uint8")]
    pci_device_id: Option<u8>,
}

/// A TPM that another process emulates.
#[derive(ToSchema)]
pub(crate) struct TpmConfig {
    /// Socket of the process.
    socket: String,
}

/// A NUMA node of the guest.
#[derive(ToSchema)]
pub(crate) struct NumaConfig {
    /// Its number.
    guest_numa_id: u32,
    /// Its vCPUs.
    cpus: Option<Vec<u32>>,
    /// How far the other nodes are.
    distances: Option<Vec<NumaDistance>>,
    /// Names of its memory zones.
    memory_zones: Option<Vec<String>>,
    /// Its PCI segments.
    #[schema(format = "int32")]
    pci_segments: Option<Vec<u16>>,
    /// Name of the device that it belongs to.
    device_id: Option<String>,
}

/// How far another NUMA node is.
#[derive(ToSchema)]
pub(crate) struct NumaDistance {
    /// Number of that node.
    destination: u32,
    /// The distance; 10 is that of a node to itself.
    distance: u8,
}

/// A PCI segment.
#[derive(ToSchema)]
pub(crate) struct PciSegmentConfig {
    /// Its number.
    #[schema(format = "int16")]
    pci_segment: u16,
    /// Its share of the address space below 4 GiB.
    mmio32_aperture_weight: Option<u32>,
    /// Its share of the address space above 4 GiB.
    mmio64_aperture_weight: Option<u32>,
}

/// A part of the guest's memory with properties of its own.
#[derive(ToSchema)]
pub(crate) struct MemoryZoneConfig {
    /// Its name.
    id: String,
    /// Its size in bytes.
    size: u64,
    /// File that it is made of.
    file: Option<String>,
    /// Whether equal pages may be merged with those of others (KSM).
    #[schema(default = false, required = false)]
    mergeable: bool,
    /// Whether other processes can map it.
    #[schema(default = false, required = false)]
    shared: bool,
    /// Whether it is made of explicit huge pages.
    #[schema(default = false, required = false)]
    hugepages: bool,
    /// Size of such a page.
    hugepage_size: Option<u64>,
    /// NUMA node of the host that it comes from.
    #[schema(format = "int32")]
    host_numa_node: Option<u32>,
    /// How much can be added later.
    hotplug_size: Option<u64>,
    /// How much of that is there at the start.
    hotplugged_size: Option<u64>,
    /// Whether all of it is taken from the host before the guest starts.
    #[schema(default = false, required = false)]
    prefault: bool,
    /// Whether swap space is reserved for it.
    #[schema(default = false, required = false)]
    reserve: bool,
}

/// A file that the confined process may use.
#[derive(ToSchema)]
pub(crate) struct LandlockConfig {
    /// The file or directory.
    path: String,
    /// What may be done with it, as in `rw`.
    access: String,
}

/// The body of `vm.resize-zone`.
#[derive(ToSchema)]
pub(crate) struct VmResizeZone {
    /// Name of the zone.
    #[schema(required = false)]
    id: String,
    /// Its new size in bytes.
    #[schema(required = false)]
    desired_ram: u64,
}

/// The body of `vm.snapshot`.
#[derive(ToSchema)]
pub(crate) struct VmSnapshotConfig {
    /// Directory that the snapshot goes to, as a URL.
    #[schema(required = false)]
    destination_url: String,
}

/// The body of `vm.restore`.
#[derive(ToSchema)]
pub(crate) struct RestoreConfig {
    /// Directory that the snapshot is in, as a URL.
    source_url: String,
    /// Whether all memory is read before the guest runs.
    #[schema(required = false)]
    prefault: bool,
    /// When memory is read.
    #[schema(required = false)]
    memory_restore_mode: MemoryRestoreMode,
    /// Whether the guest runs at once.
    #[schema(required = false)]
    resume: bool,
    /// Other places for memory zones.
    zone_updates: Option<Vec<VmMemoryZoneUpdateData>>,
}

/// When the memory of a snapshot is read.
#[derive(ToSchema)]
#[schema(default = "Copy")]
pub(crate) enum MemoryRestoreMode {
    /// Before the guest runs.
    Copy,
    /// When the guest needs it.
    OnDemand,
}

/// Another place for a memory zone.
#[derive(ToSchema)]
pub(crate) struct VmMemoryZoneUpdateData {
    /// Name of the zone.
    #[schema(min_length = 1)]
    id: String,
    /// NUMA node of the host that it comes from.
    #[schema(format = "uint32")]
    host_numa_node: u32,
}

/// The body of `vm.receive-migration`.
#[derive(ToSchema)]
pub(crate) struct ReceiveMigrationData {
    /// Where the machine is waited for.
    receiver_url: String,
    /// Directory of the keys and certificates.
    tls_dir: Option<String>,
    /// When memory is moved.
    #[schema(required = false)]
    memory_mode: MigrationMode,
    /// Other places for memory zones.
    zone_updates: Option<Vec<VmMemoryZoneUpdateData>>,
}

/// The body of `vm.send-migration`.
#[derive(ToSchema)]
pub(crate) struct SendMigrationData {
    /// Where the machine goes.
    destination_url: String,
    /// Whether the other side is on this host.
    #[schema(required = false)]
    local: bool,
    /// How long the guest may stand still, in milliseconds.
    #[schema(default = 300, minimum = 1, required = false)]
    downtime_ms: u64,
    /// How long the whole may take, in seconds.
    #[schema(default = 3600, minimum = 1, required = false)]
    timeout_s: u64,
    /// What happens when it takes longer.
    #[schema(required = false)]
    timeout_strategy: TimeoutStrategy,
    /// Number of TCP connections.
    #[schema(
        format = "int64",
        default = 1,
        minimum = 1,
        maximum = 128,
        required = false
    )]
    connections: u32,
    /// Directory of the keys and certificates.
    tls_dir: Option<String>,
    /// When memory is moved.
    #[schema(required = false)]
    memory_mode: MigrationMode,
}

/// When the memory of a machine is moved.
#[derive(ToSchema)]
#[schema(default = "Precopy")]
pub(crate) enum MigrationMode {
    /// Before the guest runs on the other side.
    Precopy,
    /// When the guest needs it there.
    Postcopy,
}

/// What happens to a migration that takes too long.
#[derive(ToSchema)]
#[schema(default = "Cancel")]
pub(crate) enum TimeoutStrategy {
    /// It is given up, and the guest runs on where it was.
    Cancel,
    /// It goes on, and the guest stands still for longer.
    Ignore,
}
