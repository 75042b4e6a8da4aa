//! The entropy device.

use anyhow::Result;
use tests::Guest;

#[test]
fn entropy_device_gives_bytes_that_differ() -> Result<()> {
    let output = Guest::new()
        .script(
            "cat /sys/class/misc/hw_random/rng_current
             for i in 1 2; do dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum; done",
        )
        .output()?;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.len(), 3, "{output}");
    assert!(lines[0].starts_with("virtio_rng"), "{output}");
    assert_ne!(lines[1], lines[2], "{output}");
    Ok(())
}

#[test]
fn entropy_comes_from_the_named_source() -> Result<()> {
    let output = Guest::new()
        .arg("--rng")
        .arg("src=/dev/zero")
        .script("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | xxd -p")
        .output()?;
    assert_eq!(output, "0".repeat(32));
    Ok(())
}
