//! `--memory`: guest memory.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::option::{self, OptionString};
use super::section::{Section, Unsupported};
use super::{ByteSize, ConfigError};
use crate::openapi::foreign;

/// Less than this holds no kernel.
const MIN_SIZE: ByteSize = ByteSize::mib(8);
/// Half of the 46 bits of guest physical addresses; the other half is for devices.
const MAX_SIZE: ByteSize = ByteSize(1 << 45);
/// Sizes of an x86 page that a hugetlbfs can have.
const HUGEPAGE_SIZES: [ByteSize; 2] = [ByteSize::mib(2), ByteSize::mib(1024)];
const PAGE_SIZE: ByteSize = ByteSize(4096);
/// The least that virtio-mem plugs at once.
const PLUG_SIZE: ByteSize = ByteSize::mib(2);
/// A Linux guest manages memory in blocks of at least this size, and uses of a virtio-mem region only whole ones.
const LINUX_BLOCK_SIZE: ByteSize = ByteSize::mib(128);

/// Guest memory. `--memory size=S[,shared=,hugepages=,hugepage_size=,prefault=,mergeable=,thp=,hotplug_size=,
/// hotplug_method=,hotplugged_size=]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Size of the guest's memory.
    #[schema(value_type = u64, minimum = 8388608, maximum = 35_184_372_088_832_i64, multiple_of = 4096)]
    pub size: ByteSize,
    /// Whether other processes can map the memory: a memfd instead of anonymous memory.
    pub shared: bool,
    /// Whether the memory is made of explicit huge pages.
    pub hugepages: bool,
    /// Size of such a page: 2 MiB or 1 GiB. The host's default size when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub hugepage_size: Option<ByteSize>,
    /// Whether all memory is taken from the host before the guest starts.
    pub prefault: bool,
    /// Whether equal pages may be merged with those of others (KSM).
    pub mergeable: bool,
    /// Whether the host may use transparent huge pages.
    pub thp: bool,
    /// How memory is added later.
    pub hotplug_method: HotplugMethod,
    /// How much memory can be added later. With virtio-mem a multiple of 128 MiB, or of the size of a huge page if that
    /// is larger. With ACPI any number of pages: it is room for what is added in steps that the guest can take.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 35_184_363_700_224_i64, multiple_of = 4096)]
    pub hotplug_size: Option<ByteSize>,
    /// How much of it the guest is asked to plug from the start; it can be taken away later. Only with virtio-mem.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 35_184_237_871_104_i64, multiple_of = 2097152)]
    pub hotplugged_size: Option<ByteSize>,
    /// Whether swap space is reserved for the memory. Only `false`.
    pub reserve: bool,
    /// Memory of several kinds. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::MemoryZoneConfig>>)]
    pub zones: Option<Unsupported>,
}

/// How memory is added to a running machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HotplugMethod {
    /// ACPI memory devices.
    #[default]
    Acpi,
    /// A virtio-mem device.
    VirtioMem,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: ByteSize::mib(512),
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            mergeable: false,
            thp: true,
            hotplug_method: HotplugMethod::default(),
            hotplug_size: None,
            hotplugged_size: None,
            reserve: false,
            zones: None,
        }
    }
}

impl Section for MemoryConfig {
    const UNSUPPORTED: &'static [&'static str] = &["reserve", "zones"];

    fn check(&self) -> Result<(), ConfigError> {
        if let Some(hugepage_size) = self.hugepage_size {
            if !self.hugepages {
                return Err(ConfigError::invalid(
                    "hugepage_size",
                    hugepage_size,
                    "expected hugepages=on beside it",
                ));
            }
            if !HUGEPAGE_SIZES.contains(&hugepage_size) {
                return Err(ConfigError::invalid(
                    "hugepage_size",
                    hugepage_size,
                    "expected 2M or 1G",
                ));
            }
        }
        if self.mergeable && (self.shared || self.hugepages) {
            return Err(ConfigError::invalid(
                "mergeable",
                "on",
                "expected shared=off and hugepages=off beside it, as the kernel merges only \
                 anonymous pages of normal size",
            ));
        }
        if !(MIN_SIZE..=MAX_SIZE).contains(&self.size) {
            return Err(ConfigError::invalid(
                "size",
                self.size,
                format!("expected {MIN_SIZE} to {MAX_SIZE}"),
            ));
        }
        let page_size = self.page_size();
        if !self.size.0.is_multiple_of(page_size.0) {
            return Err(ConfigError::invalid(
                "size",
                self.size,
                format!("expected a multiple of the page size, {page_size}"),
            ));
        }
        self.check_hotplug()
    }
}

