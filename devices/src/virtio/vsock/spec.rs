//! Numbers and structures of virtio 1.2, section 5.10.

use bitflags::bitflags;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// VIRTIO_VSOCK_F_STREAM (5.10.3).
pub(super) const VIRTIO_VSOCK_F_STREAM: u32 = 0;

/// Index of the receive queue (5.10.2).
pub(super) const RX: u16 = 0;

/// Index of the transmit queue.
pub(super) const TX: u16 = 1;

/// Index of the event queue.
pub(super) const EVENT: u16 = 2;

/// The address of the host (5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// The addresses that a guest can have: those below are reserved, and so is the largest of 32 bits (5.10.4).
pub(super) const GUEST_CIDS: std::ops::Range<u32> = 3..u32::MAX;

/// Length of `struct virtio_vsock_hdr`, in bytes.
pub(super) const HEADER_LEN: u64 = size_of::<Header>() as u64;

/// The longest payload of one packet, either way, in bytes.
pub(super) const MAX_PAYLOAD: u32 = 64 << 10;

/// VIRTIO_VSOCK_TYPE_STREAM (5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7), as a whole event.
pub(super) const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// `struct virtio_vsock_config` (5.10.4).
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    pub(super) guest_cid: U64,
}

/// `struct virtio_vsock_hdr` (5.10.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub(super) src_cid: U64,
    pub(super) dst_cid: U64,
    pub(super) src_port: U32,
    pub(super) dst_port: U32,
    pub(super) len: U32,
    pub(super) kind: U16,
    pub(super) op: U16,
    pub(super) flags: U32,
    pub(super) buf_alloc: U32,
    pub(super) fwd_cnt: U32,
}

bitflags! {
    /// Flags of VIRTIO_VSOCK_OP_SHUTDOWN (5.10.6.5), of the one who sends it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Shutdown: u32 {
        /// Will receive no more.
        const RECEIVE = 1;
        /// Will send no more.
        const SEND = 2;
    }
}

/// What a packet is for (5.10.6, `op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown(Shutdown),
    Data,
    CreditUpdate,
    CreditRequest,
    /// None of the specification.
    Unknown,
}

impl Op {
    fn parse(op: u16, flags: u32) -> Self {
        match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown(Shutdown::from_bits_truncate(flags)),
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => Self::Unknown,
        }
    }

    /// The fields `op` and `flags`.
    fn fields(self) -> (u16, u32) {
        match self {
            Self::Request => (1, 0),
            Self::Response => (2, 0),
            Self::Reset => (3, 0),
            Self::Shutdown(flags) => (4, flags.bits()),
            Self::Data => (5, 0),
            Self::CreditUpdate => (6, 0),
            Self::CreditRequest => (7, 0),
            Self::Unknown => (0, 0),
        }
    }
}

/// The two ends of a connection, as in a packet to or from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) kind: u16,
}

impl Ends {
    /// For the way back.
    pub(super) fn turned(self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
        }
    }
}

/// What one end says of its buffer for received data (5.10.6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Bytes that the buffer holds.
    pub(super) buf_alloc: u32,
    /// Bytes taken out of it so far, wrapping.
    pub(super) fwd_cnt: u32,
}

/// A header with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) ends: Ends,
    pub(super) op: Op,
    /// Bytes of payload.
    pub(super) len: u32,
    pub(super) credit: Credit,
}

impl Packet {
    /// A packet without payload.
    pub(super) fn new(ends: Ends, op: Op, credit: Credit) -> Self {
        Self {
            ends,
            op,
            len: 0,
            credit,
        }
    }

    /// A packet of the guest.
    pub(super) fn parse(header: &Header) -> Self {
        let Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        } = *header;
        Self {
            ends: Ends {
                src_cid: src_cid.get(),
                dst_cid: dst_cid.get(),
                src_port: src_port.get(),
                dst_port: dst_port.get(),
                kind: kind.get(),
            },
            op: Op::parse(op.get(), flags.get()),
            len: len.get(),
            credit: Credit {
                buf_alloc: buf_alloc.get(),
                fwd_cnt: fwd_cnt.get(),
            },
        }
    }

    /// The header to send.
    pub(super) fn header(&self) -> Header {
        let (op, flags) = self.op.fields();
        Header {
            src_cid: self.ends.src_cid.into(),
            dst_cid: self.ends.dst_cid.into(),
            src_port: self.ends.src_port.into(),
            dst_port: self.ends.dst_port.into(),
            len: self.len.into(),
            kind: self.ends.kind.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: self.credit.buf_alloc.into(),
            fwd_cnt: self.credit.fwd_cnt.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_its_fields_where_the_specification_puts_them() {
        let packet = Packet {
            ends: Ends {
                src_cid: 2,
                dst_cid: 3,
                src_port: 0x0504_0302,
                dst_port: 0x0908_0706,
                kind: TYPE_STREAM,
            },
            op: Op::Shutdown(Shutdown::all()),
            len: 0x1312_1110,
            credit: Credit {
                buf_alloc: 0x2322_2120,
                fwd_cnt: 0x3332_3130,
            },
        };
        let header = packet.header();
        assert_eq!(
            header.as_bytes(),
            [
                2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11,
                0x12, 0x13, 1, 0, 4, 0, 3, 0, 0, 0, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33
            ]
        );
        assert_eq!(Packet::parse(&header), packet);
    }

    #[test]
    fn every_op_survives_the_wire_and_others_are_unknown() {
        for op in 0..=u16::MAX {
            let header = Header {
                op: op.into(),
                ..Header::default()
            };
            let parsed = Packet::parse(&header);
            let known = (1..=7).contains(&op);
            assert_eq!(parsed.op != Op::Unknown, known);
            if known {
                assert_eq!(parsed.header().op, header.op);
            }
        }
    }
}
