//! What time it is in a guest, and which one of its kind it is.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tests::{Guest, Shell};

/// Seconds since 1970 on the host.
fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Checks that `command` prints the time of its run, give or take what a clock of seconds and its reading can be off.
fn tells_the_time(shell: &mut Shell, command: &str) -> Result<()> {
    const OFF: u64 = 3;
    let before = now()?;
    let told: u64 = shell.run(command)?.trim().parse().context("a number")?;
    let after = now()?;
    ensure!(
        (before - OFF..=after + OFF).contains(&told),
        "{command} tells {told}, it is {before} to {after}"
    );
    Ok(())
}

#[test]
fn clock_of_the_machine_is_read_and_set() -> Result<()> {
    let mut shell = Shell::start(Guest::new())?;
    let name = shell.run("cat /sys/class/rtc/rtc0/name")?;
    ensure!(name.starts_with("rtc_cmos"), "{name}");
    tells_the_time(&mut shell, "cat /sys/class/rtc/rtc0/since_epoch")?;
    tells_the_time(&mut shell, "date +%s")?;
    shell.run("date -s 2033-05-18 && hwclock -w -u")?;
    shell.run("date -s 2001-09-09 && hwclock -s -u")?;
    assert_eq!(shell.run("date +%F")?, "2033-05-18");
    Ok(())
}

#[test]
fn generation_is_described_and_outlives_a_reboot() -> Result<()> {
    let mut shell = Shell::start(Guest::new())?;
    let device = "/sys/bus/acpi/devices/QEMUVGID:00";
    assert_eq!(shell.run(&format!("cat {device}/path"))?, "\\_SB_.VGEN");
    let ids = shell.run(&format!("cat {device}/modalias"))?;
    ensure!(ids.contains("VM_GEN_COUNTER"), "{ids}");
    let read = "devmem 0xdf028 64; devmem 0xdf030 64";
    let first = shell.run(read)?;
    shell.vmm().send("reboot -f\n")?;
    shell.wait_for_boot()?;
    let mut other = Shell::start(Guest::new())?;
    // The command that ended with the machine has no end of its own.
    shell
        .vmm()
        .send("echo generation: $(devmem 0xdf028 64) $(devmem 0xdf030 64) .\n")?;
    shell.vmm().wait_for(" .\n")?;
    let console = shell.vmm().console();
    let again = console
        .rsplit_once("generation: ")
        .and_then(|(_, rest)| rest.split_once(" .\n"))
        .context("the generation")?;
    assert_eq!(first.replace('\n', " "), again.0);
    ensure!(other.run(read)? != first, "two machines have {first}");
    Ok(())
}
