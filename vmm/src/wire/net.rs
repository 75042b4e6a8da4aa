//! Taps: opened once, shared by the network devices of one machine after the other.
//!
//! | configured | what becomes the guest's network |
//! | --- | --- |
//! | `tap=NAME` | the tap of that name, or a new one that goes when the process does |
//! | `fd=N` | a tap that the starting process opened and passed on |
//! | neither | a new tap that the kernel names `vmtap0`, `vmtap1`, ... |
//!
//! The host's side of a tap by name gets `ip`, `mask` and `mtu`, and is set up. What is already as configured is left
//! alone, so that a tap made beforehand for a user is used without privileges. A tap by descriptor is left as it is; `mtu`
//! is then only what the guest is told.

mod interface;
mod tun;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use api::config::{MacAddr, NetConfig};
use devices::virtio::net::{Net, NetError as DeviceError, NetOptions, Offloads, Tap, TapError};

use self::interface::{Interfaces, Kind};

/// What the kernel makes a name of.
const NAME_PATTERN: &str = "vmtap%d";

/// A network that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// There is no such descriptor.
    #[error(
        "--net: fd={fd} is not open, expected the descriptor of a tap passed on by the starting process"
    )]
    NotOpen {
        /// The descriptor as configured.
        fd: RawFd,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The descriptor is of something else.
    #[error("--net: fd={fd} cannot be a network")]
    Descriptor {
        /// The descriptor as configured.
        fd: RawFd,
        /// What is wrong with it.
        #[source]
        source: TapError,
    },
    /// Taps cannot be opened here.
    #[error("--net: cannot open /dev/net/tun; {advice}")]
    NoTun {
        /// What to do.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The name belongs to another kind of interface.
    #[error(
        "--net: tap={name} is {kind}, expected a tap; name another one, or one that does not exist yet"
    )]
    NotTap {
        /// The name as configured.
        name: String,
        /// What it is.
        kind: String,
    },
    /// A tap that can only be opened with several queues.
    #[error(
        "--net: tap={name} has multiple queues, expected a single one; make it without `multi_queue`: `ip tuntap add dev \
         {name} mode tap`"
    )]
    MultiQueue {
        /// The name as configured.
        name: String,
    },
    /// The tap is somebody's.
    #[error("--net: tap={name} is in use by another process; stop that, or name another tap")]
    InUse {
        /// The name as configured.
        name: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Neither privileges nor a tap made for this user.
    #[error(
        "--net: not permitted to {action}; have CAP_NET_ADMIN, or have root make a tap for you: `ip tuntap add dev {name} \
         mode tap user {user} && ip link set dev {name} up`, and give tap={name}"
    )]
    NotPermitted {
        /// What was tried.
        action: String,
        /// A tap's name.
        name: String,
        /// The user's number.
        user: u32,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A call on the interface failed.
    #[error("--net: cannot {action}")]
    Host {
        /// What was tried, with the field and its value if there is one.
        action: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The tap was opened and is of no use.
    #[error("--net: tap={name} cannot be a network")]
    Unusable {
        /// The interface.
        name: String,
        /// What is wrong with it.
        #[source]
        source: TapError,
    },
    /// A value that the device does not take.
    #[error("--net: the device refuses a value")]
    Device(#[from] DeviceError),
}

impl NetError {
    /// Whether another value of `--net`, or another tap, would mend it. Otherwise the host is at fault.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Host { .. })
    }
}

/// An opened tap, and how the guest sees it.
#[derive(Debug)]
pub struct OpenNet {
    tap: Tap,
    id: String,
    options: NetOptions,
}

impl OpenNet {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh network device on the tap. The one before is dropped first: two would take packets from each other.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn device(&self) -> Result<Net<Tap>, NetError> {
        let tap = self.tap.try_clone().map_err(|source| NetError::Host {
            action: format!("duplicate the descriptor of {}", self.tap.name()),
            source,
        })?;
        Ok(Net::new(&self.id, tap, self.options)?)
    }

    /// The name of the host's interface.
    pub fn interface(&self) -> &str {
        self.tap.name()
    }

    /// The guest's Ethernet address: the configured one, or the one drawn when this was opened.
    pub fn mac(&self) -> MacAddr {
        MacAddr(self.options.mac)
    }
}

/// Opens the tap that `config` names, and sets up the host's side of it; or takes the one descriptor that a client opened
/// for it.
///
/// # Errors
///
/// [`NetError`] names the flag, the field and the value, and tells what to do.
pub fn open(config: &NetConfig, descriptors: &[OwnedFd]) -> Result<OpenNet, NetError> {
    let fd = config.fds.as_deref().and_then(<[RawFd]>::first);
    let (tap, mtu) = match (descriptors.first(), fd) {
        (Some(descriptor), _) => (copy_descriptor(descriptor.as_fd())?, config.mtu),
        (None, Some(fd)) => (open_descriptor(*fd)?, config.mtu),
        (None, None) => {
            let (tap, mtu) = open_interface(config)?;
            (tap, Some(mtu))
        }
    };
    let mac = match config.mac {
        Some(mac) => mac,
        None => random_mac().map_err(host("draw a random mac address"))?,
    };
    let open = OpenNet {
        tap,
        id: config.id.clone().unwrap_or_else(|| "net".to_owned()),
        options: NetOptions {
            mac: mac.octets(),
            mtu,
            queue_size: config.queue_size,
            offloads: offloads(config),
        },
    };
    tracing::debug!(id = open.id, interface = open.interface(), mac = %open.mac(), ?mtu, "network opened");
    Ok(open)
}

fn offloads(config: &NetConfig) -> Offloads {
    let mut offloads = Offloads::empty();
    offloads.set(Offloads::CSUM, config.offload_csum);
    offloads.set(
        Offloads::TSO4 | Offloads::TSO6 | Offloads::TSO_ECN,
        config.offload_tso,
    );
    offloads.set(Offloads::UFO, config.offload_ufo);
    offloads
}

fn open_descriptor(fd: RawFd) -> Result<Tap, NetError> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer, and any number may be asked for.
    #[allow(unsafe_code)]
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(NetError::NotOpen {
            fd,
            source: io::Error::last_os_error(),
        });
    }
    // SAFETY: the descriptor was just made, and belongs to nobody else.
    #[allow(unsafe_code)]
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    Tap::new(copy).map_err(|source| NetError::Descriptor { fd, source })
}

