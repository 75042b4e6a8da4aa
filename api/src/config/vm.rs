//! The whole machine.

use std::collections::HashSet;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::section::{Passed, Section, Unsupported};
use super::{
    BalloonConfig, ByteSize, ConfigError, ConsoleConfig, ConsoleOutputMode, CpusConfig,
    DebugConsoleConfig, DiskConfig, FsConfig, MemoryConfig, NetConfig, PayloadConfig,
    PlatformConfig, RateLimitGroupConfig, RngConfig, SerialConfig, Transport, VsockConfig,
    WatchdogAction, json,
};
use crate::openapi::foreign;

/// The whole machine: the body of `vm.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// Virtual processors.
    pub cpus: CpusConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What the machine boots.
    pub payload: PayloadConfig,
    /// Disks, in the order of their PCI slots.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    #[schema(value_type = Option<Vec<DiskConfig>>)]
    pub disks: Vec<DiskConfig>,
    /// Networks, in the order of their PCI slots.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    #[schema(value_type = Option<Vec<NetConfig>>)]
    pub net: Vec<NetConfig>,
    /// Entropy device.
    pub rng: RngConfig,
    /// Serial port.
    pub serial: SerialConfig,
    /// Virtio console, and ports beside it. There is none by default, unlike in Cloud Hypervisor: the console that every
    /// kernel finds is the serial port.
    pub console: ConsoleConfig,
    /// Whether the guest has a device to tell of its panic. On by default, unlike in Cloud Hypervisor, so that a
    /// panic is never taken for a shutdown.
    pub pvpanic: bool,
    /// Debug console. Only off.
    pub debug_console: DebugConsoleConfig,
    /// Properties of the whole machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformConfig>,
    /// Whether there is a virtual IOMMU. Only `false`.
    pub iommu: bool,
    /// Whether there is a watchdog: that of the Intel 6300ESB, for which guests have a driver (i6300esb).
    pub watchdog: bool,
    /// What happens when the guest does not reload its watchdog in time. `Reset` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog_action: Option<WatchdogAction>,
    /// Whether the process is confined to the files of its configuration. Only `false`.
    pub landlock_enable: bool,
    /// Further files for the confined process. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::LandlockConfig>>)]
    pub landlock_rules: Option<Unsupported>,
    /// Limits that several disks share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_groups: Option<Vec<RateLimitGroupConfig>>,
    /// Memory balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// Directories of the host, served by other processes, in the order of their PCI slots. They need `memory.shared`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    #[schema(value_type = Option<Vec<FsConfig>>)]
    pub fs: Vec<FsConfig>,
    /// Devices served by other processes. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::GenericVhostUserConfig>>)]
    pub generic_vhost_user: Option<Unsupported>,
    /// Persistent memory. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::PmemConfig>>)]
    pub pmem: Option<Unsupported>,
    /// Host devices by VFIO. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::DeviceConfig>>)]
    pub devices: Option<Unsupported>,
    /// Devices by vfio-user. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::UserDeviceConfig>>)]
    pub user_devices: Option<Unsupported>,
    /// Devices by vDPA. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::VdpaConfig>>)]
    pub vdpa: Option<Unsupported>,
    /// Sockets between host and guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// NUMA nodes. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::NumaConfig>>)]
    pub numa: Option<Unsupported>,
    /// Virtio clock. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<foreign::RtcConfig>)]
    pub rtc: Option<Unsupported>,
    /// PCI segments. Not supported.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "Unsupported::absent_when_empty"
    )]
    #[schema(value_type = Option<Vec<foreign::PciSegmentConfig>>)]
    pub pci_segments: Option<Unsupported>,
    /// TPM. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<foreign::TpmConfig>)]
    pub tpm: Option<Unsupported>,
}

fn null_as_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            payload: PayloadConfig::default(),
            disks: Vec::new(),
            net: Vec::new(),
            rng: RngConfig::default(),
            serial: SerialConfig::default(),
            console: ConsoleConfig::default(),
            pvpanic: true,
            debug_console: DebugConsoleConfig::default(),
            platform: None,
            iommu: false,
            watchdog: false,
            watchdog_action: None,
            landlock_enable: false,
            landlock_rules: None,
            rate_limit_groups: None,
            balloon: None,
            fs: Vec::new(),
            generic_vhost_user: None,
            pmem: None,
            devices: None,
            user_devices: None,
            vdpa: None,
            vsock: None,
            numa: None,
            rtc: None,
            pci_segments: None,
            tpm: None,
        }
    }
}

