//! Numbers and structures of virtio 1.2, section 5.1. UDP segmentation (USO) is of virtio 1.3.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
};
use zerocopy::byteorder::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::backend::Offloads;

pub(super) use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

/// Index of the receive queue of the first pair.
#[cfg(test)]
pub(super) const RX: u16 = 0;

/// Index of the transmit queue of the first pair.
#[cfg(test)]
pub(super) const TX: u16 = 1;

/// Indexes of the receive and the transmit queue of pair `index` (5.1.2).
pub(super) const fn queues_of_pair(index: u16) -> (u16, u16) {
    (2 * index, 2 * index + 1)
}

/// Index of the control queue of a device whose driver uses up to `pairs` queue pairs (5.1.2).
pub(super) const fn control_queue(pairs: u16) -> u16 {
    2 * pairs
}

/// Length of `struct virtio_net_hdr` with VIRTIO_F_VERSION_1, in bytes.
pub(super) const HEADER_LEN: u64 = 12;

/// Offset of `num_buffers` in the header.
pub(super) const NUM_BUFFERS: usize = 10;

/// The longest packet with its header, in bytes: what a receive buffer has to hold where segmentation is offloaded
/// (5.1.6.3.1), and the longest that is sent.
pub(super) const MAX_PACKET: u64 = 65562;

/// Bytes of an Ethernet header with two VLAN tags.
const ETHERNET_HEADER: u64 = 14 + 8;

/// The least MTU a device may report (5.1.4.1).
pub(super) const MIN_MTU: u16 = 68;

/// `struct virtio_net_config` up to `mtu` (5.1.4); the fields after it belong to features that are not offered.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    pub(super) mac: [u8; 6],
    pub(super) status: U16,
    pub(super) max_virtqueue_pairs: U16,
    pub(super) mtu: U16,
}

/// The mask of one feature bit.
pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Each offload with the features by which the driver takes it (receive) and uses it (send).
const OFFLOADS: [(Offloads, u64, u64); 6] = [
    (
        Offloads::CSUM,
        bit(VIRTIO_NET_F_GUEST_CSUM),
        bit(VIRTIO_NET_F_CSUM),
    ),
    (
        Offloads::TSO4,
        bit(VIRTIO_NET_F_GUEST_TSO4),
        bit(VIRTIO_NET_F_HOST_TSO4),
    ),
    (
        Offloads::TSO6,
        bit(VIRTIO_NET_F_GUEST_TSO6),
        bit(VIRTIO_NET_F_HOST_TSO6),
    ),
    (
        Offloads::TSO_ECN,
        bit(VIRTIO_NET_F_GUEST_ECN),
        bit(VIRTIO_NET_F_HOST_ECN),
    ),
    (
        Offloads::UFO,
        bit(VIRTIO_NET_F_GUEST_UFO),
        bit(VIRTIO_NET_F_HOST_UFO),
    ),
    (
        Offloads::USO,
        bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6),
        bit(VIRTIO_NET_F_HOST_USO),
    ),
];

/// The features to offer for what may be offloaded.
pub(super) fn offered(offloads: Offloads) -> u64 {
    let offloads = if offloads.contains(Offloads::CSUM) {
        offloads
    } else {
        Offloads::empty()
    };
    OFFLOADS
        .iter()
        .filter(|(offload, ..)| offloads.contains(*offload))
        .fold(0, |features, (_, guest, host)| features | guest | host)
}

/// The features by which a driver takes packets that leave work to it: the bits of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
/// (5.1.6.5.6.1).
pub(super) fn guest_features() -> u64 {
    OFFLOADS
        .iter()
        .fold(0, |features, (_, guest, _)| features | guest)
}

/// What the backend may hand to a driver that accepted `features`.
///
/// A feature without the one it depends on (5.1.3.1) counts as not accepted: the backend would refuse the combination.
/// So does UDP segmentation over one version of IP only, as a tap has it for both or for none.
pub(super) fn accepted(features: u64) -> Offloads {
    let mut offloads = OFFLOADS
        .iter()
        .filter(|(_, guest, _)| features & guest == *guest)
        .fold(Offloads::empty(), |offloads, (offload, ..)| {
            offloads | *offload
        });
    if !offloads.contains(Offloads::CSUM) {
        return Offloads::empty();
    }
    if !offloads.intersects(Offloads::TSO4 | Offloads::TSO6) {
        offloads.remove(Offloads::TSO_ECN);
    }
    offloads
}

/// The longest packet to expect with its header, in bytes.
pub(super) fn longest_packet(offloads: Offloads, mtu: Option<u16>) -> u64 {
    if offloads.segmentation() {
        MAX_PACKET
    } else {
        HEADER_LEN + ETHERNET_HEADER + u64::from(mtu.unwrap_or(1500).max(1500))
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn configuration_has_its_fields_where_the_specification_puts_them() {
        let config = Config {
            mac: [1, 2, 3, 4, 5, 6],
            status: U16::new(0x0807),
            max_virtqueue_pairs: U16::new(0x0a09),
            mtu: U16::new(0x0c0b),
        };
        assert_eq!(config.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn offload_is_offered_in_both_directions() {
        assert_eq!(offered(Offloads::empty()), 0);
        assert_eq!(offered(Offloads::TSO4), 0, "it needs the checksum offload");
        assert_eq!(
            offered(Offloads::CSUM | Offloads::TSO4),
            1 | 1 << 1 | 1 << 7 | 1 << 11
        );
    }

    #[test]
    fn segmentation_without_checksum_is_not_accepted() {
        let tso4 = bit(VIRTIO_NET_F_GUEST_TSO4);
        let ecn = bit(VIRTIO_NET_F_GUEST_ECN);
        let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(accepted(tso4), Offloads::empty());
        assert_eq!(accepted(csum | ecn), Offloads::CSUM);
        assert_eq!(
            accepted(csum | tso4 | ecn),
            Offloads::CSUM | Offloads::TSO4 | Offloads::TSO_ECN
        );
    }

    #[test]
    fn udp_segmentation_is_taken_for_both_versions_of_ip_or_for_none() {
        let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
        let (uso4, uso6) = (bit(VIRTIO_NET_F_GUEST_USO4), bit(VIRTIO_NET_F_GUEST_USO6));
        assert_eq!(accepted(csum | uso4), Offloads::CSUM);
        assert_eq!(accepted(csum | uso6), Offloads::CSUM);
        assert_eq!(accepted(csum | uso4 | uso6), Offloads::CSUM | Offloads::USO);
        assert_eq!(
            offered(Offloads::CSUM | Offloads::USO),
            1 | 2 | 1 << 54 | 1 << 55 | 1 << 56
        );
    }

    #[test]
    fn what_the_driver_may_send_says_nothing_of_what_it_takes() {
        assert_eq!(
            accepted(bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_HOST_TSO4)),
            Offloads::empty()
        );
    }

    #[test]
    fn longest_packet_follows_mtu_until_segmentation_is_offloaded() {
        assert_eq!(longest_packet(Offloads::CSUM, None), 1534);
        assert_eq!(longest_packet(Offloads::CSUM, Some(9000)), 9034);
        assert_eq!(
            longest_packet(Offloads::CSUM | Offloads::TSO6, Some(9000)),
            65562
        );
    }
}
