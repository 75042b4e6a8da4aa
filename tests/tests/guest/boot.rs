//! Kernels and how they are started.

use anyhow::Result;
use tests::{Guest, assets};

#[test]
fn bzimage_boots() -> Result<()> {
    let release = Guest::new().script("uname -r").output()?;
    assert!(release.ends_with("-cloud-amd64"), "{release}");
    Ok(())
}

#[test]
fn elf_kernel_boots() -> Result<()> {
    let release = Guest::new()
        .kernel(assets::vmlinux()?)
        .script("uname -r")
        .output()?;
    assert!(release.ends_with("-cloud-amd64"), "{release}");
    Ok(())
}

#[test]
fn command_line_reaches_the_kernel() -> Result<()> {
    let words = Guest::new()
        .cmdline("some.word=42")
        .script("cat /proc/cmdline")
        .output()?;
    assert!(
        words.split(' ').any(|word| word == "some.word=42"),
        "{words}"
    );
    Ok(())
}

#[test]
fn script_status_is_seen_on_the_host() -> Result<()> {
    let finished = Guest::new().script("echo before; exit 7").run()?;
    assert_eq!(finished.script()?, ("before", 7));
    Ok(())
}

#[test]
fn kernel_reports_no_acpi_or_pci_errors() -> Result<()> {
    let output = Guest::new()
        .script("dmesg | grep -E 'ACPI (BIOS )?(Error|Warning|Exception)|PCI: Fatal|BAR .*(failed|no space)' || true")
        .output()?;
    assert_eq!(output, "");
    Ok(())
}
