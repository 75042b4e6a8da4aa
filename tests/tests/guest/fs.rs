//! Directories of the host that virtiofsd serves.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::api::Api;
use tests::{Guest, Shell, Virtiofsd, assets, eventually};

/// Where the programs of the tools' image see it, too.
const AT: &str = "/mnt/tmp/home";

struct Setup {
    virtiofsd: Virtiofsd,
    shell: Shell,
    api: Api,
}

impl Setup {
    /// A guest with a directory, or one that gets it later.
    fn start(with: bool, memory: &str) -> Result<Self> {
        let virtiofsd = Virtiofsd::start()?;
        let mut guest = Guest::new()
            .kernel(assets::vmlinux()?)
            .tools()?
            .memory(memory)
            .api();
        if with {
            let value = format!("tag=home,id=shared,socket={}", virtiofsd.socket().display());
            guest = guest.arg("--fs").arg(value);
        }
        let mut shell = Shell::start(guest)?;
        let api = shell.vmm().api()?;
        let mut setup = Self {
            virtiofsd,
            shell,
            api,
        };
        setup.prepare()?;
        Ok(setup)
    }

    /// What each boot needs.
    fn prepare(&mut self) -> Result<()> {
        self.shell.run("modprobe virtiofs")?;
        self.shell
            .run("tools fio --version && mkdir -p /tmp/home")?;
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        self.shell.run(&format!("mount -t virtiofs home {AT}"))?;
        Ok(())
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let counters = self.api.get("vm.counters")?.body;
        let counter = counters["shared"][name].as_u64();
        counter.with_context(|| format!("{name}: {counters}"))
    }
}

