//! Which packets the driver wants to receive (virtio 1.2, 5.1.6.5).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::command::{Command, MacList, RxMode};

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// Bytes of a frame that [`Rules::passes`] looks at: both addresses and a VLAN tag.
pub(super) const LOOKED_AT: usize = 16;

/// Ethernet type of a VLAN tag (IEEE 802.1Q).
const VLAN_TAG: u16 = 0x8100;
/// The bits of a tag that are the number of the VLAN.
const VLAN_ID: u16 = 0xfff;
const VLANS: usize = 4096;

const BROADCAST: Mac = [0xff; 6];

/// What a driver asked to receive, shared by the queue that it asks on, those that receive and the configuration space.
#[derive(Debug)]
pub(super) struct Filter {
    /// Changes with the rules.
    generation: AtomicU64,
    rules: Mutex<Arc<Rules>>,
}

impl Filter {
    /// What a device does for a driver that has asked for nothing.
    pub(super) fn new(mac: Mac) -> Self {
        Self {
            generation: AtomicU64::new(0),
            rules: Mutex::new(Arc::new(Rules::new(mac))),
        }
    }

    /// The rules as they are.
    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.lock())
    }

    /// Replaces the rules.
    pub(super) fn set(&self, rules: Rules) {
        *self.lock() = Arc::new(rules);
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Rules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy of the rules for one queue, which costs one load of an atomic to keep fresh.
#[derive(Debug)]
pub(super) struct Sieve {
    generation: u64,
    rules: Arc<Rules>,
}

impl Sieve {
    pub(super) fn new(filter: &Filter) -> Self {
        Self {
            // Before the rules: what changes in between is taken again.
            generation: filter.generation.load(Ordering::Acquire),
            rules: filter.rules(),
        }
    }

    /// Takes the rules of `filter` if they have changed.
    pub(super) fn refresh(&mut self, filter: &Filter) {
        if filter.generation.load(Ordering::Acquire) != self.generation {
            *self = Self::new(filter);
        }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }
}

/// What to receive. All of it is a driver's wish: a device may also receive more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rules {
    /// The guest's address, as in the configuration space.
    pub(super) mac: Mac,
    /// Everything, whatever the other rules say. On until the driver turns it off.
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: MacList,
    multicast: MacList,
    /// VLANs to receive, a bit for each; none if the driver does not say which.
    vlans: Option<Vec<u64>>,
}

impl Rules {
    pub(super) fn new(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: MacList::default(),
            multicast: MacList::default(),
            vlans: None,
        }
    }

    /// A driver that accepted VIRTIO_NET_F_CTRL_VLAN says which VLANs it wants: none so far (5.1.6.5.3).
    pub(super) fn expect_vlans(&mut self) {
        self.vlans.get_or_insert_with(|| vec![0; VLANS / 64]);
    }

    /// Whether the rules are such as a device can have.
    pub(super) fn is_valid(&self) -> bool {
        let lists = self.unicast.is_valid() && self.multicast.is_valid();
        let vlans = self.vlans.as_ref();
        lists && vlans.is_none_or(|vlans| vlans.len() == VLANS / 64)
    }

    /// Takes the wish of `command`, and tells whether it was one.
    pub(super) fn apply(&mut self, command: Command) -> bool {
        match command {
            Command::Rx(mode, on) => {
                *match mode {
                    RxMode::Promiscuous => &mut self.promiscuous,
                    RxMode::AllMulticast => &mut self.all_multicast,
                    RxMode::AllUnicast => &mut self.all_unicast,
                    RxMode::NoMulticast => &mut self.no_multicast,
                    RxMode::NoUnicast => &mut self.no_unicast,
                    RxMode::NoBroadcast => &mut self.no_broadcast,
                } = on;
            }
            Command::MacTable { unicast, multicast } => {
                self.unicast = unicast;
                self.multicast = multicast;
            }
            Command::MacAddress(mac) => self.mac = mac,
            Command::Vlan { id, wanted } => {
                self.expect_vlans();
                let word = usize::from(id) / 64;
                if let Some(word) = self.vlans.as_mut().and_then(|vlans| vlans.get_mut(word)) {
                    let bit = 1 << (id % 64);
                    *word = if wanted { *word | bit } else { *word & !bit };
                }
            }
            Command::AnnounceAck | Command::Pairs(_) | Command::Offloads(_) => return false,
        }
        true
    }

    /// Whether every packet passes, so that none needs to be looked at.
    pub(super) fn passes_all(&self) -> bool {
        self.promiscuous
    }

    /// Whether a packet that begins with `frame` is one that the driver wants. One too short to tell is.
    pub(super) fn passes(&self, frame: &[u8]) -> bool {
        if self.promiscuous {
            return true;
        }
        if let (Some(vlans), Some(id)) = (&self.vlans, vlan(frame)) {
            let word = vlans.get(usize::from(id) / 64).copied().unwrap_or(0);
            if word & 1 << (id % 64) == 0 {
                return false;
            }
        }
        let Some(to) = frame.first_chunk::<6>() else {
            return true;
        };
        if *to == BROADCAST {
            !self.no_broadcast
        } else if is_group(*to) {
            !self.no_multicast && (self.all_multicast || self.multicast.contains(*to))
        } else {
            !self.no_unicast && (self.all_unicast || *to == self.mac || self.unicast.contains(*to))
        }
    }
}

