//! Where the metadata of an image that is written are.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use super::Qcow2Error;
use super::header::{Header, V2_LEN, read_up_to, u32_at, u64_at};

/// Bits of an entry that are an offset in the file: of the L1 table, and of the refcount table.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFTABLE_OFFSET: u64 = !0x1ff;

/// What a cluster of an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header,
    L1,
    Reftable,
    Refblock,
    L2,
    /// What the guest wrote, or nothing that is known of.
    Data,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1 => "L1 table",
            Self::Reftable => "refcount table",
            Self::Refblock => "refcount block",
            Self::L2 => "L2 table",
            Self::Data => "data",
        }
    }
}

/// The places of all metadata but snapshots, kept as they change.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) cluster_bits: u32,
    refcount_order: u32,
    /// By the index of the cluster; the others are data.
    kinds: HashMap<u64, Kind>,
    /// Offset of the refcount block of each entry of the refcount table, or 0.
    refblocks: Vec<u64>,
    l1: Table,
    reftable: Table,
    /// The first bytes of the header.
    header: [u8; V2_LEN],
}

/// A table of entries of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    offset: u64,
    entries: u64,
}

impl Layout {
    /// Finds the metadata of the image in `file`, which is `len` bytes long.
    pub(super) fn load(file: &File, header: &Header, len: u64) -> Result<Self, Qcow2Error> {
        let mut first = [0; V2_LEN];
        read_up_to(file, &mut first, 0).map_err(Qcow2Error::Read)?;
        let mut layout = Self {
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            kinds: HashMap::new(),
            refblocks: Vec::new(),
            l1: Table {
                offset: header.l1_offset,
                entries: header.l1_entries,
            },
            reftable: Table {
                offset: header.reftable_offset,
                entries: header.reftable_clusters << (header.cluster_bits - 3),
            },
            header: first,
        };
        layout.claim(0, 1, Kind::Header)?;
        layout.claim_table(layout.l1, Kind::L1)?;
        layout.claim_table(layout.reftable, Kind::Reftable)?;
        // Tables are allocated before something names them, and their clusters are never given up half.
        let end = len.next_multiple_of(1 << header.cluster_bits);
        let check = |offset: u64, kind| {
            if offset >= end || !offset.is_multiple_of(1 << header.cluster_bits) {
                return Err(Qcow2Error::Place {
                    offset,
                    kind: Kind::name(kind),
                });
            }
            Ok(())
        };
        layout.refblocks = entries(file, layout.reftable)?;
        for index in 0..layout.refblocks.len() {
            let offset = layout.refblocks[index] & REFTABLE_OFFSET;
            layout.refblocks[index] = offset;
            if offset == 0 {
                continue;
            }
            check(offset, Kind::Refblock)?;
            // Looking for a free cluster must not lead through refcounts of what is not there, without an end.
            let covered = (index as u128) << (layout.block_bits() + layout.cluster_bits);
            if covered > u128::from(end) {
                return Err(Qcow2Error::Refcounts {
                    index: index as u64,
                });
            }
            layout.claim(offset >> layout.cluster_bits, 1, Kind::Refblock)?;
        }
        for entry in entries(file, layout.l1)? {
            let offset = entry & L1_OFFSET;
            if offset != 0 {
                check(offset, Kind::L2)?;
                layout.claim(offset >> layout.cluster_bits, 1, Kind::L2)?;
            }
        }
        Ok(layout)
    }

    fn claim_table(&mut self, table: Table, kind: Kind) -> Result<(), Qcow2Error> {
        self.claim(
            table.offset >> self.cluster_bits,
            self.clusters(table),
            kind,
        )
    }

    fn clusters(&self, table: Table) -> u64 {
        (table.entries * 8).div_ceil(1 << self.cluster_bits)
    }

    /// Notes what `count` clusters are, which nothing else is.
    fn claim(&mut self, first: u64, count: u64, kind: Kind) -> Result<(), Qcow2Error> {
        for cluster in first..first + count {
            if let Some(other) = self.kinds.insert(cluster, kind) {
                return Err(Qcow2Error::Overlap {
                    offset: cluster << self.cluster_bits,
                    kinds: [other.name(), kind.name()],
                });
            }
        }
        Ok(())
    }

    /// What the `len` bytes at `offset` are; none if they are several things.
    pub(super) fn kind(&self, offset: u64, len: u64) -> Option<Kind> {
        let clusters = offset >> self.cluster_bits..=(offset + len.max(1) - 1) >> self.cluster_bits;
        let of = |cluster| self.kinds.get(&cluster).copied().unwrap_or(Kind::Data);
        let kind = of(*clusters.start());
        clusters
            .skip(1)
            .all(|cluster| of(cluster) == kind)
            .then_some(kind)
    }

    /// Bits of the number of refcounts in a block.
    fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Where the refcount of `cluster` is: the offset of its block, and its index in there. `added` is a block that is about
    /// to be entered into the refcount table, by its index.
    pub(super) fn refcount(&self, cluster: u64, added: Option<(u64, u64)>) -> Option<(u64, u64)> {
        let block = cluster >> self.block_bits();
        let index = cluster & ((1 << self.block_bits()) - 1);
        let known = usize::try_from(block)
            .ok()
            .and_then(|block| self.refblocks.get(block));
        let known = known.copied().filter(|offset| *offset != 0);
        let added = added.and_then(|(at, offset)| (at == block).then_some(offset));
        Some((known.or(added)?, index))
    }

