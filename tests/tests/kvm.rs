//! Tiny guests on this machine's own /dev/kvm: no operating system, no lab.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::tiny::Program;
use tests::{Disk, Guest, Network, Running};

/// The port that a guest writes its panic to, and the event.
const PVPANIC: (u16, u8) = (0x505, 1);

fn halted(args: &[&str]) -> Result<Running> {
    let guest = Guest::new().program(Program::new().print("up\n"));
    let guest = args
        .iter()
        .fold(guest, |guest, arg| guest.arg(*arg))
        .start()?;
    guest.wait_for("up\n")?;
    Ok(guest)
}

#[test]
fn program_prints_on_the_serial_port() -> Result<()> {
    let finished = Guest::new()
        .program(Program::new().print("hello\n").reset())
        .arg("--no-reboot")
        .run()?
        .expect_status(0)?;
    assert_eq!(finished.console, "hello\n");
    assert_eq!(finished.messages, "");
    Ok(())
}

#[test]
fn serial_output_goes_to_a_file() -> Result<()> {
    let files = Disk::new(0)?;
    let file = files.dir().join("serial.log");
    Guest::new()
        .program(Program::new().print("hello\n").reset())
        .serial(&format!("file={}", file.display()))
        .arg("--no-reboot")
        .run()?
        .expect_status(0)?;
    assert_eq!(fs::read_to_string(file)?, "hello\n");
    Ok(())
}

#[test]
fn keyboard_reset_starts_the_program_again() -> Result<()> {
    let guest = Guest::new()
        .program(Program::new().print("up\n").reset())
        .start()?;
    guest.wait_for_times("up\n", 5)?;
    guest.signal("TERM")?;
    guest.signal("TERM")?;
    guest.wait_at_most(Duration::from_secs(10))?;
    Ok(())
}

#[test]
fn boot_marks_are_logged_with_their_time() -> Result<()> {
    let finished = Guest::new()
        .program(Program::new().out(0x80, 42).store(0xc000_0000, 123).reset())
        .args(&["--no-reboot", "-v"])
        .run()?
        .expect_status(0)?;
    let marks = finished
        .messages
        .lines()
        .filter(|line| line.contains("boot mark"));
    assert_eq!(marks.count(), 2, "{}", finished.messages);
    assert!(
        finished.messages.contains("42") && finished.messages.contains("123"),
        "{}",
        finished.messages
    );
    Ok(())
}

#[test]
fn panic_event_ends_with_3_and_one_message() -> Result<()> {
    let finished = Guest::new()
        .program(Program::new().out(PVPANIC.0, PVPANIC.1))
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

#[test]
fn first_sigterm_waits_for_the_guest_and_the_second_does_not() -> Result<()> {
    let guest = halted(&["--shutdown-timeout", "600"])?;
    guest.signal("TERM")?;
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        guest.count("task")? > 0,
        "the guest ignores the button, so the machine runs on"
    );
    guest.signal("TERM")?;
    guest.wait_at_most(Duration::from_secs(10))?;
    Ok(())
}

#[test]
fn machine_ends_after_the_shutdown_timeout() -> Result<()> {
    let guest = halted(&["--shutdown-timeout", "1"])?;
    let pressed = Instant::now();
    guest.signal("TERM")?;
    guest.wait_at_most(Duration::from_secs(20))?;
    assert!(pressed.elapsed() >= Duration::from_secs(1));
    Ok(())
}

#[test]
fn up_to_64_cpus_are_made() -> Result<()> {
    let guest = Guest::new()
        .program(Program::new().print("up\n"))
        .cpus("boot=64")
        .args(&["--shutdown-timeout", "1"])
        .start()?;
    guest.wait_for("up\n")?;
    assert!(guest.count("task")? >= 64);
    guest.signal("TERM")?;
    guest.wait_at_most(Duration::from_secs(20))?;
    Ok(())
}