fn copy_descriptor(descriptor: BorrowedFd<'_>) -> Result<Tap, NetError> {
    let fd = descriptor.as_raw_fd();
    let copy = descriptor
        .try_clone_to_owned()
        .map_err(host("duplicate the descriptor of a tap"))?;
    Tap::new(copy).map_err(|source| NetError::Descriptor { fd, source })
}

/// The tap by name, or a new one, with its MTU.
fn open_interface(config: &NetConfig) -> Result<(Tap, u16), NetError> {
    let mut interfaces = Interfaces::new();
    if let Some(name) = &config.tap {
        let found = interfaces
            .find(name)
            .map_err(host(format!("look for interface {name}")))?;
        match found.map(|interface| interface.kind) {
            None | Some(Kind::Tap { multi_queue: false }) => {}
            Some(Kind::Tap { multi_queue: true }) => {
                return Err(NetError::MultiQueue { name: name.clone() });
            }
            Some(Kind::Other(kind)) => {
                return Err(NetError::NotTap {
                    name: name.clone(),
                    kind,
                });
            }
        }
    }
    let name = config.tap.as_deref();
    let file = tun::open()?;
    tun::attach(&file, name.unwrap_or(NAME_PATTERN))
        .map_err(|source| attach_error(name, source))?;
    let tap = Tap::new(file.into()).map_err(|source| NetError::Unusable {
        name: name.unwrap_or("a new interface").to_owned(),
        source,
    })?;
    let mtu = set_up(&mut interfaces, tap.name(), config)?;
    Ok((tap, mtu))
}

fn attach_error(name: Option<&str>, source: io::Error) -> NetError {
    match (source.raw_os_error(), name) {
        (Some(libc::EBUSY), Some(name)) => NetError::InUse {
            name: name.to_owned(),
            source,
        },
        (Some(libc::EPERM), Some(name)) => {
            not_permitted(format!("use or make interface tap={name}"), name, source)
        }
        (Some(libc::EPERM), None) => {
            not_permitted("make an interface".to_owned(), "vmtap0", source)
        }
        (_, Some(name)) => host(format!("use or make interface tap={name}"))(source),
        (_, None) => host("make an interface")(source),
    }
}

