//! Devices, vCPUs and memory that come and go while the guest runs.

use anyhow::{Context, Result};
use serde_json::json;
use tests::api::Api;
use tests::{Disk, Guest, Network, Shell, assets};

fn start(guest: Guest) -> Result<(Shell, Api)> {
    let mut shell = Shell::start(guest.kernel(assets::vmlinux()?).api())?;
    let api = shell.vmm().api()?;
    // What udev would do when a device appears.
    shell.run("modprobe -a virtio_blk virtio_net")?;
    Ok((shell, api))
}

/// Adds `disk` and removes it, and looks at the guest's side of both.
fn round(shell: &mut Shell, api: &Api, disk: &Disk) -> Result<()> {
    let body = json!({"path": disk.path(), "id": "plugged"});
    let info = api.done("vm.add-disk", Some(&body))?;
    assert_eq!(info["id"], "plugged");
    let bdf = info["bdf"].as_str().context("bdf")?.to_owned();
    shell.run_until("ls /sys/block | grep -c vda", "1")?;
    let seen = shell.run("readlink /sys/block/vda")?;
    assert!(seen.contains(&bdf), "{bdf}: {seen}");
    api.done("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    shell.run_until("ls /sys/block | grep -c vda || true", "0")?;
    tests::eventually("the device is gone", || {
        Ok(api.get("vm.info")?.body["device_tree"]["plugged"].is_null())
    })
}

#[test]
fn disk_is_added_used_and_removed() -> Result<()> {
    let (mut shell, api) = start(Guest::new())?;
    let disk = Disk::new(4 << 20)?;
    let body = json!({"path": disk.path(), "id": "plugged"});
    api.done("vm.add-disk", Some(&body))?;
    shell.run_until("ls /sys/block | grep -c vda", "1")?;
    shell.run("echo written by the guest | dd of=/dev/vda conv=fsync 2>/dev/null")?;
    assert_eq!(disk.read(0, 21)?, b"written by the guest\n");
    let twice = api.put_json("vm.add-disk", &body)?;
    assert_eq!(twice.status, 409, "{twice:?}");
    // It is there after a reboot as well.
    api.done("vm.reboot", None)?;
    shell.wait_for_boot()?;
    assert_eq!(shell.run("head -c 7 /dev/vda")?, "written");
    api.done("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    shell.run_until("ls /sys/block | grep -c vda || true", "0")?;
    assert_eq!(
        api.put_json("vm.remove-device", &json!({"id": "nobody"}))?
            .status,
        404
    );
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn disks_come_and_go_again_and_again_and_leave_nothing() -> Result<()> {
    // 200 rounds are asked for by HOTPLUG_ROUNDS=200.
    let rounds: usize = std::env::var("HOTPLUG_ROUNDS").map_or(Ok(10), |rounds| rounds.parse())?;
    let (mut shell, api) = start(Guest::new())?;
    let disk = Disk::new(1 << 20)?;
    round(&mut shell, &api, &disk)?;
    let counts = |shell: &mut Shell| -> Result<_> {
        Ok((shell.vmm().count("task")?, shell.vmm().count("fd")?))
    };
    let before = counts(&mut shell)?;
    for _ in 1..rounds {
        round(&mut shell, &api, &disk)?;
    }
    assert_eq!(counts(&mut shell)?, before);
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn network_is_added_carries_packets_and_takes_its_tap_along() -> Result<()> {
    let network = Network::new()?;
    let (mut shell, api) = start(Guest::new().network(&network))?;
    let body = json!({
        "id": "plugged", "tap": "plugged0", "ip": Network::HOST, "mask": "255.255.255.0",
        "mac": "02:00:00:00:00:07",
    });
    api.done("vm.add-net", Some(&body))?;
    shell.run_until(
        "cat /sys/class/net/eth0/address 2>/dev/null",
        "02:00:00:00:00:07",
    )?;
    shell.run(&format!("ip address add {}/24 dev eth0", Network::GUEST))?;
    shell.run("ip link set eth0 up")?;
    shell.run(&format!("ping -c 2 -w 30 {}", Network::HOST))?;
    api.done("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    shell.run_until("ls /sys/class/net", "lo")?;
    tests::eventually("the tap is gone", || {
        Ok(!network.host("ip -o link")?.contains("plugged0"))
    })?;
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn network_that_cannot_be_opened_leaves_the_machine_as_it_was() -> Result<()> {
    let (mut shell, api) = start(Guest::new())?;
    let body = json!({"id": "plugged", "tap": "lo"});
    let refused = api.put_json("vm.add-net", &body)?;
    assert_eq!(refused.status, 400, "{refused:?}");
    let info = api.get("vm.info")?.body;
    assert!(info["config"]["net"].is_null(), "{info}");
    assert!(info["device_tree"]["plugged"].is_null(), "{info}");
    assert_eq!(shell.run("ls /sys/class/net")?, "lo");
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn vcpus_are_added_and_taken_away() -> Result<()> {
    let (mut shell, api) = start(Guest::new().cpus("boot=1,max=3"))?;
    assert_eq!(shell.run("nproc")?, "1");
    api.done("vm.resize", Some(&json!({"desired_vcpus": 3})))?;
    shell.run_until("ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l", "3")?;
    shell.run("for cpu in 1 2; do echo 1 > /sys/devices/system/cpu/cpu$cpu/online; done")?;
    assert_eq!(shell.run("nproc")?, "3");
    api.done("vm.resize", Some(&json!({"desired_vcpus": 1})))?;
    shell.run_until("nproc", "1")?;
    // What went comes back.
    tests::eventually("the removal has ended", || {
        let response = api.put_json("vm.resize", &json!({"desired_vcpus": 2}))?;
        anyhow::ensure!([204, 429].contains(&response.status), "{response:?}");
        Ok(response.status == 204)
    })?;
    shell.run_until("ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l", "2")?;
    shell.run("echo 1 > /sys/devices/system/cpu/cpu1/online")?;
    assert_eq!(shell.run("nproc")?, "2");
    let more = api.put_json("vm.resize", &json!({"desired_vcpus": 4}))?;
    assert_eq!(more.status, 400, "{more:?}");
    api.done("vm.reboot", None)?;
    shell.wait_for_boot()?;
    assert_eq!(shell.run("nproc")?, "2");
    api.done("vmm.shutdown", None)?;
    Ok(())
}

const MEMORY: &str = "awk '/MemTotal/ { print int($2 / 1024 / 64 + 0.5) * 64 }' /proc/meminfo";

#[test]
fn memory_is_added_by_acpi() -> Result<()> {
    let guest = Guest::new().memory("size=256M,hotplug_size=1G");
    let (mut shell, api) = start(guest)?;
    shell.run("echo online_movable > /sys/devices/system/memory/auto_online_blocks")?;
    let before: u64 = shell.run(MEMORY)?.parse()?;
    let odd = api.put_json("vm.resize", &json!({"desired_ram": 300 << 20}))?;
    assert_eq!(odd.status, 400, "{odd:?}");
    api.done("vm.resize", Some(&json!({"desired_ram": 512 << 20})))?;
    shell.run_until(MEMORY, &(before + 256).to_string())?;
    assert_eq!(api.get("vm.info")?.body["memory_actual_size"], 512 << 20);
    // It is used: more than there was at the boot.
    shell.run("mount -t tmpfs -o size=400m none /mnt")?;
    shell.run("dd if=/dev/zero of=/mnt/file bs=1M count=300 2>/dev/null && umount /mnt")?;
    // It goes in the pieces in which it came, once the guest has emptied them.
    let part = api.put_json("vm.resize", &json!({"desired_ram": 384 << 20}))?;
    assert_eq!(part.status, 400, "{part:?}");
    api.done("vm.resize", Some(&json!({"desired_ram": 256 << 20})))?;
    tests::eventually("the memory is gone", || {
        Ok(api.get("vm.info")?.body["memory_actual_size"] == 256 << 20)
    })?;
    shell.run_until(MEMORY, &before.to_string())?;
    api.done("vm.resize", Some(&json!({"desired_ram": 512 << 20})))?;
    shell.run_until(MEMORY, &(before + 256).to_string())?;
    api.done("vm.reboot", None)?;
    shell.wait_for_boot()?;
    shell.run_until(MEMORY, &(before + 256).to_string())?;
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn memory_comes_and_goes_by_virtio_mem() -> Result<()> {
    let guest = Guest::new().memory("size=256M,hotplug_size=1G,hotplug_method=virtio-mem");
    let (mut shell, api) = start(guest)?;
    shell.run("echo online_movable > /sys/devices/system/memory/auto_online_blocks")?;
    let before: u64 = shell.run(MEMORY)?.parse()?;
    api.done("vm.resize", Some(&json!({"desired_ram": 768 << 20})))?;
    shell.run_until(MEMORY, &(before + 512).to_string())?;
    api.done("vm.resize", Some(&json!({"desired_ram": 256 << 20})))?;
    shell.run_until(MEMORY, &before.to_string())?;
    tests::eventually("the memory is back", || {
        Ok(api.get("vm.info")?.body["memory_actual_size"] == 256 << 20)
    })?;
    api.done("vmm.shutdown", None)?;
    Ok(())
}
