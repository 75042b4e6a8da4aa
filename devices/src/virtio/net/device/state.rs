//! What is saved of a network device.

use serde::{Deserialize, Serialize};

use super::super::backend::Backend;
use super::super::control::Settings;
use super::super::filter::{Mac, Rules};
use super::super::link::PortState;
use super::super::options::{format_mac, is_station};
use super::super::spec;
use super::Net;
use crate::state::{Persist, Section, StateError};

const KIND: &str = "virtio-net";
const VERSION: u16 = 1;

/// What is saved of a device.
#[derive(Serialize, Deserialize)]
pub(in crate::virtio::net) struct State {
    pub(in crate::virtio::net) mac: Mac,
    pub(in crate::virtio::net) mtu: Option<u16>,
    /// The host's interface was up.
    pub(in crate::virtio::net) port_up: bool,
    /// The link was wanted up.
    pub(in crate::virtio::net) plugged: bool,
    /// The driver has still to announce itself.
    pub(in crate::virtio::net) announces: bool,
    /// The driver has still to be told of a change of the link.
    pub(in crate::virtio::net) link_untold: bool,
    pub(in crate::virtio::net) offers_enough: Vec<bool>,
    pub(in crate::virtio::net) pairs_in_use: u16,
    pub(in crate::virtio::net) rules: Rules,
    pub(in crate::virtio::net) settings: Settings,
}

impl<B: Backend> Persist for Net<B> {
    fn save(&self) -> Section {
        let Self {
            mac,
            mtu,
            link,
            pairs,
            filter,
            settings,
            offers_enough,
            // Configuration, the same in the device that is restored into.
            name: _,
            queue_sizes: _,
            offloads: _,
            rx_limiter: _,
            tx_limiter: _,
            // Of this host.
            backends: _,
            metrics: _,
            oversized: _,
            // Stopped, its queues handed back.
            workers: _,
            idle: _,
        } = self;
        Section::new(
            KIND,
            VERSION,
            &State {
                mac: *mac,
                mtu: *mtu,
                port_up: link.port() == PortState::Up,
                plugged: link.is_plugged(),
                announces: link.announces(),
                link_untold: link.is_untold(),
                offers_enough: offers_enough.clone(),
                pairs_in_use: pairs.in_use(),
                rules: (*filter.rules()).clone(),
                settings: *settings,
            },
        )
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            mac,
            mtu,
            port_up,
            plugged,
            announces,
            link_untold,
            offers_enough,
            pairs_in_use,
            rules,
            settings,
        } = section.decode(KIND, VERSION)?;
        let refuse = |field, value, expected: String| StateError::Field {
            kind: KIND,
            field,
            value,
            expected,
        };
        for (field, mac) in [("mac", mac), ("rules.mac", rules.mac)] {
            if !is_station(mac) {
                let expected = "the address of one station".to_owned();
                return Err(refuse(field, format_mac(&mac), expected));
            }
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < spec::MIN_MTU) {
            return Err(refuse("mtu", mtu.to_string(), "at least 68".to_owned()));
        }
        let count = self.pairs.count();
        if !(1..=count).contains(&pairs_in_use) {
            let value = pairs_in_use.to_string();
            return Err(refuse("pairs_in_use", value, format!("1 to {count}")));
        }
        if offers_enough.len() != usize::from(count) {
            let value = format!("{} of them", offers_enough.len());
            return Err(refuse("offers_enough", value, format!("{count} of them")));
        }
        if !rules.is_valid() {
            let expected = "lists no longer than a device keeps".to_owned();
            return Err(refuse("rules", "longer lists".to_owned(), expected));
        }
        self.mac = mac;
        self.mtu = mtu;
        self.link.restore(plugged, port_up, announces, link_untold);
        self.offers_enough = offers_enough;
        // The host's interface follows when the device starts.
        self.pairs.set_in_use(pairs_in_use);
        self.filter.set(rules);
        self.settings = settings;
        Ok(())
    }
}