    /// Sets the refcount of `index` in `block`, the bytes of a refcount block, to 1 if it is 0. Tells whether it was.
    pub(super) fn raise(&self, block: &mut [u8], index: u64) -> bool {
        let bits = 1_u64 << self.refcount_order;
        let Ok(at) = usize::try_from(index * bits / 8) else {
            return false;
        };
        let bytes = (bits / 8).max(1) as usize;
        let Some(field) = block.get_mut(at..at + bytes) else {
            return false;
        };
        // Refcounts of less than a byte fill it from its lowest bits on; the others are big-endian.
        let (shift, mask) = match bits {
            1..8 => ((index * bits % 8) as u32, (1_u8 << bits) - 1),
            _ => (0, 0xff),
        };
        if field.iter().any(|byte| byte >> shift & mask != 0) {
            return false;
        }
        field[bytes - 1] |= 1 << shift;
        true
    }

    /// Index of the table's entry at `offset`, which is in the table of `kind`.
    pub(super) fn entry_index(&self, kind: Kind, offset: u64) -> u64 {
        let table = match kind {
            Kind::L1 => self.l1,
            _ => self.reftable,
        };
        offset.saturating_sub(table.offset) / 8
    }

    /// Clusters of tables that `entry`, about to be written into the table of `kind`, names.
    pub(super) fn named(&self, kind: Kind, entry: u64) -> Option<u64> {
        let offset = match kind {
            Kind::L1 => entry & L1_OFFSET,
            _ => entry & REFTABLE_OFFSET,
        };
        (offset != 0).then_some(offset >> self.cluster_bits)
    }

    /// Notes that the table of `kind` names `cluster` in its entry `index`. Whatever was there before must not have been
    /// metadata of another kind.
    pub(super) fn enter(&mut self, kind: Kind, index: u64, cluster: u64) -> io::Result<()> {
        let named = if kind == Kind::L1 {
            Kind::L2
        } else {
            Kind::Refblock
        };
        if self
            .kinds
            .get(&cluster)
            .is_some_and(|other| *other != named)
        {
            return Err(overlap());
        }
        self.kinds.insert(cluster, named);
        if let Some(block) = usize::try_from(index).ok().filter(|_| kind != Kind::L1)
            && let Some(block) = self.refblocks.get_mut(block)
        {
            *block = cluster << self.cluster_bits;
        }
        Ok(())
    }

    /// What changes with `header`, about to be written over the first bytes of the image. Only size and tables may.
    pub(super) fn moved(&self, header: &[u8]) -> io::Result<Moved> {
        let same = |range: std::ops::Range<usize>| header[range.clone()] == self.header[range];
        if header.len() != V2_LEN || !same(0..24) || !same(32..36) || !same(60..V2_LEN) {
            return Err(overlap());
        }
        let l1 = Table {
            offset: u64_at(header, 40),
            entries: u32_at(header, 36).into(),
        };
        let reftable = Table {
            offset: u64_at(header, 48),
            entries: u64::from(u32_at(header, 56)) << (self.cluster_bits - 3),
        };
        Ok(Moved {
            l1: (l1 != self.l1).then_some(l1),
            reftable: (reftable != self.reftable).then_some(reftable),
        })
    }

    /// Clusters of the new L1 table.
    pub(super) fn new_l1(&self, moved: &Moved) -> std::ops::Range<u64> {
        moved.l1.map_or(0..0, |l1| {
            let first = l1.offset >> self.cluster_bits;
            first..first + self.clusters(l1)
        })
    }

    /// Notes the tables that `header` names, which was written to `file`.
    pub(super) fn follow(&mut self, file: &File, header: &[u8], moved: &Moved) -> io::Result<()> {
        self.header.copy_from_slice(&header[..V2_LEN]);
        if let Some(table) = moved.l1 {
            self.replace(self.l1, table, Kind::L1)?;
            self.l1 = table;
        }
        if let Some(table) = moved.reftable {
            self.replace(self.reftable, table, Kind::Reftable)?;
            self.reftable = table;
            let mut blocks = entries(file, table).map_err(io::Error::other)?;
            for block in &mut blocks {
                *block &= REFTABLE_OFFSET;
                if *block != 0 {
                    self.kinds
                        .insert(*block >> self.cluster_bits, Kind::Refblock);
                }
            }
            self.refblocks = blocks;
        }
        Ok(())
    }

    fn replace(&mut self, old: Table, new: Table, kind: Kind) -> io::Result<()> {
        for cluster in 0..self.clusters(old) {
            self.kinds
                .remove(&((old.offset >> self.cluster_bits) + cluster));
        }
        self.claim_table(new, kind).map_err(|_| overlap())
    }
}

/// Tables that are elsewhere from now on.
#[derive(Debug)]
pub(super) struct Moved {
    l1: Option<Table>,
    reftable: Option<Table>,
}

/// The error for a write that would destroy metadata.
pub(super) fn overlap() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the image's metadata overlap, it is corrupt",
    )
}

/// The entries of a table, in parts that are read one after the other.
fn entries(file: &File, table: Table) -> Result<Vec<u64>, Qcow2Error> {
    let len = usize::try_from(table.entries).unwrap_or(usize::MAX);
    let mut result = Vec::with_capacity(len);
    let mut bytes = vec![0; (1 << 16).min(len * 8)];
    while result.len() < len {
        let part = bytes.len().min((len - result.len()) * 8);
        let offset = table.offset + result.len() as u64 * 8;
        bytes.fill(0);
        read_up_to(file, &mut bytes[..part], offset).map_err(Qcow2Error::Read)?;
        result.extend((0..part / 8).map(|index| u64_at(&bytes, index * 8)));
    }
    Ok(result)
}
