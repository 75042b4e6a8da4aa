//! `--fs`: directories of the host, served by other processes.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString};
use super::section::{Section, check_id, check_path, check_queue_size};

/// Bytes of a tag that the guest can see (virtio 1.2, 5.11.4).
const MAX_TAG: usize = 36;

/// Longest path, in bytes, that fits into the address of a Unix socket.
const MAX_SOCKET: usize = 107;

/// The most queues: vhost-user counts to 256, and one is not for requests.
const MAX_QUEUES: u16 = 255;

/// A directory of the host that another process, such as virtiofsd, serves to the guest by vhost-user.
/// `--fs tag=NAME,socket=PATH[,num_queues=N,queue_size=N,id=ID]`. The memory has to be shared (`--memory shared=on`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts it by, as in `mount -t virtiofs NAME /mnt`: 1 to 36 bytes.
    #[schema(min_length = 1, max_length = 36, pattern = "^[^\\x00]+$")]
    pub tag: String,
    /// Path of the socket that the process listens at, of at most 107 bytes.
    #[schema(value_type = String, min_length = 1, max_length = 107, pattern = "^[^\\x00]+$")]
    pub socket: PathBuf,
    /// Number of queues for requests, 1 to 255. The process has to have as many.
    #[schema(value_type = usize, minimum = 1, maximum = 255)]
    pub num_queues: u16,
    /// Descriptors per queue.
    pub queue_size: u16,
    /// Name of the device. [`VmConfig::assign_ids`](super::VmConfig::assign_ids) gives it one when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^(?!__)[!-~]+$")]
    pub id: Option<String>,
    /// PCI segment. Only 0.
    #[schema(format = "int16")]
    pub pci_segment: u16,
    /// PCI slot. Not supported: slots are given in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uint8")]
    pub pci_device_id: Option<u8>,
}

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            tag: String::new(),
            socket: PathBuf::new(),
            num_queues: 1,
            queue_size: 1024,
            id: None,
            pci_segment: 0,
            pci_device_id: None,
        }
    }
}

impl FsConfig {
    /// Checks the device.
    ///
    /// # Errors
    /// What is wrong first, with the name of the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Section::validate(self)
    }
}

impl Section for FsConfig {
    const UNSUPPORTED: &'static [&'static str] = &["pci_segment", "pci_device_id"];

    fn check(&self) -> Result<(), ConfigError> {
        if self.tag.is_empty() {
            return Err(ConfigError::missing(
                "tag",
                "the name that the guest mounts",
            ));
        }
        if self.tag.len() > MAX_TAG || self.tag.contains('\0') {
            return Err(ConfigError::invalid(
                "tag",
                format!("{:?}", self.tag),
                format!("expected 1 to {MAX_TAG} bytes without NUL"),
            ));
        }
        if self.socket.as_os_str().is_empty() {
            return Err(ConfigError::missing(
                "socket",
                "the path of the socket that virtiofsd listens at",
            ));
        }
        check_path("socket", &self.socket)?;
        let len = self.socket.as_os_str().len();
        if len > MAX_SOCKET {
            return Err(ConfigError::invalid(
                "socket",
                format!("of {len} bytes"),
                format!("expected at most {MAX_SOCKET} bytes"),
            ));
        }
        if !(1..=MAX_QUEUES).contains(&self.num_queues) {
            return Err(ConfigError::invalid(
                "num_queues",
                self.num_queues,
                format!("expected 1 to {MAX_QUEUES}"),
            ));
        }
        check_queue_size(self.queue_size)?;
        check_id(self.id.as_deref())
    }
}

impl OptionString for FsConfig {}

impl FromStr for FsConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
