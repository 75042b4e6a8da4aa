//! Verbs that add and remove devices.

use api::config::{AddedDisk, FsConfig, NetConfig, VsockConfig};
use api::request::SetLinkConfig;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::UsageError;
use super::call::Call;
use super::descriptor::duplicate_all;
use super::foreign::Foreign;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a disk, and tell where it is if the VM is booted
    AddDisk {
        /// path=PATH,... as for podvisor --disk; fd=N instead of path passes an open descriptor
        #[arg(value_name = "DISK")]
        disk: AddedDisk,
    },
    /// Add a network, and tell where it is if the VM is booted
    AddNet {
        /// tap=NAME,... as for podvisor --net; fd=N instead of tap passes an open descriptor
        #[arg(value_name = "NET")]
        net: NetConfig,
    },
    /// Add a directory that virtiofsd serves, and tell where it is if the VM is booted
    AddFs {
        /// tag=NAME,socket=PATH,... as for podvisor --fs
        #[arg(value_name = "FS")]
        fs: FsConfig,
    },
    /// Add sockets between host and guest, and tell where they are if the VM is booted
    AddVsock {
        /// cid=N,socket=PATH,... as for podvisor --vsock
        #[arg(value_name = "VSOCK")]
        vsock: VsockConfig,
    },
    /// Set the link of a network up or down
    SetLink {
        /// Its id, as info tells it
        #[arg(value_name = "ID")]
        id: String,
        /// Whether packets go through
        #[arg(value_name = "up|down")]
        link: Link,
    },
    /// Remove a disk, a network, a file system or a vsock; the guest has to agree if the VM is booted
    RemoveDevice {
        /// Its id, as info tells it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Add a VFIO device
    AddDevice {
        /// path=PATH,... or JSON
        #[arg(value_name = "CONFIG")]
        device: Foreign,
    },
    /// Add a vhost-user device of any kind
    #[command(override_usage = "podvisor ctl --api-socket <PATH> add-generic-vhost-user <CONFIG>")]
    AddGenericVhostUser {
        /// socket=PATH,device_type=N,... or JSON
        #[arg(value_name = "CONFIG")]
        device: Foreign,
    },
    /// Add a virtio-pmem device
    AddPmem {
        /// file=PATH,... or JSON
        #[arg(value_name = "CONFIG")]
        pmem: Foreign,
    },
    /// Add a vfio-user device
    AddUserDevice {
        /// socket=PATH,... or JSON
        #[arg(value_name = "CONFIG")]
        device: Foreign,
    },
    /// Add a vDPA device
    AddVdpa {
        /// path=PATH,... or JSON
        #[arg(value_name = "CONFIG")]
        vdpa: Foreign,
    },
}

/// What a link is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Link {
    Up,
    Down,
}

impl Verb {
    pub(super) fn into_call(self) -> Result<Call, UsageError> {
        let add = |verb, device: Foreign| Ok(Call::add(verb, device.body(verb, None)?, vec![]));
        match self {
            Self::AddDisk { disk } => {
                let AddedDisk { config, fd } = disk;
                let mut body = json!(config);
                if fd.is_some() {
                    body["fds"] = json!([0]);
                }
                Ok(Call::add("vm.add-disk", body, duplicate_all(fd)?))
            }
            Self::AddNet { mut net } => {
                // Their numbers mean nothing to the VMM: all descriptors that come are those of the network.
                let fds = net.fds.take().unwrap_or_default();
                Ok(Call::add("vm.add-net", json!(net), duplicate_all(fds)?))
            }
            Self::AddVsock { vsock } => Ok(Call::add("vm.add-vsock", json!(vsock), vec![])),
            Self::SetLink { id, link } => {
                let up = link == Link::Up;
                let body = SetLinkConfig { id, up };
                Ok(Call::put_with("vm.set-link", json!(body)))
            }
            Self::RemoveDevice { id } => Ok(Call::put_with("vm.remove-device", json!({"id": id}))),
            Self::AddDevice { device } => add("vm.add-device", device),
            Self::AddFs { fs } => Ok(Call::add("vm.add-fs", json!(fs), vec![])),
            Self::AddGenericVhostUser { device } => add("vm.add-generic-vhost-user", device),
            Self::AddPmem { pmem } => add("vm.add-pmem", pmem),
            Self::AddUserDevice { device } => add("vm.add-user-device", device),
            Self::AddVdpa { vdpa } => add("vm.add-vdpa", vdpa),
        }
    }
}