impl VmConfig {
    /// Reads the JSON of `vm.create` and checks it.
    ///
    /// # Errors
    /// What is wrong first, with the path of the field.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = json::read(json)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks each part, the parts against each other, and that nothing unsupported is asked for.
    ///
    /// # Errors
    /// What is wrong first, with the path of the field as in `disks[0].queue_size`.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Section::validate(self)
    }

    /// The same for a machine that comes with descriptors, by the names of its devices, by
    /// [`KERNEL`](crate::request::KERNEL) and by [`INITRAMFS`](crate::request::INITRAMFS): they stand for paths that are
    /// not given.
    ///
    /// # Errors
    /// What is wrong first, with the path of the field.
    pub fn validate_with(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        Section::validate_with(self, passed)
    }

    /// Names the devices that have no name: `_disk0`, `_net1`, and so on, with one count for all.
    pub fn assign_ids(&mut self) {
        let mut taken: HashSet<String> = self.device_ids().map(|(_, id)| id.to_owned()).collect();
        let mut count = 0;
        let mut assign = |kind: &str, id: &mut Option<String>| {
            while id.is_none() {
                let candidate = format!("_{kind}{count}");
                count += 1;
                if taken.insert(candidate.clone()) {
                    *id = Some(candidate);
                }
            }
        };
        for disk in &mut self.disks {
            assign("disk", &mut disk.id);
        }
        for net in &mut self.net {
            assign("net", &mut net.id);
        }
        for fs in &mut self.fs {
            assign("fs", &mut fs.id);
        }
        assign("rng", &mut self.rng.id);
        if self.console.mode != ConsoleOutputMode::Off {
            assign("console", &mut self.console.id);
        }
        if let Some(vsock) = &mut self.vsock {
            assign("vsock", &mut vsock.id);
        }
        if let Some(balloon) = &mut self.balloon {
            assign("balloon", &mut balloon.id);
        }
    }

    /// How the guest finds its virtio devices.
    pub fn transport(&self) -> Transport {
        let platform = self.platform.as_ref();
        platform.map_or_else(Transport::default, |platform| platform.transport)
    }

    /// The names that devices have.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.device_ids().map(|(_, id)| id)
    }

    /// Whether `id` is the disk that the machine boots from.
    pub fn boots_from(&self, id: &str) -> bool {
        self.payload.boot_disk.as_deref() == Some(id)
    }

    /// Whether `id` names a device that a machine can be without.
    pub fn can_remove(&self, id: &str) -> bool {
        self.disks.iter().any(|disk| disk.id.as_deref() == Some(id))
            || self.net.iter().any(|net| net.id.as_deref() == Some(id))
            || self.fs.iter().any(|fs| fs.id.as_deref() == Some(id))
            || self.has_vsock(id)
    }

    /// A balloon takes pages of normal size out of memory that is there.
    fn check_balloon(&self, balloon: &BalloonConfig) -> Result<(), ConfigError> {
        if self.memory.hugepages {
            return Err(ConfigError::invalid(
                "balloon",
                format!("size={}", balloon.size),
                "expected none beside memory.hugepages=on: a huge page that the host's pool has lost meanwhile would end \
                 the VMM when the guest uses it again",
            ));
        }
        let plugged = self.memory.hotplugged_size.map_or(0, ByteSize::bytes);
        let memory = self.memory.size.bytes().saturating_add(plugged);
        BalloonConfig::check_size("balloon.size", balloon.size.bytes(), memory)
    }

    fn has_vsock(&self, id: &str) -> bool {
        let vsock = self.vsock.as_ref();
        vsock.is_some_and(|vsock| vsock.id.as_deref() == Some(id))
    }

    /// Takes the device `id` away, if it is one that a machine can be without.
    pub fn remove_device(&mut self, id: &str) {
        if self.has_vsock(id) {
            self.vsock = None;
        }
        self.disks.retain(|disk| disk.id.as_deref() != Some(id));
        self.net.retain(|net| net.id.as_deref() != Some(id));
        self.fs.retain(|fs| fs.id.as_deref() != Some(id));
    }

    /// The names that devices have, each with the path of its field.
    pub(crate) fn device_ids(&self) -> impl Iterator<Item = (String, &str)> {
        let disks = self.disks.iter().enumerate();
        let disks = disks.map(|(index, disk)| (format!("disks[{index}].id"), disk.id.as_deref()));
        let nets = self.net.iter().enumerate();
        let nets = nets.map(|(index, net)| (format!("net[{index}].id"), net.id.as_deref()));
        let fs = self.fs.iter().enumerate();
        let fs = fs.map(|(index, fs)| (format!("fs[{index}].id"), fs.id.as_deref()));
        let rng = std::iter::once(("rng.id".to_owned(), self.rng.id.as_deref()));
        let console = std::iter::once(("console.id".to_owned(), self.console.id.as_deref()));
        let vsock = self.vsock.iter();
        let vsock = vsock.map(|vsock| ("vsock.id".to_owned(), vsock.id.as_deref()));
        let balloon = self.balloon.iter();
        let balloon = balloon.map(|balloon| ("balloon.id".to_owned(), balloon.id.as_deref()));
        disks
            .chain(nets)
            .chain(fs)
            .chain(rng)
            .chain(console)
            .chain(vsock)
            .chain(balloon)
            .filter_map(|(field, id)| Some((field, id?)))
    }
}

