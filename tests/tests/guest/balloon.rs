//! The balloon: memory that the guest gives back to the host, and takes again.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::api::Api;
use tests::{Guest, Shell, assets};

const MIB: u64 = 1 << 20;

/// A guest with a balloon of `options`.
fn start(memory: &str, options: &str) -> Result<(Shell, Api)> {
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .memory(memory)
        .args(&["--balloon", options]);
    let mut shell = Shell::start(guest.api())?;
    let api = shell.vmm().api()?;
    shell.run("mount -o remount,size=95% /tmp")?;
    Ok((shell, api))
}

/// Bytes of the VMM in the host's memory.
fn resident(shell: &mut Shell) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", shell.vmm().pid());
    let rollup = fs::read_to_string(path)?;
    let size = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let size = size.and_then(|size| size.split_whitespace().next());
    Ok(size.context("Rss")?.parse::<u64>()? << 10)
}

/// Writes a file of so many MiB into the guest's memory.
fn fill(shell: &mut Shell, name: &str, mib: u64) -> Result<()> {
    shell.run(&format!(
        "dd if=/dev/zero of=/tmp/{name} bs=1M count={mib} 2>/dev/null"
    ))?;
    Ok(())
}

fn actual(api: &Api) -> Result<u64> {
    let info = api.get("vm.info")?.body;
    info["memory_actual_size"].as_u64().context("a size")
}

fn balloon(api: &Api) -> Result<Value> {
    let counters = api.get("vm.counters")?.body;
    let counters = counters.as_object().context("counters")?;
    let found = counters.iter().find(|(id, _)| id.contains("balloon"));
    Ok(found.context("a balloon")?.1.clone())
}

