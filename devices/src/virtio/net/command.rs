//! Commands of the control queue (virtio 1.2, 5.1.6.5): bytes in, what the driver wants out.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net as net;

use super::filter::{Mac, is_group};
use super::spec::{self, bit};

/// The longest command that is read, in bytes: an address table of some 2700 entries.
pub(super) const MAX_COMMAND: usize = 16384;

/// Addresses of a table that are kept. Of a longer one, every address of its kind is received.
const MAX_MACS: usize = 64;

/// What a driver tells its device to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Turns a mode of receiving on or off (5.1.6.5.1).
    Rx(RxMode, bool),
    /// Receives packets for these addresses besides the device's own (5.1.6.5.2).
    MacTable {
        /// Of one station each.
        unicast: MacList,
        /// Of several stations each.
        multicast: MacList,
    },
    /// Changes the device's own address (5.1.6.5.2).
    MacAddress(Mac),
    /// Receives the packets of a VLAN, or no longer (5.1.6.5.3).
    Vlan {
        /// Number of the VLAN, below 4096.
        id: u16,
        /// Whether its packets are received.
        wanted: bool,
    },
    /// Has announced itself (5.1.6.5.4).
    AnnounceAck,
    /// Uses so many queue pairs (5.1.6.5.5).
    Pairs(u16),
    /// Takes packets that leave this work to it: a mask of VIRTIO_NET_F_GUEST_* (5.1.6.5.6).
    Offloads(u64),
}

/// A mode of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RxMode {
    /// All packets.
    Promiscuous,
    /// All packets for several stations.
    AllMulticast,
    /// All packets for one station.
    AllUnicast,
    /// No packet for several stations, but for broadcasts.
    NoMulticast,
    /// No packet for one station.
    NoUnicast,
    /// No broadcast.
    NoBroadcast,
}

/// Addresses of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MacList {
    macs: Vec<Mac>,
    /// There were more than are kept: any address is one of them.
    any: bool,
}

impl MacList {
    /// Keeps the addresses, as long as they are not too many.
    pub(super) fn of(macs: impl Iterator<Item = Mac>) -> Self {
        let mut list = Self::default();
        for mac in macs {
            if list.macs.len() == MAX_MACS {
                return Self {
                    macs: Vec::new(),
                    any: true,
                };
            }
            list.macs.push(mac);
        }
        list
    }

    pub(super) fn contains(&self, mac: Mac) -> bool {
        self.any || self.macs.contains(&mac)
    }

    pub(super) fn is_valid(&self) -> bool {
        self.macs.len() <= MAX_MACS
    }
}

/// Why a command cannot be one. The driver is told VIRTIO_NET_ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommandError {
    /// There is no such command, or not for a driver that accepted these features.
    #[error(
        "command {command} of class {class} is not known, or belongs to a feature that was not accepted"
    )]
    Unknown {
        /// Its class.
        class: u8,
        /// Its number in the class.
        command: u8,
    },
    /// Bytes are missing or left over.
    #[error("command has {len} bytes, which is not what it needs")]
    Length {
        /// Bytes there were.
        len: usize,
    },
    /// The value is none of those that there are.
    #[error("command has a value that it does not take")]
    Value,
}

