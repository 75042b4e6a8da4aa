//! The ways in which a machine ends, and what the process says about it.

use std::time::{Duration, Instant};

use anyhow::Result;
use tests::{Guest, Running};

/// A guest that waits, with or without somebody who listens to the power button.
fn waiting(listens: bool, args: &[&str]) -> Result<Running> {
    let deafen = if listens { "" } else { "killall power-button;" };
    let guest = Guest::new().script(&format!("{deafen} echo up; sleep 600"));
    let guest = args
        .iter()
        .fold(guest, |guest, arg| guest.arg(*arg))
        .start()?;
    guest.wait_for("up")?;
    Ok(guest)
}

#[test]
fn poweroff_in_the_guest_ends_the_process_with_0() -> Result<()> {
    Guest::new()
        .script("poweroff -f; sleep 60")
        .run()?
        .expect_status(0)?;
    Ok(())
}

#[test]
fn sigterm_presses_the_power_button() -> Result<()> {
    let guest = waiting(true, &[])?;
    guest.signal("TERM")?;
    guest
        .wait_at_most(Duration::from_secs(25))?
        .expect_status(0)?;
    Ok(())
}

#[test]
fn sigint_presses_the_power_button() -> Result<()> {
    let guest = waiting(true, &[])?;
    guest.signal("INT")?;
    guest
        .wait_at_most(Duration::from_secs(25))?
        .expect_status(0)?;
    Ok(())
}

#[test]
fn guest_that_ignores_the_button_ends_after_the_shutdown_timeout() -> Result<()> {
    let guest = waiting(false, &["--shutdown-timeout", "3"])?;
    let pressed = Instant::now();
    guest.signal("TERM")?;
    guest.wait_at_most(Duration::from_secs(25))?;
    assert!(pressed.elapsed() >= Duration::from_secs(3));
    Ok(())
}

#[test]
fn second_sigterm_ends_the_machine_now() -> Result<()> {
    let guest = waiting(false, &["--shutdown-timeout", "600"])?;
    guest.signal("TERM")?;
    std::thread::sleep(Duration::from_secs(1));
    guest.signal("TERM")?;
    guest.wait_at_most(Duration::from_secs(10))?;
    Ok(())
}

#[test]
fn reboot_starts_the_machine_again_in_the_same_process() -> Result<()> {
    let mut guest = Guest::new()
        .script("echo up; read word; [ $word = off ] || reboot -f; uptime")
        .start()?;
    guest.wait_for("up")?;
    let pid = guest.pid();
    guest.send("again\n")?;
    guest.wait_for_times("up", 2)?;
    assert_eq!(guest.pid(), pid);
    guest.send("off\n")?;
    guest.wait()?.output()?;
    Ok(())
}

#[test]
fn reboot_ends_the_process_with_no_reboot() -> Result<()> {
    let finished = Guest::new()
        .arg("--no-reboot")
        .script("echo up; reboot -f; sleep 60")
        .run()?
        .expect_status(0)?;
    assert_eq!(
        finished.console.matches("up\n").count(),
        1,
        "{}",
        finished.console
    );
    Ok(())
}

#[test]
fn guest_panic_ends_the_process_with_3_and_says_so() -> Result<()> {
    let finished = Guest::new()
        .script("echo c >/proc/sysrq-trigger; sleep 60")
        .run()?
        .expect_status(3)?;
    assert!(finished.messages.contains("panic"), "{}", finished.messages);
    assert_eq!(
        finished.messages.lines().count(),
        1,
        "{}",
        finished.messages
    );
    Ok(())
}