impl MemoryConfig {
    /// Notes that the machine, which booted with `boot` bytes, is to have `added` bytes more from now on, so that the next
    /// boot has as much: with ACPI as part of `size`, out of `hotplug_size`, with virtio-mem as `hotplugged_size`.
    pub fn note_hotplugged(&mut self, boot: u64, added: u64) {
        let Some(room) = self.hotplug_size else {
            return;
        };
        let now = boot + added;
        match self.hotplug_method {
            HotplugMethod::Acpi => {
                let most = self.size.0 + room.0;
                self.size = ByteSize(now);
                self.hotplug_size = Some(ByteSize(most.saturating_sub(now)));
            }
            HotplugMethod::VirtioMem => {
                self.hotplugged_size = Some(ByteSize(now.saturating_sub(self.size.0)));
            }
        }
    }

    /// Checks that other processes can map the memory, as those that serve `devices` do.
    ///
    /// # Errors
    /// It is not shared.
    pub fn check_shared(&self, devices: &str) -> Result<(), ConfigError> {
        if self.shared {
            return Ok(());
        }
        Err(ConfigError::invalid(
            "memory.shared",
            "off",
            format!("expected on, as {devices} is served by a process that maps the memory"),
        ))
    }

    /// The size of the pages that the memory is made of.
    fn page_size(&self) -> ByteSize {
        match (self.hugepages, self.hugepage_size) {
            (true, Some(size)) => size,
            (true, None) => HUGEPAGE_SIZES[0],
            (false, _) => PAGE_SIZE,
        }
    }

    fn check_hotplug(&self) -> Result<(), ConfigError> {
        let refuse =
            |field, value, problem: String| Err(ConfigError::invalid(field, value, problem));
        // No bytes are nothing to be added.
        let some = |size: &ByteSize| size.0 > 0;
        let hotplugged_size = self.hotplugged_size.filter(some);
        let Some(hotplug_size) = self.hotplug_size.filter(some) else {
            return match hotplugged_size {
                Some(size) => refuse(
                    "hotplugged_size",
                    size,
                    "expected hotplug_size beside it".to_owned(),
                ),
                None => Ok(()),
            };
        };
        // `size` is in its bounds.
        let room = ByteSize(MAX_SIZE.0 - self.size.0);
        if hotplug_size > room {
            let problem = format!("expected at most {MAX_SIZE} together with size");
            return refuse("hotplug_size", hotplug_size, problem);
        }
        let page_size = self.page_size();
        let unit = match self.hotplug_method {
            HotplugMethod::Acpi => page_size,
            HotplugMethod::VirtioMem => LINUX_BLOCK_SIZE.max(page_size),
        };
        if !hotplug_size.0.is_multiple_of(unit.0) {
            return refuse(
                "hotplug_size",
                hotplug_size,
                format!("expected a multiple of {unit}"),
            );
        }
        let Some(hotplugged_size) = hotplugged_size else {
            return Ok(());
        };
        if self.hotplug_method != HotplugMethod::VirtioMem {
            let problem = "expected hotplug_method=virtio-mem beside it".to_owned();
            return refuse("hotplugged_size", hotplugged_size, problem);
        }
        if hotplugged_size > hotplug_size {
            let problem = format!("expected at most hotplug_size, {hotplug_size}");
            return refuse("hotplugged_size", hotplugged_size, problem);
        }
        let unit = PLUG_SIZE.max(page_size);
        if !hotplugged_size.0.is_multiple_of(unit.0) {
            return refuse(
                "hotplugged_size",
                hotplugged_size,
                format!("expected a multiple of {unit}"),
            );
        }
        Ok(())
    }
}

impl OptionString for MemoryConfig {
    const JSON_ONLY: &'static [&'static str] = &["zones"];
}

impl FromStr for MemoryConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
