//! Taps: opened once, shared by the network devices of one machine after the other.
//!
//! | configured | what becomes the guest's network |
//! | --- | --- |
//! | `tap=NAME` | the tap or macvtap of that name, or a new tap that goes when the process does |
//! | `fd=N` | a tap that the starting process opened and passed on, a descriptor for each of its queues |
//! | neither | a new tap that the kernel names `vmtap0`, `vmtap1`, ... |
//!
//! The host's side of a tap by name gets `ip`, `mask` and `mtu`, and is set up. What is already as configured is left
//! alone, so that a tap made beforehand for a user is used without privileges. What was changed is changed back if the network
//! does not come about. A tap by descriptor is left as it is; `mtu` is then only what the guest is told.
//!
//! A macvtap lets through what is for its own address only: the guest gets that address, or it gets the guest's.

mod error;
mod host;
mod interface;
mod tun;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use api::config::{MacAddr, NetConfig};
use devices::virtio::net::{LinkObserver, Net, NetOptions, Offloads, PortState, Tap};

pub use self::error::NetError;
use self::host::HostSide;
use self::interface::{Interface, Interfaces, Kind};
use super::disk::{limiter, limits};

/// What the kernel makes a name of.
const NAME_PATTERN: &str = "vmtap%d";

/// Opened queues of an interface, and how the guest sees it.
#[derive(Debug)]
pub struct OpenNet {
    /// One for each queue pair.
    taps: Vec<Tap>,
    id: String,
    options: NetOptions,
    host: HostSide,
    /// The state of the interface that was told of last.
    port: PortState,
}

impl OpenNet {
    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh network device on the tap, which tells `observer` of the tap's changes. The one before is dropped first: two
    /// would take packets from each other.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn device(&self, observer: Arc<dyn LinkObserver>) -> Result<Net<Tap>, NetError> {
        let taps = self.taps.iter().map(|tap| {
            tap.try_clone().map_err(|source| NetError::Host {
                action: format!("duplicate the descriptor of {}", tap.name()),
                source,
            })
        });
        let options = NetOptions {
            observer: Some(observer),
            ..self.options.clone()
        };
        Ok(Net::new(
            &self.id,
            taps.collect::<Result<_, _>>()?,
            options,
        )?)
    }

    /// The name of the host's interface.
    pub fn interface(&self) -> &str {
        self.taps.first().map_or("", Tap::name)
    }

    /// The guest's Ethernet address: the configured one, the one of its macvtap, or the one drawn when this was opened.
    pub fn mac(&self) -> MacAddr {
        MacAddr(self.options.mac)
    }

    /// Sets the link of the machines that are built from now on.
    pub fn set_link(&mut self, up: bool) {
        self.options.link = up;
    }

    /// The network is in use: what was changed of the host's interface stays. Before that, it is undone when this is dropped.
    pub fn settle(&mut self) {
        self.host.settle();
    }

    /// Takes note of the state of the host's interface, and tells whether it is another than before.
    pub fn note_port(&mut self, state: PortState) -> bool {
        std::mem::replace(&mut self.port, state) != state
    }
}

/// Opens the tap that `config` names, and sets up the host's side of it; or takes the descriptors that a client opened for
/// it.
///
/// # Errors
///
/// [`NetError`] names the flag, the field and the value, and tells what to do.
pub fn open(config: &NetConfig, descriptors: &[OwnedFd]) -> Result<OpenNet, NetError> {
    let fds = config.fds.as_deref().unwrap_or_default();
    let opened = match (descriptors, fds) {
        ([], []) => open_interface(config)?,
        ([], fds) => passed(config, fds.iter().map(|fd| open_descriptor(*fd)))?,
        (descriptors, _) => {
            let copies = descriptors.iter().map(AsFd::as_fd).map(copy_descriptor);
            passed(config, copies)?
        }
    };
    let Opened {
        taps,
        mtu,
        mac,
        host: host_side,
    } = opened;
    let mac = match config.mac.or(mac) {
        Some(mac) => mac,
        None => random_mac().map_err(host("draw a random mac address"))?,
    };
    let limiter = || limiter(limits(config.rate_limiter_config.as_ref()));
    let open = OpenNet {
        taps,
        id: config.id.clone().unwrap_or_else(|| "net".to_owned()),
        options: NetOptions {
            mac: mac.octets(),
            mtu,
            queue_size: config.queue_size,
            offloads: offloads(config),
            rx_limiter: limiter(),
            tx_limiter: limiter(),
            link: config.link,
            observer: None,
        },
        host: host_side,
        port: PortState::Up,
    };
    let queues = open.taps.len();
    tracing::debug!(id = open.id, interface = open.interface(), mac = %open.mac(), ?mtu, queues, "network opened");
    Ok(open)
}

/// What there is of a network on the host.
struct Opened {
    taps: Vec<Tap>,
    mtu: Option<u16>,
    /// The address that the guest has to have.
    mac: Option<MacAddr>,
    host: HostSide,
}