fn sha256(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

#[test]
fn directory_is_read_and_written_from_both_sides() -> Result<()> {
    let mut setup = Setup::start(true, "size=192M,shared=on")?;
    fs::write(setup.virtiofsd.path("from-host"), "written by the host\n")?;
    setup.mount()?;
    let shell = &mut setup.shell;
    assert_eq!(
        shell.run(&format!("cat {AT}/from-host"))?,
        "written by the host"
    );
    shell.run(&format!(
        "mkdir {AT}/folder && echo written by the guest >{AT}/folder/new && mv {AT}/folder/new {AT}/folder/renamed"
    ))?;
    let renamed = setup.virtiofsd.path("folder/renamed");
    assert_eq!(fs::read_to_string(&renamed)?, "written by the guest\n");
    fs::rename(&renamed, setup.virtiofsd.path("moved"))?;
    shell.run_until(
        &format!("ls {AT} | tr '\\n' ' '"),
        "folder from-host moved ",
    )?;
    shell.run(&format!("rm {AT}/from-host && rmdir {AT}/folder"))?;
    assert!(!setup.virtiofsd.path("from-host").exists());

    // Larger than any request, and across a pause.
    shell.run(&format!(
        "dd if=/dev/urandom of={AT}/large bs=64k count=64 2>/dev/null"
    ))?;
    setup.api.done("vm.pause", None)?;
    setup.api.done("vm.resume", None)?;
    let there = setup.shell.run(&format!("sha256sum {AT}/large"))?;
    let here = std::process::Command::new("sha256sum")
        .arg(setup.virtiofsd.path("large"))
        .output()?;
    assert_eq!(sha256(&there), sha256(&String::from_utf8(here.stdout)?));

    setup.shell.run(&format!("umount {AT}"))?;
    setup.mount()?;
    assert_eq!(
        setup.shell.run(&format!("cat {AT}/moved"))?,
        "written by the guest"
    );

    // The same process serves the guest after its reboot, which comes without an unmount.
    setup.api.done("vm.reboot", None)?;
    setup.shell.wait_for_boot()?;
    setup.prepare()?;
    setup.mount()?;
    assert_eq!(
        setup.shell.run(&format!("cat {AT}/moved"))?,
        "written by the guest"
    );
    assert_eq!(setup.counter("connections")?, 1);
    assert_eq!(setup.counter("losses")?, 0);
    setup.api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn fio_verifies_what_it_wrote_to_a_directory() -> Result<()> {
    let mut setup = Setup::start(true, "size=256M,shared=on")?;
    setup.mount()?;
    setup.shell.run(
        "tools fio --name=verify --directory=/tmp/home --size=4M --rw=randwrite --bsrange=512-64k --bs_unaligned=1 \
         --ioengine=psync --numjobs=2 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 \
         --output-format=terse >/tmp/log 2>&1 || { cat /tmp/log; false; }",
    )?;
    assert_eq!(
        fs::metadata(setup.virtiofsd.path("verify.0.0"))?.len(),
        4 << 20
    );
    setup.api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn directory_comes_and_goes_while_memory_grows() -> Result<()> {
    let mut setup = Setup::start(false, "size=192M,shared=on,hotplug_size=1G")?;
    let shell = &mut setup.shell;
    shell.run("echo online_movable > /sys/devices/system/memory/auto_online_blocks")?;
    let body = json!({"id": "plugged", "tag": "home", "socket": setup.virtiofsd.socket()});
    setup.api.done("vm.add-fs", Some(&body))?;
    shell.run_until(
        "cat /sys/bus/virtio/drivers/virtiofs/virtio*/uevent | grep -c DRIVER=virtiofs",
        "1",
    )?;
    setup.mount()?;
    let info = setup.api.get("vm.info")?.body;
    assert_eq!(info["config"]["fs"][0]["tag"], "home");
    assert!(info["device_tree"]["plugged"].is_object(), "{info}");

    // The process reads and writes memory that it did not know before: programs get their pages there first.
    setup
        .api
        .done("vm.resize", Some(&json!({"desired_ram": 320 << 20})))?;
    let shell = &mut setup.shell;
    shell.run_until(
        "awk '/MemTotal/ { print ($2 > 230000) }' /proc/meminfo",
        "1",
    )?;
    shell.run(&format!(
        "for i in 1 2 3; do dd if=/dev/urandom of={AT}/file$i bs=1M count=4 2>/dev/null; done"
    ))?;
    let there = shell.run(&format!("cat {AT}/file1 {AT}/file2 {AT}/file3 | sha256sum"))?;
    let mut bytes = Vec::new();
    for name in ["file1", "file2", "file3"] {
        bytes.extend(fs::read(setup.virtiofsd.path(name))?);
    }
    fs::write(setup.virtiofsd.path("all"), bytes)?;
    let here = std::process::Command::new("sha256sum")
        .arg(setup.virtiofsd.path("all"))
        .output()?;
    assert_eq!(sha256(&there), sha256(&String::from_utf8(here.stdout)?));

    shell.run(&format!("umount {AT}"))?;
    setup
        .api
        .done("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    eventually("the device is gone", || {
        Ok(setup.api.get("vm.info")?.body["device_tree"]["plugged"].is_null())
    })?;
    let virtiofsd = &mut setup.virtiofsd;
    eventually("virtiofsd has nobody to serve", || virtiofsd.has_ended())?;
    setup.api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn death_of_virtiofsd_leaves_the_guest_alive_and_the_next_boot_finds_the_next_one() -> Result<()> {
    let mut setup = Setup::start(true, "size=192M,shared=on")?;
    setup.mount()?;
    setup.shell.run(&format!("echo kept >{AT}/file"))?;
    assert_eq!(setup.counter("connected")?, 1);
    setup.virtiofsd.kill()?;
    eventually("the loss is counted", || Ok(setup.counter("losses")? == 1))?;
    assert_eq!(setup.counter("connected")?, 0);
    // VIRTIO_CONFIG_S_NEEDS_RESET.
    let status = setup
        .shell
        .run("cat /sys/bus/virtio/drivers/virtiofs/virtio*/status")?;
    let status = u32::from_str_radix(status.trim_start_matches("0x"), 16)?;
    ensure!(status & 0x40 != 0, "{status:#x}");
    // A pause does not wait for who is not there.
    setup.api.done("vm.pause", None)?;
    setup.api.done("vm.resume", None)?;
    assert_eq!(setup.shell.run("echo alive")?, "alive");

    setup.virtiofsd.start_again()?;
    setup.api.done("vm.reboot", None)?;
    setup.shell.wait_for_boot()?;
    setup.prepare()?;
    setup.mount()?;
    assert_eq!(setup.shell.run(&format!("cat {AT}/file"))?, "kept");
    assert_eq!(setup.counter("connections")?, 2);
    setup.api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn directory_without_shared_memory_or_its_process_is_refused_by_name() -> Result<()> {
    let virtiofsd = Virtiofsd::start()?;
    let mut shell = Shell::start(Guest::new().kernel(assets::vmlinux()?).api())?;
    let api = shell.vmm().api()?;
    let body = json!({"tag": "home", "socket": virtiofsd.socket()});
    let refused = api.put_json("vm.add-fs", &body)?;
    assert_eq!(refused.status, 400);
    let text = refused.body.to_string();
    ensure!(text.contains("bad value off for memory.shared"), "{text}");
    api.done("vmm.shutdown", None)?;

    let finished = Guest::new()
        .memory("size=128M,shared=on")
        .args(&["--fs", "tag=home,socket=/nowhere/socket"])
        .script("true")
        .run()?;
    assert_eq!(finished.status, 2, "{finished:?}");
    let expected = "cannot connect to the vhost-user backend at /nowhere/socket";
    ensure!(finished.messages.contains(expected), "{finished:?}");
    Ok(())
}
