//! `--rng`: the virtio entropy device.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString};
use super::section::{Section, check_id, check_path};

/// The entropy device. `--rng src=PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RngConfig {
    /// File that random bytes are read from.
    #[schema(value_type = String, min_length = 1, pattern = "^[^\\x00]+$")]
    pub src: PathBuf,
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

impl Default for RngConfig {
    fn default() -> Self {
        Self {
            src: PathBuf::from("/dev/urandom"),
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
        }
    }
}

impl Section for RngConfig {
    const UNSUPPORTED: &'static [&'static str] = &["iommu", "pci_segment", "pci_device_id"];

    fn check(&self) -> Result<(), ConfigError> {
        check_path("src", &self.src)?;
        check_id(self.id.as_deref())
    }
}

impl OptionString for RngConfig {}

impl FromStr for RngConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