impl Command {
    /// Reads a command, class and number first, of a driver that accepted `features`.
    pub(super) fn parse(bytes: &[u8], features: u64) -> Result<Self, CommandError> {
        let length = CommandError::Length { len: bytes.len() };
        let Some(([class, command], data)) = bytes.split_first_chunk::<2>() else {
            return Err(length);
        };
        let unknown = CommandError::Unknown {
            class: *class,
            command: *command,
        };
        let needs = |feature| match features & bit(feature) {
            0 => Err(unknown),
            _ => Ok(()),
        };
        match (u32::from(*class), u32::from(*command)) {
            (net::VIRTIO_NET_CTRL_RX, number) => {
                let (mode, feature) = rx_mode(number).ok_or(unknown)?;
                needs(feature)?;
                match data {
                    [on @ (0 | 1)] => Ok(Self::Rx(mode, *on == 1)),
                    [_] => Err(CommandError::Value),
                    _ => Err(length),
                }
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                needs(spec::VIRTIO_NET_F_CTRL_RX)?;
                let (unicast, data) = mac_list(data).ok_or(length)?;
                let (multicast, data) = mac_list(data).ok_or(length)?;
                if !data.is_empty() {
                    return Err(length);
                }
                Ok(Self::MacTable { unicast, multicast })
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                needs(spec::VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mac: Mac = data.try_into().map_err(|_| length)?;
                if is_group(mac) || mac == [0; 6] {
                    return Err(CommandError::Value);
                }
                Ok(Self::MacAddress(mac))
            }
            (
                net::VIRTIO_NET_CTRL_VLAN,
                number @ (net::VIRTIO_NET_CTRL_VLAN_ADD | net::VIRTIO_NET_CTRL_VLAN_DEL),
            ) => {
                needs(spec::VIRTIO_NET_F_CTRL_VLAN)?;
                let id = u16::from_le_bytes(data.try_into().map_err(|_| length)?);
                if id >= 4096 {
                    return Err(CommandError::Value);
                }
                let wanted = number == net::VIRTIO_NET_CTRL_VLAN_ADD;
                Ok(Self::Vlan { id, wanted })
            }
            (net::VIRTIO_NET_CTRL_ANNOUNCE, net::VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
                needs(spec::VIRTIO_NET_F_GUEST_ANNOUNCE)?;
                if !data.is_empty() {
                    return Err(length);
                }
                Ok(Self::AnnounceAck)
            }
            (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                needs(spec::VIRTIO_NET_F_MQ)?;
                let pairs = data.try_into().map_err(|_| length)?;
                Ok(Self::Pairs(u16::from_le_bytes(pairs)))
            }
            (net::VIRTIO_NET_CTRL_GUEST_OFFLOADS, net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                needs(spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                let mask = u64::from_le_bytes(data.try_into().map_err(|_| length)?);
                // Of what was accepted at first, and nothing else (5.1.6.5.6.2).
                if mask & !(spec::guest_features() & features) != 0 {
                    return Err(CommandError::Value);
                }
                Ok(Self::Offloads(mask))
            }
            _ => Err(unknown),
        }
    }
}

/// The mode of command `number`, and the feature that it belongs to.
fn rx_mode(number: u32) -> Option<(RxMode, u32)> {
    use spec::{VIRTIO_NET_F_CTRL_RX as RX, VIRTIO_NET_F_CTRL_RX_EXTRA as EXTRA};
    Some(match number {
        net::VIRTIO_NET_CTRL_RX_PROMISC => (RxMode::Promiscuous, RX),
        net::VIRTIO_NET_CTRL_RX_ALLMULTI => (RxMode::AllMulticast, RX),
        net::VIRTIO_NET_CTRL_RX_ALLUNI => (RxMode::AllUnicast, EXTRA),
        net::VIRTIO_NET_CTRL_RX_NOMULTI => (RxMode::NoMulticast, EXTRA),
        net::VIRTIO_NET_CTRL_RX_NOUNI => (RxMode::NoUnicast, EXTRA),
        net::VIRTIO_NET_CTRL_RX_NOBCAST => (RxMode::NoBroadcast, EXTRA),
        _ => return None,
    })
}

/// A `struct virtio_net_ctrl_mac`, and what follows it.
fn mac_list(data: &[u8]) -> Option<(MacList, &[u8])> {
    let (count, data) = data.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (macs, rest) = data.split_at_checked(count.checked_mul(size_of::<Mac>())?)?;
    let (macs, _) = macs.as_chunks::<6>();
    Some((MacList::of(macs.iter().copied()), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn parse(bytes: &[u8]) -> Result<Command, CommandError> {
        Command::parse(bytes, u64::MAX)
    }

    fn table(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
        let mut bytes = vec![1, 0];
        for macs in [unicast, multicast] {
            bytes.extend_from_slice(&(macs.len() as u32).to_le_bytes());
            bytes.extend_from_slice(macs.as_flattened());
        }
        bytes
    }

    #[test]
    fn commands_are_read_as_the_specification_writes_them() {
        let macs = |macs: &[Mac]| MacList::of(macs.iter().copied());
        let cases: [(&[u8], Command); 10] = [
            (&[0, 0, 1], Command::Rx(RxMode::Promiscuous, true)),
            (&[0, 1, 0], Command::Rx(RxMode::AllMulticast, false)),
            (&[0, 5, 1], Command::Rx(RxMode::NoBroadcast, true)),
            (&[1, 1, 2, 0, 0, 0, 0, 7], Command::MacAddress(MAC)),
            (
                &[2, 0, 0x34, 0x02],
                Command::Vlan {
                    id: 0x234,
                    wanted: true,
                },
            ),
            (
                &[2, 1, 1, 0],
                Command::Vlan {
                    id: 1,
                    wanted: false,
                },
            ),
            (&[3, 0], Command::AnnounceAck),
            (&[4, 0, 4, 0], Command::Pairs(4)),
            (&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], Command::Offloads(2)),
            (
                &table(&[MAC], &[GROUP, GROUP]),
                Command::MacTable {
                    unicast: macs(&[MAC]),
                    multicast: macs(&[GROUP, GROUP]),
                },
            ),
        ];
        for (bytes, command) in cases {
            assert_eq!(parse(bytes), Ok(command), "{bytes:?}");
        }
    }

    #[test]
    fn commands_that_are_not_known_are_refused() {
        for (class, command) in [
            (0, 6),
            (1, 2),
            (2, 2),
            (3, 1),
            (4, 1),
            (4, 2),
            (5, 1),
            (6, 0),
            (255, 255),
        ] {
            assert_eq!(
                parse(&[class, command, 0, 0]),
                Err(CommandError::Unknown { class, command })
            );
        }
    }

    #[test]
    fn commands_of_features_that_were_not_accepted_are_not_known() {
        let cases: [(&[u8], u32); 9] = [
            (&[0, 0, 1], spec::VIRTIO_NET_F_CTRL_RX),
            (&[0, 3, 1], spec::VIRTIO_NET_F_CTRL_RX_EXTRA),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], spec::VIRTIO_NET_F_CTRL_RX),
            (&[1, 1, 2, 0, 0, 0, 0, 7], spec::VIRTIO_NET_F_CTRL_MAC_ADDR),
            (&[2, 0, 1, 0], spec::VIRTIO_NET_F_CTRL_VLAN),
            (&[2, 1, 1, 0], spec::VIRTIO_NET_F_CTRL_VLAN),
            (&[3, 0], spec::VIRTIO_NET_F_GUEST_ANNOUNCE),
            (&[4, 0, 4, 0], spec::VIRTIO_NET_F_MQ),
            (
                &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            ),
        ];
        for (bytes, feature) in cases {
            assert!(Command::parse(bytes, bit(feature)).is_ok(), "{bytes:?}");
            assert!(
                matches!(
                    Command::parse(bytes, !bit(feature)),
                    Err(CommandError::Unknown { .. })
                ),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn values_that_are_not_there_are_refused() {
        let cases: [&[u8]; 5] = [
            &[0, 0, 2],
            &[1, 1, 1, 0, 0, 0, 0, 7],
            &[1, 1, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0x10],
            &[5, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ];
        for bytes in cases {
            assert_eq!(parse(bytes), Err(CommandError::Value), "{bytes:?}");
        }
    }

    #[test]
    fn offloads_beyond_those_that_were_accepted_are_refused() {
        let features = bit(spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | 2;
        let set = |mask| Command::parse(&[5, 0, mask, 0, 0, 0, 0, 0, 0, 0], features);
        assert_eq!(set(2), Ok(Command::Offloads(2)));
        assert_eq!(set(0x80), Err(CommandError::Value));
    }

    #[test]
    fn table_whose_count_leads_beyond_it_is_refused() {
        for count in [1, 2, 0x2aaa_aaab, u32::MAX] {
            let mut bytes = table(&[], &[MAC]);
            bytes[6..10].copy_from_slice(&count.to_le_bytes());
            assert_eq!(parse(&bytes).is_ok(), count == 1, "{count}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_command_or_an_error(
            head in prop::array::uniform2(0_u8..8),
            data in prop::collection::vec(any::<u8>(), 0..64),
            features in any::<u64>(),
        ) {
            let bytes: Vec<u8> = head.into_iter().chain(data).collect();
            let _ = Command::parse(&bytes, features);
        }

        #[test]
        fn bytes_too_few_or_too_many_are_refused(
            at in 0_usize..9,
            cut in 1_usize..8,
            more in any::<bool>(),
        ) {
            let commands: [&[u8]; 9] = [
                &[0, 0, 1],
                &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[1, 1, 2, 0, 0, 0, 0, 7],
                &[2, 0, 1, 0],
                &[2, 1, 1, 0],
                &[3, 0],
                &[4, 0, 4, 0],
                &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0],
            ];
            let mut bytes = commands[at].to_vec();
            if more {
                bytes.extend(std::iter::repeat_n(0, cut));
            } else {
                bytes.truncate(bytes.len().saturating_sub(cut));
            }
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
