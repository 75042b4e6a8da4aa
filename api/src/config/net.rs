//! `--net`: virtio network devices.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::option::{self, OptionString};
use super::rate_limiter::{RATE_LIMITER_RENAMES, unlimited_as_none};
use super::section::{Passed, Section, check_id, check_queue_size};
use super::{ConfigError, MacAddr, RateLimiterConfig};

/// Longest name of a network interface on Linux, without the NUL at its end.
const MAX_TAP_NAME: usize = 15;
/// Smallest MTU of a virtio network (virtio 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;
/// Most queues: a receiving and a sending one for each of the 256 queues that an interface of Linux can have.
const MAX_QUEUES: usize = 512;

/// A network device on a tap. `--net [tap=NAME|fd=N][,mac=,ip=,mask=,mtu=,num_queues=,queue_size=,id=,link=,offload_*=]`, and
/// the limits of `--disk`.
///
/// With `tap` the interface of that name is used, a tap or a macvtap, or a tap is created when there is none. With `fd` an
/// open tap is used. With neither, an interface is created and the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// Name of the tap or macvtap interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 15, pattern = r"^(?!\.{1,2}$)[!-$&-.0-9;-~]+$")]
    pub tap: Option<String>,
    /// Descriptor of an open tap, one per pair of queues. `fd` on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
    /// Address of the guest's interface. A random local one when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(?!00:00:00:00:00:00$)[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$")]
    pub mac: Option<MacAddr>,
    /// Address that the host's side of the tap gets.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "ip_address"
    )]
    #[schema(value_type = Option<String>)]
    pub ip: Option<IpAddr>,
    /// Network mask of that address.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "ip_address"
    )]
    #[schema(value_type = Option<String>)]
    pub mask: Option<IpAddr>,
    /// Largest packet in bytes, without the Ethernet header: 68 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 68, maximum = 65535)]
    pub mtu: Option<u16>,
    /// Descriptors per queue: a power of two from 4 to 32768.
    pub queue_size: u16,
    /// Name of the device. [`VmConfig::assign_ids`](super::VmConfig::assign_ids) gives one to those without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^(?!__)[!-~]+$")]
    pub id: Option<String>,
    /// Whether TCP segmentation offload is offered to the guest.
    pub offload_tso: bool,
    /// Whether the offloads of UDP are offered to the guest: fragmentation, and segmentation where the host has it.
    pub offload_ufo: bool,
    /// Whether checksum offload is offered to the guest. The other two need it.
    pub offload_csum: bool,
    /// Number of queues, a pair of one to receive and one to send for each queue of the tap: an even number from 2 to 512.
    /// Above 2 the tap is one with several queues (`multi_queue`). The guest begins with one pair.
    #[schema(minimum = 2, maximum = 512, multiple_of = 2)]
    pub num_queues: usize,
    /// Whether the guest's link is up. `vm.set-link` changes it.
    pub link: bool,
    /// Address of the host's side of the tap. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host_mac: Option<MacAddr>,
    /// Whether a virtual IOMMU is in front. Only `false`.
    pub iommu: bool,
    /// PCI segment. Only 0.
    #[schema(format = "int16")]
    pub pci_segment: u16,
    /// PCI slot. Not supported: slots are given in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uint8")]
    pub pci_device_id: Option<u8>,
    /// Whether another process serves the network. Only `false`.
    pub vhost_user: bool,
    /// Socket of that process. Not supported. `socket` on the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Which side opens the socket. Only the default.
    pub vhost_mode: VhostMode,
    /// Limits of bytes and packets, which hold for each direction by itself, all its queues together. What is held back
    /// waits. `bw_*` and `ops_*` on the command line.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "unlimited_as_none"
    )]
    pub rate_limiter_config: Option<RateLimiterConfig>,
}

fn ip_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.map(|text| text.parse())
        .transpose()
        .map_err(|_| de::Error::custom("expected an IP address, as in 192.168.249.1"))
}

/// Which side of a vhost-user socket Podvisor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VhostMode {
    /// It connects.
    #[default]
    Client,
    /// It listens.
    Server,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            tap: None,
            fds: None,
            mac: None,
            ip: None,
            mask: None,
            mtu: None,
            queue_size: 256,
            id: None,
            offload_tso: true,
            offload_ufo: true,
            offload_csum: true,
            num_queues: 2,
            link: true,
            host_mac: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            vhost_user: false,
            vhost_socket: None,
            vhost_mode: VhostMode::default(),
            rate_limiter_config: None,
        }
    }
}

const NO_IP_BESIDE_FDS: &str = "expected no ip beside it: who opened the tap gives it its address";

impl NetConfig {
    /// Checks the network, for which descriptors come under its name.
    ///
    /// # Errors
    /// What is wrong first, with the name of the field.
    pub fn validate_with(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        Section::validate_with(self, passed)
    }

    /// Length of the network prefix that `mask` stands for, in bits. None without a mask, or when its ones do not
    /// all come first.
    pub fn prefix_len(&self) -> Option<u8> {
        let (ones, total, leading) = match self.mask? {
            IpAddr::V4(mask) => {
                let bits = mask.to_bits();
                (bits.count_ones(), 32, bits.leading_ones())
            }
            IpAddr::V6(mask) => {
                let bits = mask.to_bits();
                (bits.count_ones(), 128, bits.leading_ones())
            }
        };
        (ones == leading && ones <= total)
            .then(|| u8::try_from(ones).ok())
            .flatten()
    }

