//! Memory: its size, where it lies, and what stands behind it on the host.

use std::fs;

use anyhow::{Context, Result};
use tests::{Guest, Running};

/// Sums the ranges of RAM in the kernel's memory map, in MiB, and says how much of it is above 4 GiB.
const RAM: &str = r#"
total=0 high=0
while IFS='- ' read -r start end _ name; do
    [ "$name" = 'System RAM' ] || continue
    size=$((0x$end - 0x$start + 1))
    total=$((total + size))
    [ $((0x$start)) -lt $((0x100000000)) ] || high=$((high + size))
done <<LIST
$(grep '^[0-9a-f]' /proc/iomem)
LIST
echo $((total >> 20)) $((high >> 20))
"#;

fn ram(memory: &str) -> Result<(u64, u64)> {
    let output = Guest::new().memory(memory).script(RAM).output()?;
    let (total, high) = output.split_once(' ').context("two numbers")?;
    Ok((total.parse()?, high.parse()?))
}

#[test]
fn memory_size_is_seen() -> Result<()> {
    let (total, high) = ram("size=512M")?;
    assert!((510..=512).contains(&total), "{total} MiB");
    assert_eq!(high, 0);
    Ok(())
}

#[test]
fn five_gib_guest_has_ram_on_both_sides_of_the_hole() -> Result<()> {
    let (total, high) = ram("size=5G")?;
    assert!((5118..=5120).contains(&total), "{total} MiB");
    assert!(high >= 1024, "{high} MiB above 4 GiB");
    assert!(total - high >= 2048, "{high} MiB of {total} above 4 GiB");
    Ok(())
}

#[test]
fn ram_above_the_hole_keeps_what_is_written() -> Result<()> {
    Guest::new()
        .memory("size=5G")
        .script(
            "dd if=/dev/urandom bs=1M count=64 2>/dev/null >/tmp/a
             cp /tmp/a /tmp/b
             echo 3 >/proc/sys/vm/drop_caches
             cmp /tmp/a /tmp/b",
        )
        .output()?;
    Ok(())
}

/// A guest with this memory, up and waiting for a line.
fn waiting(memory: &str) -> Result<Running> {
    let guest = Guest::new()
        .memory(memory)
        .script("echo up; read line")
        .start()?;
    guest.wait_for("up")?;
    Ok(guest)
}

fn stop(mut guest: Running) -> Result<()> {
    guest.send("\n")?;
    guest.wait()?.expect_status(0)?;
    Ok(())
}

/// The lines of /proc/PID/smaps for mappings of at least 100 MiB: the guest's memory.
fn guest_mappings(guest: &Running) -> Result<String> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid()))?;
    let mut kept = String::new();
    let mut block = String::new();
    for line in smaps.lines() {
        block.push_str(line);
        block.push('\n');
        if line.starts_with("VmFlags:") {
            let size = block.lines().find_map(|line| line.strip_prefix("Size:"));
            let kib: u64 = size
                .and_then(|size| size.split_whitespace().next())
                .unwrap_or("0")
                .parse()?;
            if kib >= 100 << 10 {
                kept.push_str(&block);
            }
            block.clear();
        }
    }
    Ok(kept)
}

fn total_kib(mappings: &str, field: &str) -> Result<u64> {
    let values = mappings.lines().filter_map(|line| line.strip_prefix(field));
    values
        .map(|value| {
            Ok(value
                .split_whitespace()
                .next()
                .unwrap_or("0")
                .parse::<u64>()?)
        })
        .sum()
}

#[test]
fn memory_is_anonymous_and_touched_as_the_guest_uses_it() -> Result<()> {
    let guest = waiting("size=1G")?;
    let mappings = guest_mappings(&guest)?;
    assert!(!mappings.contains("memfd"), "{mappings}");
    assert!(total_kib(&mappings, "Rss:")? < 512 << 10, "{mappings}");
    stop(guest)
}

#[test]
fn shared_memory_is_a_memfd() -> Result<()> {
    let guest = waiting("size=128M,shared=on")?;
    let mappings = guest_mappings(&guest)?;
    assert!(mappings.contains("memfd"), "{mappings}");
    assert!(mappings.contains("rw-s"), "{mappings}");
    stop(guest)
}

#[test]
fn prefaulted_memory_is_all_resident() -> Result<()> {
    let guest = waiting("size=160M,prefault=on")?;
    let mappings = guest_mappings(&guest)?;
    assert!(total_kib(&mappings, "Rss:")? >= 160 << 10, "{mappings}");
    stop(guest)
}

#[test]
fn mergeable_memory_is_open_to_ksm() -> Result<()> {
    let guest = waiting("size=128M,mergeable=on")?;
    let mappings = guest_mappings(&guest)?;
    let flags = mappings
        .lines()
        .find(|line| line.starts_with("VmFlags:"))
        .unwrap_or_default();
    assert!(flags.split(' ').any(|flag| flag == "mg"), "{mappings}");
    stop(guest)
}

#[test]
fn memory_of_hugepages_boots() -> Result<()> {
    // Surplus pages come and go with the machine, so that tests side by side take none from each other.
    let surplus = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
    fs::write(surplus, "512")
        .with_context(|| format!("cannot write {surplus}: this test needs root"))?;
    let guest = waiting("size=128M,hugepages=on,hugepage_size=2M")?;
    let mappings = guest_mappings(&guest)?;
    assert!(
        mappings.contains("KernelPageSize:     2048 kB"),
        "{mappings}"
    );
    stop(guest)
}
