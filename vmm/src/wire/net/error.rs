//! Networks that cannot be had.

use std::io;
use std::os::fd::RawFd;

use devices::virtio::net::{NetError as DeviceError, TapError};

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
    /// A tap that can only be opened with one queue.
    #[error(
        "--net: tap={name} has a single queue, expected one with several for num_queues={queues}; make it with `ip tuntap \
         add dev {name} mode tap multi_queue`"
    )]
    SingleQueue {
        /// The name as configured.
        name: String,
        /// Number of queues as configured.
        queues: usize,
    },
    /// Descriptors that are no queues of one interface.
    #[error("--net: fds: {problem}")]
    Descriptors {
        /// What is wrong with them.
        problem: String,
    },
    /// A macvtap is the guest's, and has no address of the host.
    #[error("--net: tap={name} is a macvtap, expected no ip: the host has no address there")]
    MacvtapAddress {
        /// The name as configured.
        name: String,
    },
    /// The character device is of another interface.
    #[error(
        "--net: tap={name} is a macvtap, and {path} is of another one, expected its own device: that of another network \
         namespace has the same number"
    )]
    MacvtapElsewhere {
        /// The name as configured.
        name: String,
        /// The device.
        path: String,
    },
    /// The character device of a macvtap cannot be opened.
    #[error("--net: tap={name} is a macvtap, whose device {path} cannot be opened; {advice}")]
    Macvtap {
        /// The name as configured.
        name: String,
        /// Its device.
        path: String,
        /// What to do.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
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
        !matches!(
            self,
            Self::Host { .. } | Self::Device(DeviceError::Queues(_))
        )
    }
}