/// Brings the host's side into the configured state, and returns its MTU.
fn set_up(interfaces: &mut Interfaces, name: &str, config: &NetConfig) -> Result<u16, NetError> {
    let fail = |action: String| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM) => not_permitted(action, name, source),
            _ => host(action)(source),
        }
    };
    let found = interfaces
        .find(name)
        .map_err(host(format!("look for interface {name}")))?
        .ok_or_else(|| {
            host(format!("look for interface {name}"))(io::Error::from_raw_os_error(libc::ENODEV))
        })?;
    if let (Some(ip), Some(prefix)) = (config.ip, config.prefix_len()) {
        let action = || format!("set ip={ip} mask={} on interface {name}", mask(config.mask));
        let there = interfaces
            .has_address(found.index, ip, prefix)
            .map_err(fail(action()))?;
        if !there {
            interfaces
                .add_address(found.index, ip, prefix)
                .map_err(fail(action()))?;
        }
    }
    let mut mtu = found.mtu;
    if let Some(wanted) = config.mtu.filter(|wanted| u32::from(*wanted) != mtu) {
        interfaces
            .set_mtu(found.index, wanted)
            .map_err(fail(format!("set mtu={wanted} on interface {name}")))?;
        mtu = wanted.into();
    }
    if !found.up {
        interfaces
            .set_up(found.index)
            .map_err(fail(format!("set interface {name} up")))?;
    }
    // No tap has an MTU above that of the largest packet.
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn mask(mask: Option<IpAddr>) -> String {
    mask.map(|mask| mask.to_string()).unwrap_or_default()
}

fn host(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let action = action.into();
    move |source| NetError::Host { action, source }
}

fn not_permitted(action: String, name: &str, source: io::Error) -> NetError {
    // SAFETY: the call has no conditions and cannot fail.
    #[allow(unsafe_code)]
    let user = unsafe { libc::geteuid() };
    NetError::NotPermitted {
        action,
        name: name.to_owned(),
        user,
        source,
    }
}

/// An address that nobody else is likely to have, marked as locally administered.
fn random_mac() -> io::Result<MacAddr> {
    let mut octets = [0_u8; 6];
    // SAFETY: the array is as long as is said.
    #[allow(unsafe_code)]
    let len = unsafe { libc::getrandom(octets.as_mut_ptr().cast(), octets.len(), 0) };
    if len != octets.len() as libc::ssize_t {
        return Err(io::Error::last_os_error());
    }
    octets[0] = octets[0] & !1 | 2;
    Ok(MacAddr(octets))
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::fs::File;

    use super::*;

    #[test]
    fn random_addresses_are_local_stations_and_differ() {
        let drawn: Vec<_> = (0..64).map(|_| random_mac().unwrap()).collect();
        for mac in &drawn {
            assert!(mac.is_unicast());
            assert_eq!(mac.octets()[0] & 2, 2);
        }
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn descriptor_that_is_not_open_is_named() {
        let config = NetConfig {
            fds: Some(vec![987_654]),
            ..NetConfig::default()
        };
        let error = open(&config, &[]).unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(
            error.to_string(),
            "--net: fd=987654 is not open, expected the descriptor of a tap passed on by the starting process"
        );
    }

    #[test]
    fn descriptor_of_a_file_is_no_tap() {
        let file = File::open("/dev/null").unwrap();
        let config = NetConfig {
            fds: Some(vec![file.as_raw_fd()]),
            ..NetConfig::default()
        };
        let error = open(&config, &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("--net: fd={} cannot be a network", file.as_raw_fd())
        );
        assert_eq!(
            error.source().unwrap().to_string(),
            "the descriptor is not that of a tap interface"
        );
    }

    #[test]
    fn existing_interface_of_another_kind_is_refused() {
        let config = NetConfig {
            tap: Some("lo".to_owned()),
            ..NetConfig::default()
        };
        let error = open(&config, &[]).unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(
            error.to_string(),
            "--net: tap=lo is a loopback interface, expected a tap; name another one, or one that does not exist yet"
        );
    }

    #[test]
    fn missing_privilege_names_the_command_that_makes_a_tap() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let text = attach_error(Some("tap7"), denied()).to_string();
        assert!(
            text.contains("ip tuntap add dev tap7 mode tap user "),
            "{text}"
        );
        let text = attach_error(None, denied()).to_string();
        assert!(text.contains("give tap=vmtap0"), "{text}");
    }

    #[test]
    fn offloads_switched_off_are_not_offered() {
        assert_eq!(offloads(&NetConfig::default()), Offloads::all());
        let config = NetConfig {
            offload_tso: false,
            offload_ufo: false,
            ..NetConfig::default()
        };
        assert_eq!(offloads(&config), Offloads::CSUM);
        let config = NetConfig {
            offload_csum: false,
            ..config
        };
        assert_eq!(offloads(&config), Offloads::empty());
    }
}
