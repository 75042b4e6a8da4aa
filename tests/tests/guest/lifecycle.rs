//! Many boots: what each leaves behind.

use anyhow::Result;
use tests::{Disk, Guest, Network, assets};

const BOOTS: usize = 20;

#[test]
fn twenty_boots_leave_no_thread_descriptor_or_tap() -> Result<()> {
    let network = Network::new()?;
    let disk = Disk::new(1 << 20)?;
    let mut guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .network(&network)
        .disk(&disk, "")
        .arg("--net")
        .arg("tap=made0,ip=192.168.250.1,mask=255.255.255.0")
        .script("echo up.; read word; [ $word = off ] || reboot -f")
        .start()?;

    let mut counts = Vec::new();
    for boot in 1..=BOOTS {
        guest.wait_for_times("up.\n", boot)?;
        counts.push((guest.count("task")?, guest.count("fd")?));
        guest.send(if boot < BOOTS { "again\n" } else { "off\n" })?;
    }
    guest.wait()?.expect_status(0)?;

    assert!(
        counts.iter().all(|count| *count == counts[0]),
        "threads and descriptors: {counts:?}"
    );
    let links = network.host("ip -o link")?;
    assert_eq!(links.lines().count(), 1, "{links}");
    Ok(())
}
