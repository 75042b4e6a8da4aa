//! What the specification fixes: wire structures, and a request as the device understands it.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
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
    | FEATURE_CONFIG_WCE
    | 1 << VIRTIO_BLK_F_TOPOLOGY;

/// The driver may flush; if it does not accept this, a write is durable when it completes (5.2.6.2).
pub(super) const FEATURE_FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// The driver may say whether writes are durable when they complete.
pub(super) const FEATURE_CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

/// The disk is read-only.
pub(super) const FEATURE_RO: u64 = 1 << VIRTIO_BLK_F_RO;

/// There are several queues.
pub(super) const FEATURE_MQ: u64 = 1 << VIRTIO_BLK_F_MQ;

/// The driver may discard ranges.
pub(super) const FEATURE_DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;

/// The driver may have ranges filled with zeros.
pub(super) const FEATURE_WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// Bounds of the ranges that one request names: how many, and how many sectors each has. What takes long on the host is
/// bounded by them; zeros may have to be written one by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeBounds {
    pub(super) count: u32,
    pub(super) sectors: u32,
}

/// 16 ranges of 1 GiB.
pub(super) const DISCARD: RangeBounds = RangeBounds {
    count: 16,
    sectors: 1 << 21,
};

/// One range of 64 MiB.
pub(super) const WRITE_ZEROES: RangeBounds = RangeBounds {
    count: 1,
    sectors: 1 << 17,
};

/// `struct virtio_blk_config` (5.2.4) up to `write_zeroes_may_unmap`.
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
    pub(super) max_discard_sectors: U32,
    pub(super) max_discard_seg: U32,
    pub(super) discard_sector_alignment: U32,
    pub(super) max_write_zeroes_sectors: U32,
    pub(super) max_write_zeroes_seg: U32,
    pub(super) write_zeroes_may_unmap: u8,
    pub(super) unused1: [u8; 3],
}

/// `struct virtio_blk_discard_write_zeroes` (5.2.6): one of the ranges in the data of a request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Segment {
    pub(super) sector: U64,
    pub(super) num_sectors: U32,
    pub(super) flags: U32,
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
    /// Forget the ranges, so many of them, that the device-readable data name as [`Segment`]s.
    Discard { ranges: usize },
    /// Fill such ranges with zeros.
    WriteZeroes { ranges: usize },
}

/// A range of the disk that a request names, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The blocks of zeros may be freed.
    pub(super) unmap: bool,
}

/// Where a request may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes on the disk.
    pub(super) capacity: u64,
    /// No write is allowed.
    pub(super) read_only: bool,
    /// Discards were negotiated.
    pub(super) discard: bool,
    /// Writing zeros was negotiated.
    pub(super) write_zeroes: bool,
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
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => {
                Err(Status::IoError)
            }
            VIRTIO_BLK_T_DISCARD if limits.discard => Ok(Self::Discard {
                ranges: range_count(readable, writable, DISCARD)?,
            }),
            VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => Ok(Self::WriteZeroes {
                ranges: range_count(readable, writable, WRITE_ZEROES)?,
            }),
            _ => Err(Status::Unsupported),
        }
    }
}

impl Segment {
    /// The range that a request to discard, or to write zeros, means. The error is the status to answer with, as for
    /// [`Request::parse`]: Unsupported for flags that the type does not have (5.2.6.2).
    pub(super) fn parse(&self, write_zeroes: bool, limits: Limits) -> Result<Range, Status> {
        let (flags, bounds) = if write_zeroes {
            (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, WRITE_ZEROES)
        } else {
            (0, DISCARD)
        };
        let given = self.flags.get();
        if given & !flags != 0 {
            return Err(Status::Unsupported);
        }
        let sectors = self.num_sectors.get();
        let offset = self.sector.get().checked_mul(SECTOR_SIZE);
        let offset = offset.ok_or(Status::IoError)?;
        let len = u64::from(sectors) * SECTOR_SIZE;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        if sectors > bounds.sectors || end > limits.capacity {
            return Err(Status::IoError);
        }
        Ok(Range {
            offset,
            len,
            unmap: given & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }
}

/// How many ranges `readable` bytes of a request name, at least one.
fn range_count(readable: u64, writable: u64, bounds: RangeBounds) -> Result<usize, Status> {
    let count = readable / size_of::<Segment>() as u64;
    if writable != 0
        || !readable.is_multiple_of(size_of::<Segment>() as u64)
        || !(1..=u64::from(bounds.count)).contains(&count)
    {
        return Err(Status::IoError);
    }
    Ok(count as usize)
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
mod tests;