impl VmConfig {
    /// Checks that the terminal has one owner.
    fn check_terminal(&self) -> Result<(), ConfigError> {
        let ports = self.console.ports.iter().flatten().enumerate();
        let ports = ports.map(|(index, port)| {
            let what = format!("the port {}", port.name);
            (format!("console.ports[{index}].mode"), what, port.mode)
        });
        let first = [
            ("serial.mode", "the serial port", self.serial.mode),
            ("console.mode", "the console", self.console.mode),
        ];
        let first = first.map(|(field, what, mode)| (field.to_owned(), what.to_owned(), mode));
        let mut owners = first
            .into_iter()
            .chain(ports)
            .filter(|(_, _, mode)| *mode == ConsoleOutputMode::Tty);
        if let (Some((_, owner, _)), Some((field, _, _))) = (owners.next(), owners.next()) {
            return Err(ConfigError::invalid(
                &field,
                "Tty",
                format!("expected another mode, as {owner} has the terminal"),
            ));
        }
        Ok(())
    }
}

impl Section for VmConfig {
    const UNSUPPORTED: &'static [&'static str] = &[
        "iommu",
        "landlock_enable",
        "landlock_rules",
        "generic_vhost_user",
        "pmem",
        "devices",
        "user_devices",
        "vdpa",
        "numa",
        "rtc",
        "pci_segments",
        "tpm",
    ];

    fn check(&self) -> Result<(), ConfigError> {
        fn part(name: &str, section: &impl Section) -> Result<(), ConfigError> {
            section
                .refuse_unsupported()
                .and_then(|()| section.check())
                .map_err(|error| error.within(name))
        }
        part("payload", &self.payload)?;
        part("cpus", &self.cpus)?;
        part("memory", &self.memory)?;
        let mut groups = HashSet::new();
        for (index, group) in self.rate_limit_groups.iter().flatten().enumerate() {
            let name = format!("rate_limit_groups[{index}]");
            part(&name, group)?;
            if !groups.insert(group.id.as_str()) {
                return Err(ConfigError::invalid(
                    &format!("{name}.id"),
                    format!("{:?}", group.id),
                    "expected a name that no other group has",
                ));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            part(&format!("disks[{index}]"), disk)?;
            if let Some(group) = &disk.rate_limit_group
                && !groups.contains(group.as_str())
            {
                return Err(ConfigError::invalid(
                    &format!("disks[{index}].rate_limit_group"),
                    format!("{group:?}"),
                    "expected the id of one of rate_limit_groups",
                ));
            }
        }
        for (index, net) in self.net.iter().enumerate() {
            part(&format!("net[{index}]"), net)?;
        }
        for (index, fs) in self.fs.iter().enumerate() {
            part(&format!("fs[{index}]"), fs)?;
        }
        if !self.fs.is_empty() {
            self.memory.check_shared("fs")?;
        }
        part("rng", &self.rng)?;
        if let Some(vsock) = &self.vsock {
            part("vsock", vsock)?;
        }
        if let Some(balloon) = &self.balloon {
            part("balloon", balloon)?;
            self.check_balloon(balloon)?;
        }
        if let Some(action) = self.watchdog_action
            && !self.watchdog
        {
            return Err(ConfigError::invalid(
                "watchdog_action",
                action,
                "expected watchdog=true beside it",
            ));
        }
        self.check_terminal()?;
        part("serial", &self.serial)?;
        part("console", &self.console)?;
        part("debug_console", &self.debug_console)?;
        if let Some(platform) = &self.platform {
            part("platform", platform)?;
        }
        if let Some(boot_disk) = &self.payload.boot_disk {
            let mut disks = self.disks.iter();
            if !disks.any(|disk| disk.id.as_ref() == Some(boot_disk)) {
                return Err(ConfigError::invalid(
                    "payload.boot_disk",
                    format!("{boot_disk:?}"),
                    "expected the id of one of disks",
                ));
            }
        }
        if self.watchdog && self.transport() == Transport::Mmio {
            return Err(ConfigError::invalid(
                "watchdog",
                "true",
                "expected platform.transport Pci, as the watchdog is a device on the PCI bus",
            ));
        }
        let mut ids = HashSet::new();
        for (field, id) in self.device_ids() {
            if !ids.insert(id) {
                return Err(ConfigError::invalid(
                    &field,
                    format!("{id:?}"),
                    "expected a name that no other device has",
                ));
            }
        }
        Ok(())
    }

    fn check_backing(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        let within = |name: String| move |error: ConfigError| error.within(&name);
        self.payload
            .check_backing(passed)
            .map_err(within("payload".to_owned()))?;
        for (index, disk) in self.disks.iter().enumerate() {
            disk.check_backing(passed)
                .map_err(within(format!("disks[{index}]")))?;
        }
        for (index, net) in self.net.iter().enumerate() {
            net.check_backing(passed)
                .map_err(within(format!("net[{index}]")))?;
        }
        Ok(())
    }
}
