//! What the specification fixes: wire structures, and a request as the device understands it.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes per sector, the unit of a request's address and of the capacity, whatever the logical block size.
pub const SECTOR_SIZE: u64 = 512;

/// Bytes of the identification that VIRTIO_BLK_T_GET_ID returns.
pub const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Feature bits of every block device: version 1, ring features, and the fields of its configuration space.
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | FEATURE_FLUSH
    | 1 << VIRTIO_BLK_F_TOPOLOGY;

/// The driver may flush; if it does not accept this, a write is durable when it completes (5.2.6.2).
pub(super) const FEATURE_FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// The disk is read-only.
pub(super) const FEATURE_RO: u64 = 1 << VIRTIO_BLK_F_RO;

/// There are several queues.
pub(super) const FEATURE_MQ: u64 = 1 << VIRTIO_BLK_F_MQ;

/// `struct virtio_blk_config` (5.2.4) up to `num_queues`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Config {
    pub(super) capacity: U64,
    pub(super) size_max: U32,
    pub(super) seg_max: U32,
    pub(super) cylinders: U16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
    pub(super) blk_size: U32,
    pub(super) physical_block_exp: u8,
    pub(super) alignment_offset: u8,
    pub(super) min_io_size: U16,
    pub(super) opt_io_size: U32,
    pub(super) writeback: u8,
    pub(super) unused: u8,
    pub(super) num_queues: U16,
}

/// The device-readable head of a request (5.2.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RequestHeader {
    pub(super) kind: U32,
    pub(super) reserved: U32,
    pub(super) sector: U64,
}

/// The status byte of a request (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a request asks for. Offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the device-writable data from the disk.
    Read { offset: u64 },
    /// Put the device-readable data on the disk.
    Write { offset: u64 },
    /// Make completed writes durable.
    Flush,
    /// Tell the identification.
    GetId,
}

/// Where a request may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes on the disk.
    pub(super) capacity: u64,
    /// No write is allowed.
    pub(super) read_only: bool,
}

impl Request {
    /// Understands `header`, given the lengths in bytes of the data that the device would read and write.
    ///
    /// The error is the status to answer with: Unsupported for a type the device does not offer, IoError for a request that
    /// is against the rules of its type or leads beyond the disk.
    pub(super) fn parse(
        header: &RequestHeader,
        readable: u64,
        writable: u64,
        limits: Limits,
    ) -> Result<Self, Status> {
        match header.kind.get() {
            VIRTIO_BLK_T_IN if readable == 0 => Ok(Self::Read {
                offset: data_offset(header.sector.get(), writable, limits)?,
            }),
            VIRTIO_BLK_T_OUT if writable == 0 && !limits.read_only => Ok(Self::Write {
                offset: data_offset(header.sector.get(), readable, limits)?,
            }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if writable >= ID_LEN as u64 => Ok(Self::GetId),
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
            _ => Err(Status::Unsupported),
        }
    }
}

/// The byte offset of `sector`, if `len` bytes from there are whole sectors, at least one, and on the disk.
fn data_offset(sector: u64, len: u64, limits: Limits) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
    let end = offset.checked_add(len).ok_or(Status::IoError)?;
    if len == 0 || !len.is_multiple_of(SECTOR_SIZE) || end > limits.capacity {
        return Err(Status::IoError);
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        capacity: 16 * SECTOR_SIZE,
        read_only: false,
    };

    fn header(kind: u32, sector: u64) -> RequestHeader {
        RequestHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        }
    }

    fn parse(kind: u32, sector: u64, readable: u64, writable: u64) -> Result<Request, Status> {
        Request::parse(&header(kind, sector), readable, writable, LIMITS)
    }

    #[test]
    fn wire_structures_have_the_specified_sizes() {
        assert_eq!(size_of::<RequestHeader>(), 16);
        assert_eq!(size_of::<Config>(), 36);
    }

    #[test]
    fn last_sector_is_on_the_disk_and_the_next_is_not() {
        assert_eq!(
            parse(VIRTIO_BLK_T_IN, 15, 0, 512),
            Ok(Request::Read { offset: 7680 })
        );
        assert_eq!(parse(VIRTIO_BLK_T_IN, 16, 0, 512), Err(Status::IoError));
        assert_eq!(parse(VIRTIO_BLK_T_IN, 15, 0, 1024), Err(Status::IoError));
        assert_eq!(
            parse(VIRTIO_BLK_T_OUT, 15, 512, 0),
            Ok(Request::Write { offset: 7680 })
        );
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 16, 512, 0), Err(Status::IoError));
    }

    #[test]
    fn sector_that_overflows_is_an_error() {
        for sector in [u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
            assert_eq!(parse(VIRTIO_BLK_T_IN, sector, 0, 512), Err(Status::IoError));
            assert_eq!(
                parse(VIRTIO_BLK_T_OUT, sector, 512, 0),
                Err(Status::IoError)
            );
        }
    }

    #[test]
    fn partial_sector_is_an_error() {
        for len in [0, 1, 511, 513] {
            assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 0, len), Err(Status::IoError));
            assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, len, 0), Err(Status::IoError));
        }
    }

    #[test]
    fn data_of_the_wrong_direction_is_an_error() {
        assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 512, 0), Err(Status::IoError));
        assert_eq!(parse(VIRTIO_BLK_T_IN, 0, 512, 512), Err(Status::IoError));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, 0, 512), Err(Status::IoError));
        assert_eq!(parse(VIRTIO_BLK_T_OUT, 0, 512, 512), Err(Status::IoError));
    }

    #[test]
    fn write_to_read_only_disk_is_an_error() {
        let limits = Limits {
            read_only: true,
            ..LIMITS
        };
        let request = Request::parse(&header(VIRTIO_BLK_T_OUT, 0), 512, 0, limits);
        assert_eq!(request, Err(Status::IoError));
    }

    #[test]
    fn identification_needs_room() {
        assert_eq!(parse(VIRTIO_BLK_T_GET_ID, 0, 0, 19), Err(Status::IoError));
        assert_eq!(parse(VIRTIO_BLK_T_GET_ID, 0, 0, 20), Ok(Request::GetId));
    }

    proptest! {
        #[test]
        fn accepted_data_is_on_the_disk(kind: u32, sector: u64, readable in 0..1_u64 << 34, writable in 0..1_u64 << 34) {
            for kind in [kind, kind % 16] {
                let len = match parse(kind, sector % 32, readable % 10_000, writable % 10_000) {
                    Ok(Request::Read { offset }) => offset + writable % 10_000,
                    Ok(Request::Write { offset }) => offset + readable % 10_000,
                    _ => 0,
                };
                prop_assert!(len <= LIMITS.capacity);
                let beyond = match parse(kind, sector | 1 << 40, readable, writable) {
                    Ok(Request::Read { offset } | Request::Write { offset }) => Some(offset),
                    _ => None,
                };
                prop_assert_eq!(beyond, None);
            }
        }
    }
}