#[test]
fn kvm_that_is_none_ends_with_4_and_says_how_to_mend_it() -> Result<()> {
    // In a mount namespace of its own the VMM finds another device at /dev/kvm.
    let mut hidden = Command::new("unshare");
    hidden.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind /dev/null /dev/kvm && exec \"$@\"",
        "sh",
    ]);
    let finished = Guest::new()
        .program(Program::new().reset())
        .wrapped(hidden)
        .run()?
        .expect_status(4)?;
    assert!(
        finished.messages.contains("/dev/kvm"),
        "{}",
        finished.messages
    );
    Ok(())
}

#[test]
fn machine_leaves_no_tap_behind() -> Result<()> {
    let network = Network::new()?;
    let guest = Guest::new()
        .network(&network)
        .program(Program::new().print("up\n"))
        .args(&["--net", "tap=made0,ip=192.168.250.1,mask=255.255.255.0"])
        .start()?;
    guest.wait_for("up\n")?;
    assert!(network.host("ip -o link")?.contains("made0"));
    guest.signal("KILL")?;
    guest.wait()?;
    assert!(!network.host("ip -o link")?.contains("made0"));
    Ok(())
}

/// A disk that boots `program` by its grub.cfg.
fn bootable(disk: &Disk, program: &Program) -> Result<()> {
    let menu = b"menuentry Tiny { linux /boot/tiny some=word }";
    disk.format_ext4(&[
        ("/boot/grub/grub.cfg", menu),
        ("/boot/tiny", &program.elf()),
    ])
}

#[test]
fn boot_disk_is_read_again_at_each_reboot() -> Result<()> {
    let disk = Disk::new(4 << 20)?;
    bootable(&disk, &Program::new().print("one\n"))?;
    let guest = Guest::new()
        .boot_disk("root")
        .disk(&disk, ",id=root")
        .args(&["-v", "--cmdline", "more words"])
        .api()
        .start()?;
    guest.wait_for("one\n")?;
    guest.wait_for_message("BOOT_IMAGE=/boot/tiny some=word more words")?;
    let children = guest.count("task")?;
    bootable(&disk, &Program::new().print("two\n"))?;
    let api = guest.api()?;
    api.done("vm.reboot", None)?;
    guest.wait_for("two\n")?;
    assert_eq!(guest.count("task")?, children);
    api.done("vmm.shutdown", None)?;
    guest.wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn reboot_without_a_kernel_ends_with_a_reason() -> Result<()> {
    let disk = Disk::new(4 << 20)?;
    let waits = Program::new().print("up\n");
    bootable(&disk, &waits)?;
    let guest = Guest::new()
        .boot_disk("root")
        .disk(&disk, ",id=root")
        .api()
        .start()?;
    guest.wait_for("up\n")?;
    disk.format_ext4(&[("/etc/hostname", b"empty")])?;
    let api = guest.api()?;
    let error = api.done("vm.reboot", None).unwrap_err().to_string();
    assert!(error.contains("no boot entry on (hd0)"), "{error}");
    // It can be mended, and booted.
    bootable(&disk, &waits)?;
    api.done("vm.boot", None)?;
    guest.wait_for_times("up\n", 2)?;
    api.done("vmm.shutdown", None)?;
    guest.wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn disk_without_a_boot_entry_is_a_bad_configuration() -> Result<()> {
    let disk = Disk::new(4 << 20)?;
    disk.write(0, b"XFSB")?;
    let finished = Guest::new()
        .boot_disk("root")
        .disk(&disk, ",id=root")
        .run()?
        .expect_status(2)?;
    let messages = finished.messages;
    assert!(
        messages.starts_with("podvisor: --boot-disk root: it has no boot entry that can be read")
            && messages.contains("holds XFS")
            && messages.contains("--firmware"),
        "{messages}"
    );
    Ok(())
}

#[test]
fn boot_disk_cannot_be_removed() -> Result<()> {
    let disk = Disk::new(4 << 20)?;
    bootable(&disk, &Program::new().print("up\n"))?;
    let guest = Guest::new()
        .boot_disk("root")
        .disk(&disk, ",id=root")
        .api()
        .start()?;
    guest.wait_for("up\n")?;
    let api = guest.api()?;
    let id = serde_json::json!({"id": "root"});
    let error = api.done("vm.remove-device", Some(&id)).unwrap_err();
    assert!(
        error.to_string().contains("boots from this disk"),
        "{error}"
    );
    Ok(())
}
