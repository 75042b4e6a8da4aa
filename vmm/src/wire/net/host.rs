//! The host's side of an interface: brought into the configured state, and back.

use std::io;
use std::net::IpAddr;

use api::config::{MacAddr, NetConfig};

use super::interface::Interfaces;
use super::{NetError, host, not_permitted};

/// What was changed of an interface that was there before. It is changed back when this is dropped, unless the network
/// is in use.
#[derive(Debug)]
pub(super) struct HostSide {
    name: String,
    changes: Vec<Change>,
}

/// How to undo a change.
#[derive(Debug)]
enum Change {
    Address(IpAddr, u8),
    Mac([u8; 6]),
    Mtu(u32),
    Down,
}

impl HostSide {
    /// Nothing was changed.
    pub(super) fn untouched() -> Self {
        Self {
            name: String::new(),
            changes: Vec::new(),
        }
    }

    /// What was changed stays.
    pub(super) fn settle(&mut self) {
        self.changes.clear();
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let mut interfaces = Interfaces::new();
        // Whatever has that name now, it is no other interface: a tap that went has taken its changes with it.
        let Ok(Some(found)) = interfaces.find(&self.name) else {
            return;
        };
        for change in self.changes.drain(..).rev() {
            let undone = match change {
                Change::Address(ip, prefix) => interfaces.remove_address(found.index, ip, prefix),
                Change::Mac(mac) => interfaces.set_mac(found.index, mac),
                Change::Mtu(mtu) => interfaces.set_mtu(found.index, mtu),
                Change::Down => interfaces.set_up(found.index, false),
            };
            if let Err(error) = undone {
                tracing::warn!(interface = self.name, ?change, %error, "cannot undo a change of a network interface");
            }
        }
    }
}

/// Brings the host's side of interface `name` into the configured state, with the address `mac` if any, and returns its MTU
/// and what was changed. `kept`: the interface stays when its descriptors are closed.
pub(super) fn set_up(
    interfaces: &mut Interfaces,
    name: &str,
    config: &NetConfig,
    mac: Option<MacAddr>,
    kept: bool,
) -> Result<(u16, HostSide), NetError> {
    let fail = |action: String| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM) => not_permitted(action, name, source),
            _ => host(action)(source),
        }
    };
    let mut side = HostSide {
        name: name.to_owned(),
        changes: Vec::new(),
    };
    let mut changed = |change| {
        if kept {
            side.changes.push(change);
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
            changed(Change::Address(ip, prefix));
        }
    }
    if let Some(mac) = mac.filter(|mac| mac.octets() != found.mac) {
        interfaces
            .set_mac(found.index, mac.octets())
            .map_err(fail(format!("set mac={mac} on interface {name}")))?;
        changed(Change::Mac(found.mac));
    }
    let mut mtu = found.mtu;
    if let Some(wanted) = config.mtu.filter(|wanted| u32::from(*wanted) != mtu) {
        interfaces
            .set_mtu(found.index, wanted.into())
            .map_err(fail(format!("set mtu={wanted} on interface {name}")))?;
        changed(Change::Mtu(mtu));
        mtu = wanted.into();
    }
    if !found.up {
        interfaces
            .set_up(found.index, true)
            .map_err(fail(format!("set interface {name} up")))?;
        changed(Change::Down);
    }
    // No tap has an MTU above that of the largest packet.
    Ok((u16::try_from(mtu).unwrap_or(u16::MAX), side))
}

fn mask(mask: Option<IpAddr>) -> String {
    mask.map(|mask| mask.to_string()).unwrap_or_default()
}
