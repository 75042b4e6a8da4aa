//! What a VMM takes for itself: anonymous memory that is not the guest's.

use std::fs;

use anyhow::{Context, Result};

/// Anonymous resident memory of process `pid` in KiB, less the mapping that is the guest's RAM of `guest` KiB.
///
/// The guest's RAM is the largest mapping, or several if a VMM divides it; any mapping at least a quarter of its size is
/// taken for a part of it. Page cache and the text of programs do not count.
pub(crate) fn overhead(pid: u32, guest: u64) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("cannot read smaps")?;
    let mut total = 0;
    let mut is_guest = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(kilobytes) = second.parse::<u64>() else {
            continue;
        };
        match first {
            // The first field of each mapping.
            "Size:" => is_guest = kilobytes >= guest / 4,
            "Anonymous:" if !is_guest => total += kilobytes,
            _ => {}
        }
    }
    Ok(total)
}
