//! The header of a qcow2 image (QEMU's docs/interop/qcow2.rst), read before anything else looks at the image.
//!
//! An image may come from anybody. What is not supported, or makes no sense, is refused here by name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// "QFI\xfb".
pub(super) const MAGIC: u32 = 0x5146_49fb;

/// Lengths of the header in bytes: of version 2, and the least of version 3.
pub(super) const V2_LEN: usize = 72;
const V3_LEN: usize = 104;

/// Most entries of an L1 table, which is QEMU's limit as well: 32 MiB.
pub(super) const MAX_L1_ENTRIES: u64 = 4 << 20;

/// Most bytes of the name of a backing file.
const MAX_NAME: usize = 1023;

/// Bits of a cluster's size: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Bits of an offset in the file that tables can hold.
const OFFSET_BITS: u32 = 56;

/// Header extensions.
const END_OF_EXTENSIONS: u32 = 0;
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Length of a feature's name in bytes.
const FEATURE_NAME_LEN: usize = 48;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Why the header of an image is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else.
    #[error("it is no qcow2 image: it does not begin with a qcow2 header")]
    Magic,
    /// A version that is not known.
    #[error("it is a qcow2 image of version {0}, expected 2 or 3")]
    Version(u32),
    /// The guest's data are encrypted.
    #[error("it is encrypted ({0}), which is not supported")]
    Encrypted(&'static str),
    /// Clusters are compressed by something else than zlib.
    #[error(
        "its clusters are compressed by {0}, expected zlib (qemu-img convert makes such an image)"
    )]
    Compression(&'static str),
    /// Clusters consist of parts.
    #[error("it has extended L2 entries (extended_l2=on), which are not supported")]
    ExtendedL2,
    /// The guest's data are in another file.
    #[error("its data are in a file of their own (data_file), which is not supported")]
    DataFile,
    /// Whoever wrote it last did not close it.
    #[error("it was not closed by whoever wrote it last: qemu-img check -r all mends it")]
    Dirty,
    /// Somebody found that it is broken.
    #[error("it is marked as corrupt: qemu-img check -r all may mend it")]
    Corrupt,
    /// Somebody extended the format.
    #[error("it needs features that are not known, of bits {0:#x}")]
    Features(u64),
    /// A field has a value that makes no sense.
    #[error("its header has {field} {value}, expected {expected}")]
    Field {
        /// Name of the field in the format's specification.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        expected: String,
    },
    /// Text that is none.
    #[error("its header has a {0} that is not UTF-8")]
    Text(&'static str),
}

/// The file that an image builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as the image has it: relative to the image's folder, if not absolute.
    pub name: String,
    /// Its format, if the image tells it.
    pub format: Option<String>,
}

/// What the header of an image tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The guest's disk in bytes.
    pub size: u64,
    /// The file that the image builds on.
    pub backing: Option<Backing>,
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) l1_entries: u64,
    pub(super) l1_offset: u64,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u64,
    pub(super) snapshots: u32,
}

