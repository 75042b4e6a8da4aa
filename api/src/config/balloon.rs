//! `--balloon`: the virtio memory balloon.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::option::{self, OptionString};
use super::section::{Section, check_id};
use super::{ByteSize, ConfigError};

/// What a balloon is counted in, whatever pages guest and host have (virtio 1.2, 5.5.6).
const PAGE_SIZE: u64 = 4096;
/// The device counts its pages in 32 bits.
const MAX_SIZE: ByteSize = ByteSize((1 << 44) - PAGE_SIZE);

/// A memory balloon: memory that the guest gives back to the host. `--balloon size=S[,deflate_on_oom=on|off,
/// free_page_reporting=on|off,stats_polling_interval_s=N,id=ID]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonConfig {
    /// Bytes that the guest is asked to give back from the start, in whole pages of 4096 bytes, at most all that it has.
    /// `vm.resize` changes it.
    #[schema(value_type = u64, minimum = 0, maximum = 17_592_186_040_320_i64, multiple_of = 4096)]
    pub size: ByteSize,
    /// Whether the guest may take memory back when it runs out of it.
    pub deflate_on_oom: bool,
    /// Whether the guest tells of pages that it does not use, which are the host's until it does.
    pub free_page_reporting: bool,
    /// Seconds between two questions to the guest for statistics of its memory, which `vm.counters` and `/metrics` tell. 0:
    /// it is asked whenever one of them is read, which tells what it answered to the question before.
    pub stats_polling_interval_s: u32,
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

impl BalloonConfig {
    /// Checks `size`, a size in bytes that is asked for as the field `field`, against a guest's `memory` in bytes.
    ///
    /// # Errors
    /// What is expected.
    pub fn check_size(field: &str, size: u64, memory: u64) -> Result<(), ConfigError> {
        if !size.is_multiple_of(PAGE_SIZE) || size > MAX_SIZE.0 {
            let problem = format!("expected a multiple of {PAGE_SIZE}, up to {MAX_SIZE}");
            return Err(ConfigError::invalid(field, size, problem));
        }
        if size > memory {
            let problem = format!("expected at most the guest's memory, {memory}");
            return Err(ConfigError::invalid(field, size, problem));
        }
        Ok(())
    }
}

impl Section for BalloonConfig {
    const UNSUPPORTED: &'static [&'static str] = &["iommu", "pci_segment", "pci_device_id"];

    fn check(&self) -> Result<(), ConfigError> {
        Self::check_size("size", self.size.0, u64::MAX)?;
        check_id(self.id.as_deref())
    }
}

impl OptionString for BalloonConfig {}

impl FromStr for BalloonConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