#[test]
fn balloon_gives_memory_to_the_host_and_back_to_the_guest() -> Result<()> {
    const SIZE: u64 = 384 * MIB;
    const BALLOON: u64 = 192 * MIB;
    let (mut shell, api) = start("size=384M,hotplug_size=1G", "size=0")?;
    fill(&mut shell, "file", 256)?;
    shell.run("rm /tmp/file")?;
    // The guest has no use for it, and the host does not know.
    let full = resident(&mut shell)?;
    assert!(full > 256 * MIB, "{full}");
    assert_eq!(actual(&api)?, SIZE);
    let desired = json!({"desired_balloon": BALLOON});
    api.done("vm.resize", Some(&desired))?;
    tests::eventually("the guest gives memory", || {
        Ok(actual(&api)? == SIZE - BALLOON)
    })?;
    let inflated = resident(&mut shell)?;
    println!("resident: {full} before, {inflated} with a balloon of {BALLOON}");
    assert!(inflated + BALLOON * 3 / 4 < full, "{full} -> {inflated}");
    assert_eq!(balloon(&api)?["inflated_bytes"], BALLOON);
    let too_much = api.put_json("vm.resize", &json!({"desired_balloon": SIZE + 4096}))?;
    assert_eq!(too_much.status, 400, "{too_much:?}");

    // A reboot asks for it again, and until the guest gives it, all is there.
    api.done("vm.reboot", None)?;
    shell.wait_for_boot()?;
    tests::eventually("the guest gives memory again", || {
        Ok(actual(&api)? == SIZE - BALLOON)
    })?;

    api.done("vm.resize", Some(&json!({"desired_balloon": 0})))?;
    tests::eventually("the guest takes memory", || Ok(actual(&api)? == SIZE))?;
    shell.run("mount -o remount,size=95% /tmp")?;
    fill(&mut shell, "again", 256)?;
    assert_eq!(shell.run("tr -d '\\0' </tmp/again | wc -c")?, "0");
    assert!(resident(&mut shell)? > 256 * MIB);
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn memory_that_was_added_can_be_given_back() -> Result<()> {
    for method in ["acpi", "virtio-mem"] {
        let memory = format!("size=256M,hotplug_size=256M,hotplug_method={method}");
        let (mut shell, api) = start(&memory, "size=0")?;
        shell.run("echo online_kernel > /sys/devices/system/memory/auto_online_blocks")?;
        api.done("vm.resize", Some(&json!({"desired_ram": 512 * MIB})))?;
        tests::eventually("the guest has more memory", || {
            Ok(actual(&api)? == 512 * MIB)
        })?;
        let total = "awk '/MemTotal/ { print ($2 > 400000) }' /proc/meminfo";
        shell.run_until(total, "1")?;
        // More than there was at the boot.
        let desired = json!({"desired_balloon": 288 * MIB});
        api.done("vm.resize", Some(&desired))?;
        tests::eventually("the guest gives memory", || Ok(actual(&api)? == 224 * MIB))?;
        let counters = balloon(&api)?;
        assert_eq!(counters["inflated_bytes"], 288 * MIB, "{method}");
        assert_eq!(counters["refused_bytes"], 0, "{method}");
        api.done("vmm.shutdown", None)?;
    }
    Ok(())
}

#[test]
fn guest_that_runs_out_of_memory_takes_some_back() -> Result<()> {
    const SIZE: u64 = 192 * MIB;
    let (mut shell, api) = start("size=192M", "size=96M,deflate_on_oom=on")?;
    tests::eventually("the guest gives memory", || {
        Ok(actual(&api)? == SIZE - 96 * MIB)
    })?;
    // More than is left.
    fill(&mut shell, "file", 90)?;
    assert!(actual(&api)? > SIZE - 96 * MIB);
    let counters = balloon(&api)?;
    println!("{counters}");
    assert_eq!(counters["target_bytes"], 96 * MIB);
    assert!(counters["actual_bytes"].as_u64() < Some(96 * MIB));
    assert!(counters["deflated_bytes"].as_u64() > Some(0));
    assert_eq!(shell.run("dmesg | grep -c 'Killed process' || true")?, "0");
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn statistics_are_those_that_the_guest_sees() -> Result<()> {
    let (mut shell, api) = start("size=192M", "size=0,stats_polling_interval_s=1")?;
    let meminfo = |shell: &mut Shell, field: &str| -> Result<u64> {
        let line = format!("awk '/^{field}:/ {{ print $2 }}' /proc/meminfo");
        Ok(shell.run(&line)?.parse::<u64>()? << 10)
    };
    tests::eventually("the guest tells", || {
        Ok(balloon(&api)?["total_memory"].is_u64())
    })?;
    let total = meminfo(&mut shell, "MemTotal")?;
    assert_eq!(balloon(&api)?["total_memory"], total);
    let before = balloon(&api)?["free_memory"].as_u64().context("free")?;
    fill(&mut shell, "file", 64)?;
    let free = meminfo(&mut shell, "MemFree")?;
    tests::eventually("the guest tells that it has less", || {
        let told = balloon(&api)?["free_memory"].as_u64().context("free")?;
        Ok(told < before - 48 * MIB && told.abs_diff(free) < 8 * MIB)
    })?;
    let available = meminfo(&mut shell, "MemAvailable")?;
    let told = balloon(&api)?["available_memory"].as_u64();
    assert!(told.context("available")?.abs_diff(available) < 8 * MIB);
    api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn pages_that_the_guest_frees_are_the_hosts_again() -> Result<()> {
    let (mut shell, api) = start("size=384M", "free_page_reporting=on")?;
    fill(&mut shell, "file", 192)?;
    let full = resident(&mut shell)?;
    assert!(full > 192 * MIB, "{full}");
    shell.run("rm /tmp/file")?;
    let mut reported = full;
    tests::eventually("the guest reports its free pages", || {
        reported = resident(&mut shell)?;
        Ok(reported + 160 * MIB < full)
    })?;
    println!("resident: {full} with the file, {reported} without");
    assert!(balloon(&api)?["reported_bytes"].as_u64() > Some(160 * MIB));
    assert_eq!(actual(&api)?, 384 * MIB);
    fill(&mut shell, "again", 64)?;
    assert_eq!(shell.run("tr -d '\\0' </tmp/again | wc -c")?, "0");
    api.done("vmm.shutdown", None)?;
    Ok(())
}