impl Header {
    /// Reads the header of `file`.
    ///
    /// # Errors
    ///
    /// The host's; and [`HeaderError`] as the source of an error of kind InvalidData.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; 1 << 16];
        let mut have = read_up_to(file, &mut bytes, 0)?;
        let cluster = 1 << u32_at(&bytes, 20).clamp(*CLUSTER_BITS.start(), *CLUSTER_BITS.end());
        if cluster > bytes.len() {
            let first = bytes.len();
            bytes.resize(cluster, 0);
            if have == first {
                have += read_up_to(file, &mut bytes[first..], first as u64)?;
            }
        }
        bytes.truncate(have);
        Self::parse(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Parses the first cluster of an image, of which the end may be missing where there is nothing in it.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] for what is wrong first.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < 8 || u32_at(bytes, 0) != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = u32_at(bytes, 4);
        let header_len = match version {
            2 => V2_LEN,
            3 => field(
                "header_length",
                u32_at(bytes, 100),
                |len| len >= V3_LEN as u32 && len.is_multiple_of(8) && len <= 1 << 16,
                "a multiple of 8 of at least 104",
            )? as usize,
            other => return Err(HeaderError::Version(other)),
        };
        let cluster_bits = field(
            "cluster_bits",
            u32_at(bytes, 20),
            |bits| CLUSTER_BITS.contains(&bits),
            "9 to 21",
        )?;
        let cluster = 1_usize << cluster_bits;
        if header_len > cluster {
            return invalid(
                "header_length",
                header_len as u64,
                format!("at most a cluster of {cluster} bytes"),
            );
        }
        match u32_at(bytes, 32) {
            0 => {}
            1 => return Err(HeaderError::Encrypted("AES")),
            2 => return Err(HeaderError::Encrypted("LUKS")),
            other => return invalid("crypt_method", other.into(), "0".to_owned()),
        }
        let mut refcount_order = 4;
        if version == 3 {
            // A header that is longer than it must be tells how clusters are compressed.
            let kind = bytes.get(V3_LEN).copied().filter(|_| header_len > V3_LEN);
            check_features(u64_at(bytes, 72), kind)?;
            if let Some(kind) = kind.filter(|kind| *kind != 0) {
                return Err(compression(kind));
            }
            refcount_order = field(
                "refcount_order",
                u32_at(bytes, 96),
                |order| order <= 6,
                "0 to 6",
            )?;
        }
        let bytes = &bytes[..bytes.len().min(cluster)];
        let format = parse_extensions(bytes, header_len, cluster)?;
        let header = Self {
            version,
            size: u64_at(bytes, 24),
            backing: parse_backing(bytes, cluster)?.map(|name| Backing { name, format }),
            cluster_bits,
            refcount_order,
            l1_entries: u32_at(bytes, 36).into(),
            l1_offset: u64_at(bytes, 40),
            reftable_offset: u64_at(bytes, 48),
            reftable_clusters: u32_at(bytes, 56).into(),
            snapshots: u32_at(bytes, 60),
        };
        header.check_tables()?;
        Ok(header)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn check_tables(&self) -> Result<(), HeaderError> {
        let cluster = self.cluster_size();
        // A disk of no bytes needs no table.
        let needed = l1_entries(self.size, self.cluster_bits);
        if needed > MAX_L1_ENTRIES {
            let most = MAX_L1_ENTRIES * (cluster / 8) * cluster;
            return invalid(
                "size",
                self.size,
                format!("at most {most} with clusters of {cluster} bytes"),
            );
        }
        if !(needed..=MAX_L1_ENTRIES).contains(&self.l1_entries) {
            return invalid(
                "l1_size",
                self.l1_entries,
                format!("{needed} to {MAX_L1_ENTRIES} for its size"),
            );
        }
        let most = MAX_L1_ENTRIES * 8 / cluster;
        if !(1..=most).contains(&self.reftable_clusters) {
            return invalid(
                "refcount_table_clusters",
                self.reftable_clusters,
                format!("1 to {most}"),
            );
        }
        for (name, offset) in [
            ("l1_table_offset", self.l1_offset),
            ("refcount_table_offset", self.reftable_offset),
        ] {
            if offset == 0 || !offset.is_multiple_of(cluster) || offset >> OFFSET_BITS != 0 {
                return invalid(
                    name,
                    offset,
                    format!("a multiple of {cluster} above 0 and below 2^{OFFSET_BITS}"),
                );
            }
        }
        Ok(())
    }
}

/// Entries of an L1 table for a disk of `size` bytes.
pub(super) fn l1_entries(size: u64, cluster_bits: u32) -> u64 {
    // An L2 table is a cluster of entries of 8 bytes, each of which stands for a cluster.
    let covered = 1_u64 << (2 * cluster_bits - 3);
    size.div_ceil(covered)
}

