//! The calls of the API on a running guest, and what the guest sees of each.

use anyhow::Result;
use serde_json::json;
use tests::api::Api;
use tests::{Disk, Guest, Shell, assets};

fn booted() -> Result<(Shell, Api)> {
    let guest = Guest::new().kernel(assets::vmlinux()?).api();
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;
    Ok((shell, api))
}

#[test]
fn paused_guest_stands_still_and_resumes_where_it_was() -> Result<()> {
    let (mut shell, api) = booted()?;
    assert_eq!(api.state()?, "Running");
    api.done("vm.pause", None)?;
    assert_eq!(api.state()?, "Paused");
    let again = api.put("vm.pause")?;
    assert_eq!(again.status, 405, "{again:?}");
    // What is typed meanwhile is answered after the resume.
    shell.vmm().send("echo typed while paused\n")?;
    let before = shell.vmm().console();
    api.done("vm.resume", None)?;
    shell.vmm().wait_for("typed while paused\n")?;
    assert!(!before.contains("typed while paused"));
    api.done("vmm.shutdown", None)?;
    shell.into_vmm().wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn machine_is_rebooted_shut_down_booted_again_and_deleted() -> Result<()> {
    let (mut shell, api) = booted()?;
    api.done("vm.reboot", None)?;
    shell.wait_for_boot()?;
    api.done("vm.shutdown", None)?;
    assert_eq!(api.state()?, "Shutdown");
    let wrong = api.put("vm.pause")?;
    assert_eq!(wrong.status, 405, "{wrong:?}");
    api.done("vm.boot", None)?;
    shell.wait_for_boot()?;
    assert_eq!(shell.run("uname")?, "Linux");
    api.done("vm.delete", None)?;
    assert_eq!(api.get("vm.info")?.status, 404);
    api.done("vmm.shutdown", None)?;
    shell.into_vmm().wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn power_button_of_the_api_turns_the_guest_off() -> Result<()> {
    let (shell, api) = booted()?;
    api.done("vm.power-button", None)?;
    shell.into_vmm().wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn nmi_reaches_every_vcpu() -> Result<()> {
    let guest = Guest::new().kernel(assets::vmlinux()?).cpus("boot=2").api();
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;
    let count = "awk '/NMI:/ { print $2 + $3 }' /proc/interrupts";
    let before: u32 = shell.run(count)?.parse()?;
    api.done("vm.nmi", None)?;
    shell.run_until(count, &(before + 2).to_string())?;
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn disk_that_is_resized_is_larger_for_the_guest() -> Result<()> {
    let disk = Disk::new(8 << 20)?;
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .disk(&disk, ",id=data")
        .api();
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;
    assert_eq!(shell.run("cat /sys/block/vda/size")?, "16384");
    let body = json!({"id": "data", "desired_size": 16 << 20});
    api.done("vm.resize-disk", Some(&body))?;
    shell.run_until("cat /sys/block/vda/size", "32768")?;
    shell.run("echo beyond | dd of=/dev/vda bs=1M seek=15 conv=fsync 2>/dev/null")?;
    assert_eq!(disk.read(15 << 20, 7)?, b"beyond\n");
    let odd = api.put_json(
        "vm.resize-disk",
        &json!({"id": "data", "desired_size": 1000}),
    )?;
    assert_eq!(odd.status, 400, "{odd:?}");
    let unknown = json!({"id": "nobody", "desired_size": 1 << 20});
    assert_eq!(api.put_json("vm.resize-disk", &unknown)?.status, 404);
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn core_of_a_running_guest_has_its_memory_and_the_guest_goes_on() -> Result<()> {
    let files = Disk::new(0)?;
    let core = files.dir().join("core");
    let (mut shell, api) = booted()?;
    shell.run("echo a line that only this guest has > /tmp/line")?;
    let body = json!({"destination_url": format!("file://{}", core.display())});
    api.done("vm.coredump", Some(&body))?;
    let bytes = std::fs::read(&core)?;
    assert_eq!(&bytes[..4], b"\x7fELF");
    let line = b"a line that only this guest has";
    assert!(bytes.windows(line.len()).any(|window| window == line));
    assert_eq!(
        shell.run("cat /tmp/line")?,
        "a line that only this guest has"
    );
    let again = api.put_json("vm.coredump", &body)?;
    assert_eq!(again.status, 400, "{again:?}");
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn disk_that_is_added_while_the_guest_is_paused_is_there_when_it_runs_on() -> Result<()> {
    let disk = Disk::new(4 << 20)?;
    let (mut shell, api) = booted()?;
    shell.run("modprobe -a virtio_blk")?;
    api.done("vm.pause", None)?;
    api.done(
        "vm.add-disk",
        Some(&json!({"path": disk.path(), "id": "plugged"})),
    )?;
    api.done("vm.resume", None)?;
    shell.run_until("ls /sys/block | grep -c vda", "1")?;
    shell.run("echo while paused | dd of=/dev/vda conv=fsync 2>/dev/null")?;
    assert_eq!(disk.read(0, 13)?, b"while paused\n");
    api.done("vm.pause", None)?;
    api.done("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    api.done("vm.resume", None)?;
    shell.run_until("ls /sys/block | grep -c vda || true", "0")?;
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn counters_and_info_tell_what_the_guest_did() -> Result<()> {
    let disk = Disk::new(8 << 20)?;
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .disk(&disk, ",id=data")
        .api();
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;
    shell.run("dd if=/dev/zero of=/dev/vda bs=1M count=2 conv=fsync 2>/dev/null")?;
    let counters = api.get("vm.counters")?.body;
    let of = |name: &str| counters["data"][name].as_u64().unwrap_or_default();
    assert!(of("write_bytes") >= 2 << 20, "{counters}");
    assert!(of("flush_ops") >= 1, "{counters}");
    let info = api.get("vm.info")?.body;
    assert_eq!(info["memory_actual_size"], 128 << 20);
    let bdf = info["device_tree"]["data"]["pci_bdf"]
        .as_str()
        .unwrap_or_default();
    let seen = shell.run(&format!(
        "ls -d /sys/bus/pci/devices/{bdf}/virtio*/block/vda"
    ))?;
    assert!(seen.contains(bdf), "{seen}");
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn machine_is_created_and_booted_by_the_api_alone() -> Result<()> {
    let disk = Disk::new(1 << 20)?;
    let vmm = tests::vmm_without_machine(disk.dir())?;
    let api = vmm.api()?;
    let console = disk.dir().join("console");
    let body = json!({
        "payload": {
            "kernel": assets::vmlinux()?,
            "initramfs": assets::initramfs()?,
            "cmdline": "console=ttyS0 panic=-1",
        },
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 128 << 20},
        "disks": [{"path": disk.path()}],
        "serial": {"mode": "File", "file": console},
    });
    assert_eq!(api.put("vm.boot")?.status, 404);
    api.done("vm.create", Some(&body))?;
    assert_eq!(api.put_json("vm.create", &body)?.status, 409);
    assert_eq!(api.state()?, "Created");
    api.done("vm.boot", None)?;
    assert_eq!(api.state()?, "Running");
    tests::eventually("the guest's console", || {
        Ok(std::fs::read_to_string(&console)?.contains("Linux version"))
    })?;
    api.done("vmm.shutdown", None)?;
    vmm.wait()?.expect_status(0)?;
    Ok(())
}
