//! `--platform`: properties of the whole machine.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString};
use super::section::Section;

/// Properties of the whole machine. `--platform transport=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PlatformConfig {
    /// Number of PCI segments. Only 1.
    #[schema(format = "int16")]
    pub num_pci_segments: u16,
    /// Segments behind a virtual IOMMU. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "int16")]
    pub iommu_segments: Option<Vec<u16>>,
    /// Width of the virtual IOMMU's addresses, in bits. Only 64.
    #[schema(format = "uint8")]
    pub iommu_address_width_bits: u8,
    /// SMBIOS serial number. Not supported.
    #[serde(skip_serializing_if = "Option::is_none", alias = "serial_number")]
    pub system_serial_number: Option<String>,
    /// SMBIOS UUID. Not supported.
    #[serde(skip_serializing_if = "Option::is_none", alias = "uuid")]
    pub system_uuid: Option<String>,
    /// SMBIOS OEM strings. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oem_strings: Option<Vec<String>>,
    /// SMBIOS manufacturer. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// SMBIOS product name. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// SMBIOS version. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// SMBIOS family. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// SMBIOS SKU. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// SMBIOS asset tag of the chassis. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// Intel TDX guest. Only `false`.
    pub tdx: bool,
    /// AMD SEV-SNP guest. Only `false`.
    pub sev_snp: bool,
    /// Whether VFIO uses iommufd. Only `false`.
    pub iommufd: bool,
    /// Descriptor of an iommufd. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommufd_fd: Option<i32>,
    /// Whether VFIO devices may reach each other. Only `true`.
    pub vfio_p2p_dma: bool,
    /// How the guest finds its virtio devices.
    pub transport: Transport,
}

/// How a guest finds its virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Transport {
    /// On a PCI bus, where they can come and go.
    #[default]
    Pci,
    /// By MMIO registers that ACPI names. There is no PCI bus, so that the guest boots faster, and disks, networks and vsock
    /// cannot come or go while it runs. At most 17 devices.
    Mmio,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        Self {
            num_pci_segments: 1,
            iommu_segments: None,
            iommu_address_width_bits: 64,
            system_serial_number: None,
            system_uuid: None,
            oem_strings: None,
            system_manufacturer: None,
            system_product_name: None,
            system_version: None,
            system_family: None,
            system_sku_number: None,
            chassis_asset_tag: None,
            tdx: false,
            sev_snp: false,
            iommufd: false,
            iommufd_fd: None,
            vfio_p2p_dma: true,
            transport: Transport::default(),
        }
    }
}

impl Section for PlatformConfig {
    const UNSUPPORTED: &'static [&'static str] = &[
        "num_pci_segments",
        "iommu_segments",
        "iommu_address_width_bits",
        "system_serial_number",
        "system_uuid",
        "oem_strings",
        "system_manufacturer",
        "system_product_name",
        "system_version",
        "system_family",
        "system_sku_number",
        "chassis_asset_tag",
        "tdx",
        "sev_snp",
        "iommufd",
        "iommufd_fd",
        "vfio_p2p_dma",
    ];

    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl OptionString for PlatformConfig {
    const RENAMES: &'static [(&'static str, &'static str)] = &[
        ("serial_number", "system_serial_number"),
        ("uuid", "system_uuid"),
    ];
}

impl FromStr for PlatformConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
