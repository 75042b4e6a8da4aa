//! Disks and the host's space: given back, run out of, and what the guest is told of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::api::Api;
use tests::{Disk, Guest, Shell, assets, eventually};

const MIB: u64 = 1 << 20;

fn host(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A file system of the host, gone with the test.
struct Mounted(TempDir);

impl Mounted {
    /// One in memory, of `size` bytes.
    fn tmpfs(size: u64) -> Result<Self> {
        let dir = TempDir::new()?;
        let path = dir.path().display().to_string();
        let size = format!("size={size}");
        host("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &path])?;
        Ok(Self(dir))
    }

    /// An image of `size` bytes in it, which takes no blocks.
    fn image(&self, size: u64) -> Result<PathBuf> {
        let path = self.0.path().join("disk.img");
        fs::File::create_new(&path)?.set_len(size)?;
        Ok(path)
    }

    fn grow(&self, size: u64) -> Result<()> {
        let size = format!("remount,size={size}");
        host(
            "mount",
            &["-o", &size, &self.0.path().display().to_string()],
        )
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

/// Blocks of 512 bytes that a file takes.
fn blocks(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks())
}

fn disk(path: &Path, more: &str) -> [String; 2] {
    ["--disk".into(), format!("path={}{more}", path.display())]
}

fn boot(guest: Guest) -> Result<(Shell, Api)> {
    let mut shell = Shell::start(guest.kernel(assets::vmlinux()?).api())?;
    let api = shell.vmm().api()?;
    Ok((shell, api))
}

fn counter(api: &Api, id: &str, name: &str) -> Result<u64> {
    let counters = api.get("vm.counters")?.body;
    let value = counters[id][name].as_u64();
    value.with_context(|| format!("{name} in {counters}"))
}

fn node(api: &Api, id: &str) -> Result<Value> {
    Ok(api.get("vm.info")?.body["device_tree"][id].clone())
}

fn end(shell: Shell, api: &Api) -> Result<()> {
    api.done("vmm.shutdown", None)?;
    shell.into_vmm().wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn blocks_that_the_guest_discards_are_the_hosts_again() -> Result<()> {
    let image = Disk::new(32 * MIB)?;
    let (mut shell, api) = boot(Guest::new().disk(&image, ",id=data"))?;
    shell.run(
        "tr '\\0' x < /dev/zero | dd of=/dev/vda bs=1M count=16 iflag=fullblock conv=fsync 2>&1",
    )?;
    assert!(blocks(&image.path())? >= 16 * MIB / 512);
    shell.run("blkdiscard /dev/vda")?;
    assert!(blocks(&image.path())? < MIB / 512);
    assert_eq!(counter(&api, "data", "discard_bytes")?, 32 * MIB);

    shell.run("mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt")?;
    let empty = blocks(&image.path())?;
    shell
        .run("tr '\\0' x < /dev/zero | dd of=/mnt/file bs=1M count=8 iflag=fullblock 2>&1; sync")?;
    assert!(blocks(&image.path())? >= empty + 8 * MIB / 512);
    shell.run("rm /mnt/file; sync; fstrim /mnt")?;
    let trimmed = blocks(&image.path())?;
    assert!(trimmed < empty + MIB / 512, "{trimmed} of {empty}");
    end(shell, &api)
}

#[test]
fn zeros_are_written_by_the_host() -> Result<()> {
    let image = Disk::new(64 * MIB)?;
    // Its inode tables are left for the guest's kernel to fill with zeros.
    let path = image.path().display().to_string();
    let lazy = "lazy_itable_init=1,nodiscard";
    host(
        "/sbin/mke2fs",
        &["-q", "-t", "ext4", "-N", "65536", "-E", lazy, &path],
    )?;
    let (mut shell, api) = boot(Guest::new().disk(&image, ",id=data"))?;
    shell.run("mount -t ext4 -o init_itable=0 /dev/vda /mnt")?;
    eventually("the guest writes zeros", || {
        Ok(counter(&api, "data", "write_zeroes_bytes")? >= MIB)
    })?;
    shell.run("umount /mnt")?;
    host("/sbin/e2fsck", &["-f", "-n", &path])?;
    end(shell, &api)
}

#[test]
fn guest_sees_queues_block_sizes_and_cache_and_changes_the_cache() -> Result<()> {
    let image = Disk::new(16 * MIB)?;
    let guest = Guest::new()
        .cpus("boot=1,max=4")
        .disk(&image, ",id=data,num_queues=4");
    let (mut shell, api) = boot(guest)?;
    assert_eq!(shell.run("ls /sys/block/vda/mq | wc -l")?, "4");
    let queue = "cd /sys/block/vda/queue; cat";
    assert_eq!(shell.run(&format!("{queue} logical_block_size"))?, "512");
    assert_eq!(shell.run(&format!("{queue} physical_block_size"))?, "4096");
    assert_ne!(shell.run(&format!("{queue} discard_max_bytes"))?, "0");
    assert_ne!(shell.run(&format!("{queue} write_zeroes_max_bytes"))?, "0");
    assert_eq!(shell.run("cat /sys/block/vda/cache_type")?, "write back");

    let write = "echo some | dd of=/dev/vda conv=fsync 2>&1";
    shell.run(write)?;
    let flushes = counter(&api, "data", "flush_ops")?;
    assert_ne!(flushes, 0);
    shell.run("echo 'write through' > /sys/block/vda/cache_type")?;
    assert_eq!(shell.run("cat /sys/block/vda/cache_type")?, "write through");
    assert_eq!(shell.run(&format!("{queue} write_cache"))?, "write through");
    // Each write is durable by itself, and the kernel asks for no flush more.
    let flushes = counter(&api, "data", "flush_ops")?;
    shell.run(write)?;
    assert_eq!(counter(&api, "data", "flush_ops")?, flushes);
    assert_eq!(node(&api, "data")?["engine"], "io_uring");
    end(shell, &api)
}

#[test]
fn disk_is_served_by_threads() -> Result<()> {
    let threads = Disk::new(32 * MIB)?;
    let guest = Guest::new()
        .memory("size=256M")
        .cpus("boot=2")
        .disk(&threads, ",id=threads,_disable_io_uring=on")
        .tools()?;
    let (mut shell, api) = boot(guest)?;
    shell.run(
        "tools fio --name=verify --filename=/dev/vda --size=6M --rw=randwrite --bsrange=512-64k \
         --bs_unaligned=0 --ioengine=libaio --iodepth=16 --direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 \
         --do_verify=1 --verify_state_save=0 --output-format=terse >/tmp/log 2>&1 || { cat /tmp/log; false; }",
    )?;
    assert_eq!(node(&api, "threads")?["engine"], "threads");
    end(shell, &api)
}

/// A guest whose disk of 16 MiB has 4 MiB on the host, and its events in a file.
fn cramped(more: &str) -> Result<(Mounted, Shell, Api)> {
    let space = Mounted::tmpfs(4 * MIB)?;
    let image = space.image(16 * MIB)?;
    let [flag, value] = disk(&image, &format!(",id=data{more}"));
    let (shell, api) = boot(Guest::new().args(&[&flag, &value]))?;
    Ok((space, shell, api))
}

const FILL: &str =
    "tr '\\0' x < /dev/zero | dd of=/dev/vda bs=1M count=8 iflag=fullblock conv=fsync";

#[test]
fn lack_of_space_is_an_error_in_the_guest() -> Result<()> {
    let (space, mut shell, api) = cramped("")?;
    shell.run(&format!(
        "{FILL} 2>/tmp/log && echo failed: written || true"
    ))?;
    assert_ne!(shell.run("dmesg | grep -c 'I/O error' || true")?, "0");
    assert_eq!(api.state()?, "Running");
    assert_ne!(counter(&api, "data", "host_errors")?, 0);
    space.grow(64 * MIB)?;
    shell.run(&format!("{FILL} 2>&1"))?;
    end(shell, &api)
}

#[test]
fn lack_of_space_pauses_the_machine_until_there_is_some() -> Result<()> {
    let (space, mut shell, api) = cramped(",werror=enospc")?;
    let files = TempDir::new()?;
    let stream = files.path().join("events");
    let mut listener = Command::new("curl")
        .args(["--silent", "--no-buffer", "--unix-socket"])
        .arg(api.socket())
        .arg("http://localhost/api/v1/vm.events")
        .stdout(fs::File::create(&stream)?)
        .spawn()?;
    let told = || fs::read_to_string(&stream);
    // The stream is there once its first line is.
    eventually("the stream of events", || Ok(!told()?.is_empty()))?;
    shell.run(&format!(
        "({FILL}; echo status $? > /tmp/status) 2>/tmp/log &"
    ))?;
    eventually("the pause", || Ok(api.state()? == "Paused"))?;
    eventually("the event", || Ok(told()?.contains("disk-error")))?;
    let events = told()?;
    let event = events.lines().find(|line| line.contains("disk-error"));
    let event = event.and_then(|line| line.strip_prefix("data:"));
    let event: Value = serde_json::from_str(event.context(events.clone())?)?;
    assert_eq!(event["properties"]["id"], "data");
    assert_eq!(event["properties"]["operation"], "write");
    let error = event["properties"]["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("No space left on device"), "{event}");

    // There is no more space than before.
    api.done("vm.resume", None)?;
    eventually("the second pause", || {
        Ok(api.state()? == "Paused" && told()?.matches("disk-error").count() >= 2)
    })?;
    space.grow(64 * MIB)?;
    api.done("vm.resume", None)?;
    shell.run_until("cat /tmp/status", "status 0")?;
    assert_eq!(api.state()?, "Running");
    assert_eq!(
        shell.run("head -c 8388608 /dev/vda | tr -d x | wc -c")?,
        "0"
    );
    let written = fs::read(space.0.path().join("disk.img"))?;
    assert!(written[..8 << 20].iter().all(|byte| *byte == b'x'));
    assert_eq!(shell.run("dmesg | grep -c 'I/O error' || true")?, "0");
    listener.kill()?;
    listener.wait()?;
    end(shell, &api)
}

#[test]
fn limits_of_a_disk_change_while_it_is_in_use() -> Result<()> {
    let image = Disk::new(16 * MIB)?;
    let (mut shell, api) = boot(Guest::new().disk(&image, ",id=data"))?;
    let read = "dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct 2>&1";
    shell.run(read)?;
    let limited = json!({
        "id": "data",
        "rate_limiter_config": {"ops": {"size": 1, "refill_time": 3_600_000}},
    });
    api.done("vm.set-rate-limiter", Some(&limited))?;
    let before = counter(&api, "data", "read_ops")?;
    shell.run(&format!("({read}; echo $? > /tmp/status) >/tmp/log &"))?;
    // Whatever the shell does meanwhile, the disk does one operation at most.
    shell.run("sleep 1; ls /tmp/status 2>/dev/null | wc -l")?;
    assert!(counter(&api, "data", "read_ops")? <= before + 1);
    api.done("vm.set-rate-limiter", Some(&json!({"id": "data"})))?;
    shell.run_until("cat /tmp/status", "0")?;
    assert!(counter(&api, "data", "read_ops")? >= before + 64);
    end(shell, &api)
}
