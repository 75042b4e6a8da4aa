//! What can be asked of the VMM.
//!
//! A [`Request`] is one verb of the API. Whoever owns the machine implements [`Service`]; the command line, signals and
//! the REST server are all callers of it.

mod descriptors;
mod error;
mod reply;
#[cfg(test)]
mod tests;

use crate::config::{
    ConfigError, DiskConfig, FsConfig, NetConfig, RateLimiterConfig, VmConfig, VsockConfig,
    unlimited_as_none,
};

pub use descriptors::{Descriptors, INITRAMFS, KERNEL};
pub use error::ApiError;
pub use reply::{Counters, DeviceNode, PciDeviceInfo, PingInfo, Reply, VmInfo, VmState};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thing to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// Tell that the VMM is there. `vmm.ping`.
    Ping,
    /// End the process. `vmm.shutdown`.
    ShutdownVmm,
    /// Take a configuration, which is checked and has names for all its devices. `vm.create`.
    Create {
        /// What the machine is made of.
        config: Box<VmConfig>,
        /// What is opened already.
        descriptors: Descriptors,
    },
    /// Forget the machine, ending it if it runs. `vm.delete`.
    Delete,
    /// Build the machine and let it run. `vm.boot`.
    Boot,
    /// Stop all vCPUs and devices, keeping their state. `vm.pause`.
    Pause,
    /// Let a paused machine run on. `vm.resume`.
    Resume,
    /// End the machine now, without asking the guest; its configuration stays. `vm.shutdown`.
    Shutdown,
    /// Start the machine anew, without asking the guest. `vm.reboot`.
    Reboot,
    /// Press the ACPI power button: the guest is asked to shut down. `vm.power-button`.
    PowerButton,
    /// Raise a non-maskable interrupt on every vCPU. `vm.nmi`.
    Nmi,
    /// Write an ELF core of guest memory and registers. `vm.coredump`.
    Coredump(CoredumpConfig),
    /// Change the number of vCPUs, the size of memory or that of the balloon. `vm.resize`.
    Resize(ResizeConfig),
    /// Change the size of a disk. `vm.resize-disk`.
    ResizeDisk(ResizeDiskConfig),
    /// Set the link of a network up or down. `vm.set-link`.
    SetLink(SetLinkConfig),
    /// Change the limits of a disk, a network or a group of disks. `vm.set-rate-limiter`, which is not Cloud Hypervisor's.
    SetRateLimiter(SetRateLimiterConfig),
    /// Add a disk. `vm.add-disk`.
    AddDisk {
        /// The disk, checked.
        config: Box<DiskConfig>,
        /// Its image, opened by the client.
        descriptors: Descriptors,
    },
    /// Add a network. `vm.add-net`.
    AddNet {
        /// The network, checked.
        config: Box<NetConfig>,
        /// Its tap, opened by the client.
        descriptors: Descriptors,
    },
    /// Add a directory that another process serves, checked. `vm.add-fs`.
    AddFs(Box<FsConfig>),
    /// Add sockets between host and guest, checked. `vm.add-vsock`.
    AddVsock(Box<VsockConfig>),
    /// Ask the guest to let go of a device, which goes when it has. `vm.remove-device`.
    RemoveDevice(RemoveDeviceConfig),
    /// Tell what the machine is and does. `vm.info`.
    Info,
    /// Tell what the machine's devices counted. `vm.counters`.
    Counters,
    /// Tell all that is measured. `/metrics`.
    Metrics,
}

