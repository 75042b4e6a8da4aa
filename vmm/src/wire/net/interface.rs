//! The host's network interfaces, by rtnetlink.

use std::io;
use std::net::IpAddr;

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, Ifinfomsg, LinkinfoDataMsg};
use netlink_socket2::{NetlinkSocket, ReplyError};

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A tap, opened with one queue or several.
    Tap {
        /// It can only be opened with IFF_MULTI_QUEUE.
        multi_queue: bool,
    },
    /// A macvtap, whose queues are opened by its character device.
    Macvtap,
    /// Something else, in words.
    Other(String),
}

/// An interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its number.
    pub(super) index: u32,
    /// What it is.
    pub(super) kind: Kind,
    /// Its Ethernet address; all zero for what has none.
    pub(super) mac: [u8; 6],
    /// In bytes.
    pub(super) mtu: u32,
    /// Whether it is set up.
    pub(super) up: bool,
}

/// The interfaces of this thread's network namespace.
pub(super) struct Interfaces(NetlinkSocket);

impl Interfaces {
    pub(super) fn new() -> Self {
        Self(NetlinkSocket::new())
    }

    /// The interface called `name`, if there is one.
    pub(super) fn find(&mut self, name: &str) -> io::Result<Option<Interface>> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes());
        let mut replies = self.0.request(&request)?;
        let (header, link) = match replies.recv_one() {
            Ok(reply) => reply,
            Err(error) if code(&error) == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let info = link.get_linkinfo().ok();
        let kind = info
            .as_ref()
            .and_then(|info| info.get_kind().ok())
            .map(|kind| kind.to_string_lossy());
        let kind = match (kind.as_deref(), info.and_then(|info| info.get_data().ok())) {
            (Some("tun"), Some(LinkinfoDataMsg::Tun(tun))) => match tun.get_type() {
                Ok(kind) if libc::c_int::from(kind) == libc::IFF_TAP => Kind::Tap {
                    multi_queue: tun
                        .get_multi_queue()
                        .is_ok_and(|multi_queue| multi_queue != 0),
                },
                _ => Kind::Other("a tun interface".to_owned()),
            },
            (Some("macvtap"), _) => Kind::Macvtap,
            (Some(kind), _) => Kind::Other(format!("a {kind} interface")),
            (None, _) if header.ifi_flags & libc::IFF_LOOPBACK as u32 != 0 => {
                Kind::Other("a loopback interface".to_owned())
            }
            (None, _) => Kind::Other("a network card".to_owned()),
        };
        Ok(Some(Interface {
            index: header.ifi_index.cast_unsigned(),
            kind,
            mac: link
                .get_address()
                .ok()
                .and_then(|mac| mac.try_into().ok())
                .unwrap_or_default(),
            mtu: link.get_mtu().map_err(io::Error::other)?,
            up: header.ifi_flags & libc::IFF_UP as u32 != 0,
        }))
    }

    /// Whether interface `index` has the address `ip` with a network of `prefix` bits.
    pub(super) fn has_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<bool> {
        let request = rt_addr::Request::new().op_getaddr_dump(&Ifaddrmsg::new());
        let mut replies = self.0.request(&request)?;
        let mut found = false;
        while let Some(reply) = replies.recv() {
            let (header, address) = reply?;
            // IPv6 has no local address apart from the one of the interface.
            let local = address.get_local().or_else(|_| address.get_address());
            found |= header.ifa_index == index
                && header.ifa_prefixlen == prefix
                && local.is_ok_and(|local| local == ip);
        }
        Ok(found)
    }

    /// Gives interface `index` the address `ip` in a network of `prefix` bits.
    pub(super) fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let family = if ip.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let header = Ifaddrmsg {
            // The families are 2 and 10.
            ifa_family: family as u8,
            ifa_prefixlen: prefix,
            ifa_index: index,
            ..Ifaddrmsg::new()
        };
        let mut request = rt_addr::Request::new()
            .set_create()
            .set_excl()
            .op_newaddr_do(&header);
        request.encode().push_local(ip).push_address(ip);
        if let IpAddr::V4(ip) = ip
            && prefix < 31
        {
            request
                .encode()
                .push_broadcast((ip.to_bits() | u32::MAX >> prefix).into());
        }
        self.0
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)
    }

    /// Takes the address `ip` in a network of `prefix` bits from interface `index`.
    pub(super) fn remove_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let family = if ip.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let header = Ifaddrmsg {
            // The families are 2 and 10.
            ifa_family: family as u8,
            ifa_prefixlen: prefix,
            ifa_index: index,
            ..Ifaddrmsg::new()
        };
        let mut request = rt_addr::Request::new().op_deladdr_do(&header);
        request.encode().push_local(ip);
        self.0
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)
    }

    /// Sets the Ethernet address of interface `index`.
    pub(super) fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&header(index));
        request.encode().push_address(&mac);
        self.0
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)
    }

    /// Sets the MTU of interface `index`, in bytes.
    pub(super) fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&header(index));
        request.encode().push_mtu(mtu);
        self.0
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)
    }

    /// Sets interface `index` up or down.
    pub(super) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let flag = libc::IFF_UP as u32;
        let header = Ifinfomsg {
            ifi_flags: if up { flag } else { 0 },
            ifi_change: flag,
            ..header(index)
        };
        let request = rt_link::Request::new().op_setlink_do(&header);
        self.0
            .request(&request)?
            .recv_ack()
            .map_err(io::Error::from)
    }
}

fn header(index: u32) -> Ifinfomsg {
    Ifinfomsg {
        ifi_index: index.cast_signed(),
        ..Ifinfomsg::new()
    }
}

fn code(error: &ReplyError) -> Option<i32> {
    error.as_io_error().raw_os_error()
}
