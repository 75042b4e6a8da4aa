//! New, empty images that build on others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{BACKING_FORMAT, MAGIC, MAX_L1_ENTRIES, l1_entries};

/// 64 KiB, as QEMU makes them.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Refcounts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;

/// Bytes of the header, up to the length of header extensions.
const HEADER_LEN: usize = 104;

/// Clusters before the L1 table: header, refcount table, refcount block.
const BEFORE_L1: u64 = 3;

/// Makes `file`, which is empty, a layer of version 3 for a disk of `size` bytes on top of `backing`, the name of an image
/// of the format `backing_format`. It takes as long for any size.
///
/// # Errors
///
/// The host's; InvalidInput for a name that does not fit or a disk that is too large.
pub fn write_layer(file: &File, size: u64, backing: &str, backing_format: &str) -> io::Result<()> {
    let entries = l1_entries(size, CLUSTER_BITS);
    let l1_clusters = (entries * 8).div_ceil(CLUSTER);
    if backing.is_empty() || backing.len() > 1023 || entries > MAX_L1_ENTRIES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut header = Vec::with_capacity(HEADER_LEN + 64 + backing.len());
    let u32s = |values: &[u32], header: &mut Vec<u8>| {
        for value in values {
            header.extend_from_slice(&value.to_be_bytes());
        }
    };
    let u64s = |values: &[u64], header: &mut Vec<u8>| {
        for value in values {
            header.extend_from_slice(&value.to_be_bytes());
        }
    };
    let format_len = backing_format.len().next_multiple_of(8);
    // After the header: the extension with the format, and the end of extensions.
    let name_at = (HEADER_LEN + 8 + format_len + 8) as u64;
    u32s(&[MAGIC, 3], &mut header);
    u64s(&[name_at], &mut header);
    u32s(&[backing.len() as u32, CLUSTER_BITS], &mut header);
    u64s(&[size], &mut header);
    u32s(&[0, entries as u32], &mut header);
    u64s(&[BEFORE_L1 * CLUSTER, CLUSTER], &mut header);
    u32s(&[1, 0], &mut header);
    // No snapshots, no features.
    u64s(&[0, 0, 0, 0], &mut header);
    u32s(&[REFCOUNT_ORDER, HEADER_LEN as u32], &mut header);
    u32s(&[BACKING_FORMAT, backing_format.len() as u32], &mut header);
    header.extend_from_slice(backing_format.as_bytes());
    header.resize(name_at as usize, 0);
    header.extend_from_slice(backing.as_bytes());

    // An L1 table has at most 512 clusters: one block has the refcounts of all there is.
    let used = BEFORE_L1 + l1_clusters;
    let refcounts: Vec<u8> = (0..used).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.set_len(used * CLUSTER)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    file.write_all_at(&refcounts, 2 * CLUSTER)?;
    // Without a header it is nothing yet.
    file.write_all_at(&header, 0)
}
