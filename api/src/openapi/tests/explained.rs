//! Where the document differs from that of Cloud Hypervisor, and why.

/// A difference that is meant: the fact, its value there and here (`-` for none), and why. `*` stands for anything.
pub(super) type Row = (&'static str, &'static str, &'static str, &'static str);

const REFUSED: &str = "the verb is refused, and has no reply";
const SAID: &str = "the default that Cloud Hypervisor has in its code and not in its document";
const WIDER: &str = "what Cloud Hypervisor requires has a default here";
const STRICT: &str = "Cloud Hypervisor's code requires it too, and its document does not say so";
const ALWAYS: &str = "a reply that always has it";

pub(super) const EXPLAINED: &[Row] = &[
    // What holds for fields of all kinds.
    (
        "*.* null",
        "-",
        "true",
        "an optional field can be null: so it can there, where the document does not say so",
    ),
    (
        "*.* x-podvisor-only-default",
        "-",
        "true",
        "known and not supported: refused by name at any other value",
    ),
    ("*.* x-podvisor-addition", "-", "true", "our own"),
    ("*.* minimum", "-", "0", "the type has no negative numbers"),
    (
        "*.* maximum",
        "-",
        "18446744073709551615",
        "the type has 64 bits",
    ),
    (
        "*.* format",
        "-",
        "int32",
        "the width of a number is said wherever it has one",
    ),
    // Paths.
    ("/vm.events *", "-", "*", "our own"),
    ("/openapi.json *", "-", "*", "our own"),
    ("/vm.set-rate-limiter *", "-", "*", "our own"),
    ("/metrics *", "-", "*", "our own"),
    ("/vm.add-device reply", "PciDeviceInfo", "-", REFUSED),
    ("/vm.add-fs reply", "PciDeviceInfo", "-", REFUSED),
    (
        "/vm.add-generic-vhost-user reply",
        "PciDeviceInfo",
        "-",
        REFUSED,
    ),
    ("/vm.add-pmem reply", "PciDeviceInfo", "-", REFUSED),
    ("/vm.add-user-device reply", "PciDeviceInfo", "-", REFUSED),
    ("/vm.add-vdpa reply", "PciDeviceInfo", "-", REFUSED),
    (
        "/vm.add-disk body",
        "DiskConfig",
        "AddDiskConfig",
        "a DiskConfig with descriptors",
    ),
    (
        "/vm.add-net body",
        "NetConfig",
        "AddNetConfig",
        "a NetConfig with descriptors",
    ),
    ("AddNetConfig.* *", "-", "*", "a NetConfig with descriptors"),
    (
        "AddDiskConfig.* *",
        "-",
        "*",
        "a DiskConfig with descriptors",
    ),
    (
        "Error type",
        "-",
        "array of string",
        "the body of every error: the form is Cloud Hypervisor's, unsaid in its document",
    ),
    // Descriptors.
    (
        "VmConfig.fds type",
        "-",
        "map of array of integer",
        "our own: descriptors that come with the request",
    ),
    (
        "NetConfig.fds type",
        "-",
        "array of integer",
        "in Cloud Hypervisor's code, and not in its document",
    ),
    // vCPUs.
    ("CpusConfig.boot_vcpus default", "-", "1", WIDER),
    ("CpusConfig.boot_vcpus required", "true", "-", WIDER),
    (
        "CpusConfig.boot_vcpus maximum",
        "-",
        "254",
        "APIC ids have eight bits",
    ),
    ("CpusConfig.max_vcpus default", "-", "1", WIDER),
    ("CpusConfig.max_vcpus required", "true", "-", WIDER),
    (
        "CpusConfig.max_vcpus maximum",
        "-",
        "254",
        "APIC ids have eight bits",
    ),
    (
        "VmResize.desired_vcpus maximum",
        "-",
        "254",
        "APIC ids have eight bits",
    ),
    ("CpusConfig.max_phys_bits default", "-", "46", SAID),
    (
        "CpusConfig.profile *",
        "-",
        "*",
        "in Cloud Hypervisor's code, and not in its document",
    ),
    (
        "CpuProfile *",
        "-",
        "*",
        "in Cloud Hypervisor's code, and not in its document",
    ),
    ("CpuFeatures.amx default", "-", "false", SAID),
    ("CpuTopology.* required", "-", "true", STRICT),
    (
        "CpuTopology.* minimum",
        "-",
        "1",
        "their product is the number of vCPUs",
    ),
    (
        "CpuTopology.* maximum",
        "-",
        "254",
        "their product is the number of vCPUs",
    ),
    // Memory.
    ("MemoryConfig.size default", "-", "536870912", WIDER),
    ("MemoryConfig.size required", "true", "-", WIDER),
    (
        "MemoryConfig.size minimum",
        "-",
        "8388608",
        "less holds no kernel",
    ),
    (
        "MemoryConfig.size maximum",
        "-",
        "35184372088832",
        "half of the guest physical addresses",
    ),
    (
        "MemoryConfig.hotplug_size maximum",
        "-",
        "35184363700224",
        "together with the least size, half of the guest physical addresses",
    ),
    (
        "MemoryConfig.hotplugged_size maximum",
        "-",
        "35184237871104",
        "the most that hotplug_size can be with virtio-mem",
    ),
    (
        "HotplugMethod *",
        "-",
        "*",
        "the values of a string, which Cloud Hypervisor's document does not list",
    ),
    // Devices.
    ("*.pci_segment default", "-", "0", SAID),
    ("DebugConsoleConfig.iobase default", "-", "233", SAID),
    (
        "PlatformConfig.iommu_address_width_bits default",
        "-",
        "64",
        SAID,
    ),
    ("PlatformConfig.num_pci_segments default", "-", "1", SAID),
    ("DiskConfig.image_type default", "-", "Unknown", SAID),
    (
        "DiskConfig.num_queues minimum",
        "-",
        "1",
        "a disk without a queue is of no use",
    ),
    (
        "DiskConfig.num_queues maximum",
        "-",
        "256",
        "each queue has a thread",
    ),
    (
        "NetConfig.ip default",
        "192.168.249.1",
        "-",
        "Cloud Hypervisor's code has none, whatever its document says",
    ),
    (
        "NetConfig.mask default",
        "255.255.255.0",
        "-",
        "Cloud Hypervisor's code has none, whatever its document says",
    ),
    (
        "NetConfig.mtu minimum",
        "-",
        "68",
        "that of virtio 1.2, 5.1.4.1",
    ),
    (
        "NetConfig.mtu maximum",
        "-",
        "65535",
        "the type has 16 bits",
    ),
    (
        "VhostMode *",
        "-",
        "*",
        "the values of a string, which Cloud Hypervisor's document does not list",
    ),
    ("TokenBucket.refill_time default", "-", "0", WIDER),
    ("TokenBucket.refill_time required", "true", "-", WIDER),
    ("TokenBucket.size default", "-", "0", WIDER),
    ("TokenBucket.size required", "true", "-", WIDER),
    (
        "ConsoleConfig.mode default",
        "-",
        "Off",
        "there is no virtio console; Cloud Hypervisor's is the terminal",
    ),
    ("ConsoleConfig.mode required", "true", "-", WIDER),
    ("DebugConsoleConfig.mode default", "-", "Off", WIDER),
    ("DebugConsoleConfig.mode required", "true", "-", WIDER),
    ("SerialConfig.mode default", "-", "Null", WIDER),
    ("SerialConfig.mode required", "true", "-", WIDER),
    ("RngConfig.src default", "-", "/dev/urandom", WIDER),
    ("RngConfig.src required", "true", "-", WIDER),
    (
        "VsockConfig.cid maximum",
        "-",
        "4294967294",
        "the largest number of 32 bits is no address",
    ),
    (
        "VirtQueueAffinity.queue_index maximum",
        "-",
        "255",
        "the last of the most queues that a disk can have",
    ),
    (
        "DiskConfig.disable_* *",
        "-",
        "*",
        "in Cloud Hypervisor's code, whose ch-remote always sends it, and not in its document",
    ),
    ("DiskConfig.werror *", "-", "*", "our own"),
    ("DiskConfig.rerror *", "-", "*", "our own"),
    ("*ErrorPolicy *", "-", "*", "our own"),
    ("DeviceNode.engine *", "-", "*", "our own"),
    (
        "PlatformConfig.iommufd_fd *",
        "-",
        "*",
        "in Cloud Hypervisor's code, and not in its document",
    ),
    // The machine.
    (
        "VmConfig.payload required",
        "true",
        "-",
        "the kernel can come as a descriptor",
    ),
    (
        "VmConfig.pvpanic default",
        "false",
        "true",
        "a panic is never taken for a shutdown",
    ),
    // Other bodies and replies.
    (
        "VmCoredumpData.destination_url required",
        "-",
        "true",
        STRICT,
    ),
    ("VmRemoveDevice.id required", "-", "true", STRICT),
    ("VmSetRateLimiter.* *", "-", "*", "our own"),
    ("VmResizeDisk.* required", "-", "true", STRICT),
    (
        "VmState enum",
        "Created Running Shutdown Paused BreakPoint",
        "Created Running Shutdown Paused",
        "there is no debugger",
    ),
    ("VmInfo.memory_actual_size required", "-", "true", ALWAYS),
    ("VmmPingResponse.* required", "-", "true", ALWAYS),
    ("DeviceNode.* required", "-", "true", ALWAYS),
];
