//! Layouts and numbers of virtio 1.2, section 5.3.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Ports of a device beside port 0. With it there are 31, as many as other VMMs have.
pub const MAX_NAMED_PORTS: usize = 30;
/// Longest name of a port in bytes. Linux shows it as a file's name.
pub const MAX_NAME_LEN: usize = 64;

/// The terminal's size is in configuration space.
pub(super) const F_SIZE: u64 = 0;
/// There are control queues.
pub(super) const F_MULTIPORT: u64 = 1;

pub(super) const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The largest size of a port's queues.
pub(super) const QUEUE_SIZE: u16 = 64;

/// What queue of an index is for (5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Bytes for the guest from the port of that number.
    Receive(usize),
    /// Bytes of the guest.
    Transmit(usize),
    /// Messages for the driver.
    ControlReceive,
    /// Messages of the driver.
    ControlTransmit,
}

impl Role {
    pub(super) fn of(queue: u16) -> Self {
        let pair = usize::from(queue / 2);
        match (queue, pair) {
            (2, _) => Self::ControlReceive,
            (3, _) => Self::ControlTransmit,
            (_, 0) if queue == 0 => Self::Receive(0),
            (_, 0) => Self::Transmit(0),
            _ if queue.is_multiple_of(2) => Self::Receive(pair - 1),
            _ => Self::Transmit(pair - 1),
        }
    }
}

/// Configuration space (5.3.4).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Config {
    pub(super) cols: U16,
    pub(super) rows: U16,
    pub(super) max_nr_ports: U32,
    pub(super) emerg_wr: U32,
}

/// Header of a message on a control queue (5.3.6.2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) id: U32,
    pub(super) event: U16,
    pub(super) value: U16,
}

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FromDriver {
    /// The driver can be told of ports, or cannot use the device.
    DeviceReady(bool),
    /// The driver has taken the port, or failed to.
    PortReady { id: u32, taken: bool },
    /// A program of the guest has opened or closed the port.
    PortOpen { id: u32, open: bool },
    /// Nothing that a driver says.
    Unknown { event: u16 },
}

impl FromDriver {
    pub(super) fn parse(header: &Header) -> Self {
        let (id, yes) = (header.id.get(), header.value.get() == 1);
        match header.event.get() {
            DEVICE_READY => Self::DeviceReady(yes),
            PORT_READY => Self::PortReady { id, taken: yes },
            PORT_OPEN => Self::PortOpen { id, open: yes },
            event => Self::Unknown { event },
        }
    }
}

/// A message for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToDriver {
    /// There is such a port.
    Add,
    /// The port has a name, which follows the header.
    Name,
    /// Somebody on the host is, or is no longer, at the other end.
    Open(bool),
}

impl ToDriver {
    pub(super) fn header(self, id: u32) -> Header {
        let (event, value) = match self {
            Self::Add => (DEVICE_ADD, 1),
            Self::Name => (PORT_NAME, 1),
            Self::Open(open) => (PORT_OPEN, open.into()),
        };
        Header {
            id: id.into(),
            event: event.into(),
            value: value.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_where_the_specification_puts_them() {
        let roles: Vec<_> = (0..8).map(Role::of).collect();
        assert_eq!(
            roles,
            [
                Role::Receive(0),
                Role::Transmit(0),
                Role::ControlReceive,
                Role::ControlTransmit,
                Role::Receive(1),
                Role::Transmit(1),
                Role::Receive(2),
                Role::Transmit(2),
            ]
        );
    }

    #[test]
    fn messages_have_their_fields_where_the_specification_puts_them() {
        let header = ToDriver::Open(true).header(0x0403_0201);
        assert_eq!(header.as_bytes(), [1, 2, 3, 4, 6, 0, 1, 0]);
        assert_eq!(ToDriver::Add.header(1).as_bytes(), [1, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(
            ToDriver::Name.header(2).as_bytes(),
            [2, 0, 0, 0, 7, 0, 1, 0]
        );
        assert_eq!(
            FromDriver::parse(&header),
            FromDriver::PortOpen {
                id: 0x0403_0201,
                open: true
            }
        );
        assert_eq!(
            FromDriver::parse(&ToDriver::Add.header(1)),
            FromDriver::Unknown { event: 1 }
        );
    }
}
