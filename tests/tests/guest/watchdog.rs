//! The watchdog, with the driver that Debian has for it.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use tests::api::Api;
use tests::{Guest, Shell, assets};

/// Seconds until the watchdog comes to its end: long enough for an emulated guest to reload it in time.
const LIMIT: u64 = 10;

/// A guest with the driver.
fn start(flag: &str) -> Result<(Shell, Api)> {
    let guest = Guest::new()
        .kernel(assets::general_kernel()?)
        .file(&assets::general_module("drivers/watchdog/watchdog.ko")?)?
        .file(&assets::general_module("drivers/watchdog/i6300esb.ko")?)?
        .memory("size=192M")
        .arg(flag);
    let mut shell = Shell::start(guest.api())?;
    let api = shell.vmm().api()?;
    load(&mut shell)?;
    Ok((shell, api))
}

fn load(shell: &mut Shell) -> Result<()> {
    shell.run("insmod /watchdog.ko && insmod /i6300esb.ko")?;
    shell.run_until("ls /dev/watchdog0", "/dev/watchdog0")
}

fn bootstatus(shell: &mut Shell) -> Result<u64> {
    let status = shell.run("cat /sys/class/watchdog/watchdog0/bootstatus")?;
    Ok(status.parse()?)
}

#[test]
fn watchdog_resets_a_guest_that_hangs_and_no_other() -> Result<()> {
    let (mut shell, api) = start("--watchdog")?;
    assert_eq!(bootstatus(&mut shell)?, 0);
    let feed = format!("watchdog -T {LIMIT} -t 1 /dev/watchdog0");
    shell.run(&feed)?;
    shell.run(&format!("sleep {}", LIMIT + 3))?;
    // A pause is no time for a guest.
    api.done("vm.pause", None)?;
    thread::sleep(Duration::from_secs(LIMIT + 3));
    api.done("vm.resume", None)?;
    shell.run("sleep 2")?;
    assert!(!shell.vmm().messages().contains("watchdog"));

    shell.run("killall -9 watchdog")?;
    shell.wait_for_boot()?;
    let messages = shell.vmm().messages();
    assert!(
        messages.contains("the guest did not reload its watchdog in time"),
        "{messages}"
    );
    load(&mut shell)?;
    // WDIOF_CARDRESET: the guest can tell why it starts.
    assert_eq!(bootstatus(&mut shell)?, 0x20);
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn watchdog_turns_a_guest_off_that_hangs() -> Result<()> {
    let (mut shell, _api) = start("--watchdog=poweroff")?;
    shell.run(&format!("watchdog -T {LIMIT} -t 1 /dev/watchdog0"))?;
    shell.run("killall -9 watchdog")?;
    shell.into_vmm().wait()?.expect_status(0)?;
    Ok(())
}