    fn check_tap(&self) -> Result<(), ConfigError> {
        if let Some(tap) = &self.tap {
            let fits = (1..=MAX_TAP_NAME).contains(&tap.len())
                && !matches!(tap.as_str(), "." | "..")
                && tap
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
            if !fits {
                return Err(ConfigError::invalid(
                    "tap",
                    format!("{tap:?}"),
                    format!("expected an interface name of 1 to {MAX_TAP_NAME} characters"),
                ));
            }
        }
        let Some(fds) = &self.fds else { return Ok(()) };
        let shown = format!("{fds:?}");
        if fds.len() != self.pairs() {
            return Err(ConfigError::invalid("fds", shown, self.fd_per_pair()));
        }
        let problem = match fds.as_slice() {
            fds if fds.iter().any(|fd| *fd <= 2) => {
                "expected a descriptor above 2, as 0 to 2 are the terminal's"
            }
            _ if self.tap.is_some() => "expected either a tap's name or its descriptor, not both",
            _ if self.ip.is_some() => NO_IP_BESIDE_FDS,
            _ => return Ok(()),
        };
        Err(ConfigError::invalid("fds", shown, problem))
    }

    /// Number of queue pairs.
    pub fn pairs(&self) -> usize {
        self.num_queues / 2
    }

    /// What is expected of descriptors.
    fn fd_per_pair(&self) -> String {
        let queues = self.num_queues;
        match self.pairs() {
            1 => "expected one descriptor, as there is one pair of queues".to_owned(),
            pairs => {
                format!("expected {pairs} descriptors, one for each pair of num_queues={queues}")
            }
        }
    }

    fn check_queues(&self) -> Result<(), ConfigError> {
        let queues = self.num_queues;
        if !(2..=MAX_QUEUES).contains(&queues) || !queues.is_multiple_of(2) {
            return Err(ConfigError::invalid(
                "num_queues",
                queues,
                format!(
                    "expected an even number from 2 to {MAX_QUEUES}, half of them to receive and half to send"
                ),
            ));
        }
        check_queue_size(self.queue_size)
    }

    fn check_address(&self) -> Result<(), ConfigError> {
        match (self.ip, self.mask) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(ConfigError::missing(
                "mask",
                "a network mask beside ip, as in 255.255.255.0",
            )),
            (None, Some(_)) => Err(ConfigError::missing(
                "ip",
                "an address beside mask, as in 192.168.249.1",
            )),
            (Some(ip), Some(mask)) => {
                if ip.is_ipv4() != mask.is_ipv4() {
                    return Err(ConfigError::invalid(
                        "mask",
                        mask,
                        format!("expected the same IP version as that of ip, {ip}"),
                    ));
                }
                if self.prefix_len().is_none() {
                    return Err(ConfigError::invalid(
                        "mask",
                        mask,
                        "expected a network mask, ones before zeros, as in 255.255.255.0",
                    ));
                }
                if ip.is_unspecified() || ip.is_multicast() {
                    return Err(ConfigError::invalid(
                        "ip",
                        ip,
                        "expected the address of one host",
                    ));
                }
                Ok(())
            }
        }
    }
}

impl Section for NetConfig {
    const UNSUPPORTED: &'static [&'static str] = &[
        "host_mac",
        "iommu",
        "pci_segment",
        "pci_device_id",
        "vhost_user",
        "vhost_socket",
        "vhost_mode",
    ];

    fn check(&self) -> Result<(), ConfigError> {
        self.check_queues()?;
        self.check_tap()?;
        self.check_address()?;
        check_id(self.id.as_deref())?;
        if let Some(mac) = self.mac
            && !mac.is_unicast()
        {
            return Err(ConfigError::invalid(
                "mac",
                mac,
                "expected a unicast address: the lowest bit of its first byte is 0, and it is not all zero",
            ));
        }
        if let Some(mtu) = self.mtu
            && mtu < MIN_MTU
        {
            return Err(ConfigError::invalid(
                "mtu",
                mtu,
                format!("expected {MIN_MTU} to {}", u16::MAX),
            ));
        }
        if !self.offload_csum && (self.offload_tso || self.offload_ufo) {
            return Err(ConfigError::invalid(
                "offload_csum",
                "off",
                "expected offload_tso=off and offload_ufo=off beside it, as both need checksum offload",
            ));
        }
        Ok(())
    }

    fn check_backing(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        let passed = passed(self.id.as_deref().unwrap_or_default());
        let shown = format!("of {passed} descriptors");
        if passed == 0 {
            Ok(())
        } else if let Some(tap) = &self.tap {
            Err(ConfigError::invalid(
                "tap",
                format!("{tap:?}"),
                "expected either a tap's name or its descriptor, not both",
            ))
        } else if self.fds.is_some() {
            let problem = "expected descriptors that are passed or numbers of open ones, not both";
            Err(ConfigError::invalid("fds", shown, problem))
        } else if let Some(ip) = self.ip {
            Err(ConfigError::invalid("ip", ip, NO_IP_BESIDE_FDS))
        } else if passed != self.pairs() {
            Err(ConfigError::invalid("fds", shown, self.fd_per_pair()))
        } else {
            Ok(())
        }
    }
}

impl OptionString for NetConfig {
    const RENAMES: &'static [(&'static str, &'static str)] = &{
        let [a, b, c, d, e, f] = RATE_LIMITER_RENAMES;
        [("fd", "fds"), ("socket", "vhost_socket"), a, b, c, d, e, f]
    };
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