fn check_features(features: u64, kind: Option<u8>) -> Result<(), HeaderError> {
    let known = [
        (CORRUPT, HeaderError::Corrupt),
        (DIRTY, HeaderError::Dirty),
        (DATA_FILE, HeaderError::DataFile),
        (EXTENDED_L2, HeaderError::ExtendedL2),
    ];
    for (feature, error) in known {
        if features & feature != 0 {
            return Err(error);
        }
    }
    if features & !COMPRESSION != 0 {
        return Err(HeaderError::Features(features & !COMPRESSION));
    }
    if features & COMPRESSION != 0 {
        return Err(compression(kind.unwrap_or(1)));
    }
    Ok(())
}

fn compression(kind: u8) -> HeaderError {
    HeaderError::Compression(if kind == 1 {
        "zstd"
    } else {
        "something unknown"
    })
}

/// Checks the header extensions from `at` on, and returns the format of the backing file.
fn parse_extensions(
    bytes: &[u8],
    at: usize,
    cluster: usize,
) -> Result<Option<String>, HeaderError> {
    // A name that follows the header of version 2 at once leaves no room for extensions.
    let end = match (at, usize::try_from(u64_at(bytes, 8))) {
        (V2_LEN, Ok(name)) if name > 0 => name.min(cluster),
        _ => cluster,
    };
    let mut at = at;
    let mut format: Option<String> = None;
    while at + 8 <= end {
        let (kind, len) = (u32_at(bytes, at), u32_at(bytes, at + 4) as usize);
        if kind == END_OF_EXTENSIONS {
            return Ok(format);
        }
        at += 8;
        if len > cluster.saturating_sub(at) {
            return invalid(
                "a header extension of length",
                len as u64,
                "the first cluster to hold it".to_owned(),
            );
        }
        match kind {
            BACKING_FORMAT => {
                let text = filled(bytes, at, len);
                let text =
                    String::from_utf8(text).map_err(|_| HeaderError::Text("backing format"))?;
                if format.as_ref().is_some_and(|other| *other != text) {
                    return invalid("backing formats", 2, "one".to_owned());
                }
                format = Some(text);
            }
            FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME_LEN) => {
                return invalid(
                    "feature names of length",
                    len as u64,
                    format!("a multiple of {FEATURE_NAME_LEN}"),
                );
            }
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    if end == cluster {
        return invalid(
            "header extensions of length",
            at as u64,
            "the first cluster to hold their end".to_owned(),
        );
    }
    Ok(format)
}

fn parse_backing(bytes: &[u8], cluster: usize) -> Result<Option<String>, HeaderError> {
    let (offset, len) = (u64_at(bytes, 8), u32_at(bytes, 16) as usize);
    if offset == 0 {
        return Ok(None);
    }
    if len == 0 || len > MAX_NAME {
        return invalid("backing_file_size", len as u64, format!("1 to {MAX_NAME}"));
    }
    let at = usize::try_from(offset)
        .ok()
        .filter(|at| *at < cluster - len.min(cluster));
    let Some(at) = at else {
        return invalid(
            "backing_file_offset",
            offset,
            "a place in the first cluster".to_owned(),
        );
    };
    let name = String::from_utf8(filled(bytes, at, len));
    name.map(Some)
        .map_err(|_| HeaderError::Text("backing file name"))
}

fn field<T: Copy + Into<u64>>(
    name: &'static str,
    value: T,
    good: impl Fn(T) -> bool,
    expected: &str,
) -> Result<T, HeaderError> {
    if good(value) {
        return Ok(value);
    }
    invalid(name, value.into(), expected.to_owned())
}

fn invalid<T>(field: &'static str, value: u64, expected: String) -> Result<T, HeaderError> {
    Err(HeaderError::Field {
        field,
        value,
        expected,
    })
}

/// `len` bytes from `at` on: zeros where there is nothing.
fn filled(bytes: &[u8], at: usize, len: usize) -> Vec<u8> {
    let there = bytes.get(at..).unwrap_or_default();
    let mut result = there[..len.min(there.len())].to_vec();
    result.resize(len, 0);
    result
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_be_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

/// Fills as much of `bytes` as the file has, and tells how much that is.
pub(super) fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
