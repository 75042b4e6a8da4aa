//! `--vsock`: the virtio socket device.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString};
use super::section::{Section, check_id, check_path};

/// Addresses that a guest can have (virtio 1.2, 5.10.4).
const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// Longest path, in bytes: `_` and a port of ten digits after it still fit into the address of a Unix socket.
const MAX_SOCKET: usize = 96;

/// Sockets between host and guest. `--vsock cid=N,socket=PATH[,id=ID]`.
///
/// A program on the host connects to the socket, and says `CONNECT PORT` first. Where the guest connects to port N of the
/// host, CID 2, the socket PATH_N is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VsockConfig {
    /// Address of the guest: 3 to 4294967294.
    #[schema(format = "int64", minimum = 3, maximum = 4294967294_u64)]
    pub cid: u32,
    /// Path of the socket on the host, which is made, of at most 96 bytes.
    #[schema(value_type = String, min_length = 1, max_length = 96, pattern = "^[^\\x00]+$")]
    pub socket: PathBuf,
    /// Name of the device. [`VmConfig::assign_ids`](super::VmConfig::assign_ids) gives it one when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^(?!__)[!-~]+$")]
    pub id: Option<String>,
    /// Whether a virtual IOMMU is in front. Only `false`.
    pub iommu: bool,
    /// PCI segment. Only 0.
    #[schema(format = "int16")]
    pub pci_segment: u16,
    /// PCI slot. Not supported: slots are given in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uint8")]
    pub pci_device_id: Option<u8>,
}

impl VsockConfig {
    /// Checks the device.
    ///
    /// # Errors
    /// What is wrong first, with the name of the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Section::validate(self)
    }
}

impl Section for VsockConfig {
    const UNSUPPORTED: &'static [&'static str] = &["iommu", "pci_segment", "pci_device_id"];

    fn check(&self) -> Result<(), ConfigError> {
        if !CIDS.contains(&self.cid) {
            let (first, last) = (CIDS.start(), CIDS.end());
            return Err(ConfigError::invalid(
                "cid",
                self.cid,
                format!("expected the address of a guest, {first} to {last}"),
            ));
        }
        if self.socket.as_os_str().is_empty() {
            return Err(ConfigError::missing(
                "socket",
                "the path of the socket that programs on the host connect to",
            ));
        }
        check_path("socket", &self.socket)?;
        let len = self.socket.as_os_str().len();
        if len > MAX_SOCKET {
            return Err(ConfigError::invalid(
                "socket",
                format!("of {len} bytes"),
                format!("expected at most {MAX_SOCKET} bytes, as _PORT is appended to it"),
            ));
        }
        check_id(self.id.as_deref())
    }
}

impl OptionString for VsockConfig {}

impl FromStr for VsockConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
