//! The answers to requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::VmConfig;
use crate::metrics::Metrics;

/// The answer to a [`Request`](super::Request) that was carried out.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// It is done; there is nothing to tell.
    Done,
    /// What [`Request::Ping`](super::Request::Ping) asked for.
    Ping(PingInfo),
    /// What [`Request::Info`](super::Request::Info) asked for.
    Info(Box<VmInfo>),
    /// What [`Request::Counters`](super::Request::Counters) asked for.
    Counters(Counters),
    /// Where a device that was added to a booted machine is.
    Device(PciDeviceInfo),
    /// What [`Request::Metrics`](super::Request::Metrics) asked for.
    Metrics(Box<Metrics>),
}

/// Counters by device and by name.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// What the VMM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = VmmPingResponse)]
pub struct PingInfo {
    /// Version of the VMM with all that is known of its build.
    pub build_version: String,
    /// Version of the VMM.
    pub version: String,
    /// Number of its process.
    pub pid: i64,
    /// Optional parts that it was built with.
    pub features: Vec<String>,
}

/// What the machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// What it is made of.
    pub config: VmConfig,
    /// What it does.
    pub state: VmState,
    /// Guest memory in bytes, with what was plugged in and without what is in the balloon.
    pub memory_actual_size: u64,
    /// Its devices by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
}

/// A device of a machine that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// What it takes of the machine. Always empty.
    #[schema(value_type = Vec<Object>)]
    pub resources: Vec<serde_json::Value>,
    /// The devices behind it. Always empty.
    pub children: Vec<String>,
    /// Its PCI address, as in `0000:00:03.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
    /// How a disk carries out its transfers: `io_uring`, or `threads` that make calls which block. Not before the guest has
    /// a driver for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Where a device is on the guest's PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PciDeviceInfo {
    /// Its name.
    pub id: String,
    /// Its PCI address, as in `0000:00:03.0`.
    pub bdf: String,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// It has not started yet.
    Created,
    /// Its vCPUs run.
    Running,
    /// It has ended, and can be booted again.
    Shutdown,
    /// Its vCPUs and devices stand still.
    Paused,
    /// A debugger has stopped its vCPUs; its devices go on.
    BreakPoint,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Shutdown => "shut down",
            Self::Paused => "paused",
            Self::BreakPoint => "stopped by a debugger",
        })
    }
}