impl Request {
    /// The verb as it is spelled in a path of the REST API.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Ping => "vmm.ping",
            Self::ShutdownVmm => "vmm.shutdown",
            Self::Create { .. } => "vm.create",
            Self::Delete => "vm.delete",
            Self::Boot => "vm.boot",
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::Shutdown => "vm.shutdown",
            Self::Reboot => "vm.reboot",
            Self::PowerButton => "vm.power-button",
            Self::Nmi => "vm.nmi",
            Self::Coredump(_) => "vm.coredump",
            Self::Resize(_) => "vm.resize",
            Self::ResizeDisk(_) => "vm.resize-disk",
            Self::SetLink(_) => "vm.set-link",
            Self::SetRateLimiter(_) => "vm.set-rate-limiter",
            Self::AddDisk { .. } => "vm.add-disk",
            Self::AddNet { .. } => "vm.add-net",
            Self::AddFs(_) => "vm.add-fs",
            Self::AddVsock(_) => "vm.add-vsock",
            Self::RemoveDevice(_) => "vm.remove-device",
            Self::Info => "vm.info",
            Self::Counters => "vm.counters",
            Self::Metrics => "metrics",
        }
    }
}

/// The body of `vm.resize`. What is not given stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = VmResize)]
pub struct ResizeConfig {
    /// Number of vCPUs, from 1 to `max_vcpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 254)]
    pub desired_vcpus: Option<u32>,
    /// Memory in bytes, from `size` to `size` and `hotplug_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
    /// Size of the balloon in bytes, in whole pages of 4096 bytes, up to the guest's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 17_592_186_040_320_i64, multiple_of = 4096)]
    pub desired_balloon: Option<u64>,
}

/// The body of `vm.resize-disk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VmResizeDisk)]
pub struct ResizeDiskConfig {
    /// Name of the disk.
    pub id: String,
    /// Its new size in bytes.
    pub desired_size: u64,
}

/// The body of `vm.set-link`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VmSetLink)]
pub struct SetLinkConfig {
    /// Name of the network.
    pub id: String,
    /// Whether its link is up. On one that is down, packets of both directions are lost.
    pub up: bool,
}

/// The body of `vm.set-rate-limiter`: the limits of a device, or of a group. Either is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = VmSetRateLimiter)]
pub struct SetRateLimiterConfig {
    /// Name of a network, or of a disk that is in no group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name of one of the machine's `rate_limit_groups`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_group: Option<String>,
    /// The limits from now on, with full buckets. What is not given is not limited any more.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "unlimited_as_none"
    )]
    pub rate_limiter_config: Option<RateLimiterConfig>,
}

impl SetRateLimiterConfig {
    /// Checks that one thing is named.
    ///
    /// # Errors
    /// Neither or both are.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match (&self.id, &self.rate_limit_group) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            (None, None) => Err(ConfigError::missing(
                "id",
                "the id of a disk or a network, or a rate_limit_group in its place",
            )),
            (Some(_), Some(group)) => Err(ConfigError::invalid(
                "rate_limit_group",
                format!("{group:?}"),
                "expected either an id or a group, not both",
            )),
        }
    }
}

/// The body of `vm.remove-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VmRemoveDevice)]
pub struct RemoveDeviceConfig {
    /// Name of the device.
    pub id: String,
}

/// The body of `vm.coredump`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = VmCoredumpData)]
pub struct CoredumpConfig {
    /// Where the core goes: `file:///absolute/path`. The file must not exist.
    #[schema(pattern = "^file:///.")]
    pub destination_url: String,
}

/// What an answer is.
pub type Answer = Result<Reply, ApiError>;

/// Takes the answer to one request. Called once, on the thread that owns the machine, and does not block; dropped
/// uncalled when the machine's owner is gone.
pub type Answerer = Box<dyn FnOnce(Answer) + Send>;

/// Something that carries out requests, one at a time and in their order.
pub trait Service: Send + Sync {
    /// Hands over a request. A refusal leaves the machine as it was before.
    fn post(&self, request: Request, answerer: Answerer);

    /// Carries out one request and waits for its end.
    ///
    /// # Errors
    /// Why it was not carried out; [`ApiError::Gone`] when the VMM ended before it could answer.
    fn call(&self, request: Request) -> Answer {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        // Whoever waits for the answer is this call.
        let answerer = Box::new(move |answer| drop(sender.send(answer)));
        self.post(request, answerer);
        receiver.recv().unwrap_or(Err(ApiError::Gone))
    }
}
