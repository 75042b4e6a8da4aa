//! Disk images of formats that are more than the disk's blocks in order.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tests::{Guest, Shell, assets};

const MIB: u64 = 1 << 20;

/// A folder for images.
struct Images(TempDir);

impl Images {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `qemu-img`, and returns what it prints.
    fn qemu_img(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("qemu-img")
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .context("this test needs: apt-get install qemu-utils")?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "qemu-img {arguments:?}: {text}");
        Ok(text.into_owned())
    }

    /// An image of the disk's blocks in order, which begins with a few words.
    fn raw(&self, name: &str, size: u64) -> Result<PathBuf> {
        let file = fs::File::create(self.path(name))?;
        file.set_len(size)?;
        fs::write(self.path(name), {
            let mut bytes = vec![0; size as usize];
            bytes[..8].copy_from_slice(b"the base");
            bytes
        })?;
        Ok(self.path(name))
    }

    fn qcow2(&self, name: &str, size: &str) -> Result<PathBuf> {
        self.qemu_img(&["create", "-q", "-f", "qcow2", name, size])?;
        Ok(self.path(name))
    }
}

fn blocks(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

#[test]
fn fio_verifies_what_it_wrote_to_each_kind_of_image() -> Result<()> {
    let images = Images::new()?;
    let raw = images.raw("raw", 16 * MIB)?;
    let base = images.raw("base", 16 * MIB)?;
    let qcow2 = images.qcow2("qcow2", "16M")?;
    let overlay = images.path("overlay");
    let script = "
        for disk in vda vdb vdc; do
            for depth in 1 32; do
                tools fio --name=verify --filename=/dev/$disk --size=3M --offset=1M --rw=randwrite --bsrange=512-32k \
                    --bs_unaligned=0 --ioengine=libaio --iodepth=$depth --direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 \
                    --do_verify=1 --verify_state_save=0 --output-format=terse >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
                # What is discarded reads as zeros here, and what is around it as before.
                dd if=/dev/urandom of=/tmp/data bs=64k count=32 2>/dev/null
                dd if=/tmp/data of=/dev/$disk bs=64k seek=32 oflag=direct conv=fsync 2>/dev/null
                blkdiscard -o $((2 * 1048576 + 512 * 1024)) -l $((1024 * 1024)) /dev/$disk || exit 1
                dd if=/dev/zero of=/tmp/data bs=64k seek=8 count=16 conv=notrunc 2>/dev/null
                dd if=/dev/$disk of=/tmp/read bs=64k skip=32 count=32 iflag=direct 2>/dev/null
                cmp /tmp/data /tmp/read || exit 1
            done
            head -c 8 /dev/$disk | tr '\\0' .
            echo
        done";
    let disk = |value: String| ["--disk".to_owned(), value];
    let words = [
        disk(format!("path={}", raw.display())),
        disk(format!(
            "path={},image_type=qcow2,id=qcow2",
            qcow2.display()
        )),
        disk(format!(
            "path={},overlay={},num_queues=2",
            base.display(),
            overlay.display()
        )),
    ];
    let guest = Guest::new().memory("size=256M").cpus("boot=2");
    let guest = words
        .iter()
        .flatten()
        .fold(guest, |guest, word| guest.arg(word));
    let output = guest.tools()?.script(script).output()?;
    assert_eq!(output, "the base\n........\nthe base");
    images.qemu_img(&["check", "-q", "-f", "qcow2", "qcow2"])?;
    images.qemu_img(&["check", "-q", "-f", "qcow2", "overlay"])?;
    // QEMU reads a disk of that size.
    for (image, begin) in [("qcow2", [0; 8]), ("overlay", *b"the base")] {
        images.qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image, "read"])?;
        let read = fs::read(images.path("read"))?;
        assert_eq!((read.len() as u64, &read[..8]), (16 * MIB, &begin[..]));
    }
    let unchanged = fs::read(&base)?;
    assert!(&unchanged[..8] == b"the base" && unchanged[8..].iter().all(|byte| *byte == 0));
    Ok(())
}

#[test]
fn clone_of_an_image_keeps_what_its_guest_wrote() -> Result<()> {
    let images = Images::new()?;
    let base = images.raw("base", 32 * MIB)?;
    let value = format!(
        "path={},overlay={}",
        base.display(),
        images.path("clone").display()
    );
    let guest = || Guest::new().arg("--disk").arg(&value);
    guest()
        .script(
            "mke2fs -q /dev/vda >/dev/null 2>&1 && mount -t ext4 /dev/vda /mnt && echo of the clone >/mnt/file && umount /mnt",
        )
        .output()?;
    let read = guest()
        .script("mount -t ext4 -o ro /dev/vda /mnt && cat /mnt/file")
        .output()?;
    assert_eq!(read, "of the clone");
    assert!(fs::read(&base)?[8..].iter().all(|byte| *byte == 0));
    images.qemu_img(&["check", "-q", "-f", "qcow2", "clone"])?;
    // An image below that is gone is told by name before anything runs.
    fs::remove_file(&base)?;
    let finished = guest().script("true").run()?.expect_status(2)?;
    assert!(
        finished
            .messages
            .contains("/base for reading: No such file"),
        "{}",
        finished.messages
    );
    Ok(())
}

#[test]
fn grown_and_trimmed_image_is_seen_on_both_sides() -> Result<()> {
    let images = Images::new()?;
    let path = images.qcow2("disk", "16M")?;
    let value = format!("path={},image_type=qcow2,id=disk", path.display());
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .api()
        .arg("--disk")
        .arg(value);
    let mut shell = Shell::start(guest)?;
    let api = shell.vmm().api()?;
    shell.run("modprobe virtio_blk")?;
    shell.run_until("cat /sys/block/vda/size", &(16 * MIB / 512).to_string())?;
    api.done(
        "vm.resize-disk",
        Some(&json!({"id": "disk", "desired_size": 64 * MIB})),
    )?;
    shell.run_until("cat /sys/block/vda/size", &(64 * MIB / 512).to_string())?;
    let smaller = api.put_json(
        "vm.resize-disk",
        &json!({"id": "disk", "desired_size": MIB}),
    )?;
    assert_eq!(smaller.status, 400, "{smaller:?}");
    shell.run("dd if=/dev/urandom of=/dev/vda bs=1M seek=40 count=8 conv=fsync 2>/dev/null")?;
    let before = blocks(&path)?;
    shell.run("blkdiscard -o $((40 << 20)) -l $((8 << 20)) /dev/vda && sync")?;
    let after = blocks(&path)?;
    assert!(
        before > 8 * MIB && after + 8 * MIB <= before,
        "{before} to {after}"
    );
    shell.run(
        "echo at the end | dd of=/dev/vda bs=512 seek=$((64 * 2048 - 1)) conv=fsync 2>/dev/null",
    )?;
    api.done("vmm.shutdown", None)?;
    drop(shell);
    images.qemu_img(&["check", "-q", "-f", "qcow2", "disk"])?;
    images.qemu_img(&["convert", "-f", "qcow2", "-O", "raw", "disk", "read"])?;
    let read = fs::read(images.path("read"))?;
    assert_eq!(read.len() as u64, 64 * MIB);
    assert_eq!(&read[read.len() - 512..][..11], b"at the end\n");
    Ok(())
}