/// A network of taps that somebody else opened.
fn passed(
    config: &NetConfig,
    taps: impl Iterator<Item = Result<Tap, NetError>>,
) -> Result<Opened, NetError> {
    let taps = taps.collect::<Result<Vec<_>, _>>()?;
    let problem = |problem| Err(NetError::Descriptors { problem });
    for (tap, next) in taps.iter().zip(taps.iter().skip(1)) {
        if tap.name() != next.name() {
            let (tap, next) = (tap.name(), next.name());
            return problem(format!(
                "the descriptors are of {tap} and of {next}, expected queues of one interface"
            ));
        }
        if !tap.is_multi_queue() {
            return problem(format!(
                "interface {} was opened with a single queue, expected IFF_MULTI_QUEUE, as there are {} descriptors",
                tap.name(),
                taps.len()
            ));
        }
    }
    Ok(Opened {
        taps,
        mtu: config.mtu,
        mac: None,
        host: HostSide::untouched(),
    })
}

fn offloads(config: &NetConfig) -> Offloads {
    let mut offloads = Offloads::empty();
    offloads.set(Offloads::CSUM, config.offload_csum);
    offloads.set(
        Offloads::TSO4 | Offloads::TSO6 | Offloads::TSO_ECN,
        config.offload_tso,
    );
    offloads.set(Offloads::UFO | Offloads::USO, config.offload_ufo);
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

/// The interface by name, or a new tap, with its host's side as it shall be.
fn open_interface(config: &NetConfig) -> Result<Opened, NetError> {
    let mut interfaces = Interfaces::new();
    let name = config.tap.as_deref();
    let found = match name {
        None => None,
        Some(name) => interfaces
            .find(name)
            .map_err(host(format!("look for interface {name}")))?,
    };
    let several = config.pairs() > 1;
    let (taps, mac) = match (name, &found) {
        (Some(name), Some(found)) => match &found.kind {
            Kind::Tap { multi_queue: false } if several => {
                return Err(NetError::SingleQueue {
                    name: name.to_owned(),
                    queues: config.num_queues,
                });
            }
            Kind::Tap { multi_queue } => (open_taps(config, *multi_queue)?, None),
            Kind::Macvtap => {
                if config.ip.is_some() {
                    let name = name.to_owned();
                    return Err(NetError::MacvtapAddress { name });
                }
                let taps = open_macvtaps(config, name, found)?;
                // It lets nothing through but what is for its own address.
                (taps, Some(config.mac.unwrap_or(MacAddr(found.mac))))
            }
            Kind::Other(kind) => {
                return Err(NetError::NotTap {
                    name: name.to_owned(),
                    kind: kind.clone(),
                });
            }
        },
        _ => (open_taps(config, several)?, None),
    };
    let interface = taps.first().map_or("", Tap::name).to_owned();
    let (mtu, host) = host::set_up(&mut interfaces, &interface, config, mac, found.is_some())?;
    Ok(Opened {
        taps,
        mtu: Some(mtu),
        mac,
        host,
    })
}

/// One queue of a tap for each pair.
fn open_taps(config: &NetConfig, multi_queue: bool) -> Result<Vec<Tap>, NetError> {
    let mut taps: Vec<Tap> = Vec::new();
    for _ in 0..config.pairs() {
        let name = config.tap.as_deref();
        // All but the first are of the interface that the first was given.
        let given = taps.first().map(Tap::name).or(name);
        let file = tun::open()?;
        tun::attach(&file, given.unwrap_or(NAME_PATTERN), multi_queue)
            .map_err(|source| attach_error(name, source))?;
        taps.push(usable(file, name)?);
    }
    Ok(taps)
}

/// One queue of the macvtap `interface` for each pair.
fn open_macvtaps(
    config: &NetConfig,
    name: &str,
    interface: &Interface,
) -> Result<Vec<Tap>, NetError> {
    let path = format!("/dev/tap{}", interface.index);
    let open = |_| {
        let opened = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        let file = opened.map_err(|source| NetError::Macvtap {
            name: name.to_owned(),
            path: path.clone(),
            advice: match source.raw_os_error() {
                Some(libc::EBUSY) => "stop the process that uses it",
                Some(libc::ENOENT | libc::ENXIO) => "make it with mknod if this is a container",
                _ => "have it readable and writable for this user",
            },
            source,
        })?;
        // Interfaces of other network namespaces have the same numbers.
        let mac = tun::mac(&file).map_err(host(format!("read the address of interface {name}")))?;
        if mac != interface.mac {
            return Err(NetError::MacvtapElsewhere {
                name: name.to_owned(),
                path: path.clone(),
            });
        }
        tun::attach(&file, name, config.pairs() > 1)
            .map_err(|source| attach_error(Some(name), source))?;
        usable(file, Some(name))
    };
    (0..config.pairs()).map(open).collect()
}

fn usable(file: File, name: Option<&str>) -> Result<Tap, NetError> {
    Tap::new(file.into()).map_err(|source| NetError::Unusable {
        name: name.unwrap_or("a new interface").to_owned(),
        source,
    })
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