/// The VLAN of a frame that has a tag.
fn vlan(frame: &[u8]) -> Option<u16> {
    let half = |at| {
        let bytes = frame.get(at..at + 2)?.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*bytes))
    };
    (half(12)? == VLAN_TAG).then_some(half(14)? & VLAN_ID)
}

/// Whether the address is that of several stations.
pub(super) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];

    fn frame(to: Mac) -> Vec<u8> {
        let mut frame = to.to_vec();
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0]);
        frame
    }

    fn tagged(to: Mac, tag: u16) -> Vec<u8> {
        let mut frame = frame(to);
        frame[12..14].copy_from_slice(&VLAN_TAG.to_be_bytes());
        frame[14..16].copy_from_slice(&tag.to_be_bytes());
        frame
    }

    /// The rules after `commands`, with promiscuous mode off.
    fn rules(commands: impl IntoIterator<Item = Command>) -> Rules {
        let mut rules = Rules::new(OWN);
        assert!(rules.apply(Command::Rx(RxMode::Promiscuous, false)));
        for command in commands {
            assert!(rules.apply(command));
        }
        rules
    }

    #[test]
    fn everything_passes_until_the_driver_says_otherwise() {
        let mut new = Rules::new(OWN);
        new.expect_vlans();
        for to in [OWN, OTHER, GROUP, BROADCAST] {
            assert!(new.passes(&frame(to)));
            assert!(new.passes(&tagged(to, 7)));
        }
    }

    #[test]
    fn own_address_and_broadcast_pass_without_promiscuous_mode() {
        let rules = rules([]);
        let passing = [OWN, OTHER, GROUP, BROADCAST].map(|to| rules.passes(&frame(to)));
        assert_eq!(passing, [true, false, false, true]);
    }

    #[test]
    fn changed_address_passes_in_place_of_the_old_one() {
        let rules = rules([Command::MacAddress(OTHER)]);
        assert!(rules.passes(&frame(OTHER)));
        assert!(!rules.passes(&frame(OWN)));
    }

    #[test]
    fn addresses_of_the_table_pass_until_the_next_table() {
        let table = |unicast: &[Mac], multicast: &[Mac]| Command::MacTable {
            unicast: MacList::of(unicast.iter().copied()),
            multicast: MacList::of(multicast.iter().copied()),
        };
        let mut rules = rules([table(&[OTHER], &[GROUP])]);
        assert!(rules.passes(&frame(OTHER)) && rules.passes(&frame(GROUP)));
        rules.apply(table(&[], &[]));
        assert!(!rules.passes(&frame(OTHER)) && !rules.passes(&frame(GROUP)));
    }

    #[test]
    fn table_that_is_too_long_to_keep_lets_all_of_its_kind_pass() {
        let many = (0..1000_u16).map(|at| [2, 1, 0, 0, at.to_be_bytes()[0], at.to_be_bytes()[1]]);
        let rules = rules([Command::MacTable {
            unicast: MacList::of(many),
            multicast: MacList::default(),
        }]);
        assert!(rules.passes(&frame(OTHER)));
        assert!(!rules.passes(&frame(GROUP)));
    }

    #[test]
    fn modes_let_their_kind_pass_or_not() {
        let passing = |mode| {
            let rules = rules([Command::Rx(mode, true)]);
            [OWN, OTHER, GROUP, BROADCAST].map(|to| rules.passes(&frame(to)))
        };
        assert_eq!(passing(RxMode::AllMulticast), [true, false, true, true]);
        assert_eq!(passing(RxMode::AllUnicast), [true, true, false, true]);
        assert_eq!(passing(RxMode::NoUnicast), [false, false, false, true]);
        assert_eq!(passing(RxMode::NoMulticast), [true, false, false, true]);
        assert_eq!(passing(RxMode::NoBroadcast), [true, false, false, false]);
    }

    #[test]
    fn vlans_pass_that_the_driver_added() {
        let vlan = |id, wanted| Command::Vlan { id, wanted };
        let mut rules = rules([vlan(7, true), vlan(4095, true), vlan(64, true)]);
        rules.apply(vlan(64, false));
        // The upper bits of a tag are its priority.
        for (tag, passes) in [
            (7, true),
            (0xe007, true),
            (4095, true),
            (8, false),
            (64, false),
        ] {
            assert_eq!(rules.passes(&tagged(OWN, tag)), passes, "{tag:#x}");
        }
        assert!(rules.passes(&frame(OWN)), "untagged packets pass");
        assert!(!rules.passes(&tagged(OTHER, 7)));
    }

    #[test]
    fn every_vlan_passes_for_a_driver_that_does_not_say_which() {
        assert!(rules([]).passes(&tagged(OWN, 7)));
    }

    #[test]
    fn packet_that_is_too_short_to_tell_passes() {
        let rules = rules([Command::Vlan {
            id: 1,
            wanted: true,
        }]);
        for len in 0..6 {
            assert!(rules.passes(&tagged(OTHER, 7)[..len]));
        }
        assert!(rules.passes(&tagged(OWN, 7)[..14]));
    }

    #[test]
    fn queue_sees_the_rules_that_were_set_since() {
        let filter = Filter::new(OWN);
        let mut sieve = Sieve::new(&filter);
        filter.set(rules([]));
        assert!(sieve.rules().passes(&frame(OTHER)));
        sieve.refresh(&filter);
        assert!(!sieve.rules().passes(&frame(OTHER)));
    }
}
