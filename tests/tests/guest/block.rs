//! Disks.

use std::fs;

use anyhow::{Context, Result};
use tests::{Disk, Guest};

const MIB: u64 = 1 << 20;

#[test]
fn capacity_is_seen() -> Result<()> {
    let disk = Disk::new(5 * MIB + 512)?;
    let sectors = Guest::new()
        .disk(&disk, "")
        .script("cat /sys/block/vda/size")
        .output()?;
    assert_eq!(sectors, (5 * MIB / 512 + 1).to_string());
    Ok(())
}

#[test]
fn flushed_data_is_on_the_host_and_there_after_a_second_boot() -> Result<()> {
    let disk = Disk::new(64 * MIB)?;
    let written = Guest::new()
        .disk(&disk, "")
        .script(
            "dd if=/dev/urandom bs=1M count=8 2>/dev/null >/tmp/data
             dd if=/tmp/data of=/dev/vda bs=1M seek=16 conv=fsync 2>/dev/null
             sha256sum </tmp/data",
        )
        .output()?;

    fs::write(disk.dir().join("part"), disk.read(16 * MIB, 8 << 20)?)?;
    let on_host = std::process::Command::new("sha256sum")
        .stdin(fs::File::open(disk.dir().join("part"))?)
        .output()?;
    assert_eq!(String::from_utf8(on_host.stdout)?.trim_end(), written);

    let read = Guest::new()
        .disk(&disk, "")
        .script("dd if=/dev/vda bs=1M skip=16 count=8 2>/dev/null | sha256sum")
        .output()?;
    assert_eq!(read, written);
    Ok(())
}

#[test]
fn host_contents_are_read() -> Result<()> {
    let disk = Disk::new(MIB)?;
    disk.write(MIB - 16, b"the last bytes\0\0")?;
    let read = Guest::new()
        .disk(&disk, "")
        .script("tail -c 16 /dev/vda")
        .output()?;
    assert_eq!(read.trim_end_matches('\0'), "the last bytes");
    Ok(())
}

#[test]
fn write_to_read_only_disk_fails() -> Result<()> {
    let disk = Disk::new(MIB)?;
    disk.write(0, b"unchanged")?;
    let before = disk.contents()?;
    let output = Guest::new()
        .disk(&disk, ",readonly=on")
        .script(
            "cat /sys/block/vda/ro
             blockdev --setrw /dev/vda || true
             echo changed | dd of=/dev/vda conv=fsync 2>/dev/null && echo written
             head -c 9 /dev/vda",
        )
        .output()?;
    assert_eq!(output, "1\nunchanged");
    assert_eq!(disk.contents()?, before);
    Ok(())
}

#[test]
fn disks_come_in_the_order_of_the_command_line() -> Result<()> {
    let disks = [Disk::new(MIB)?, Disk::new(2 * MIB)?, Disk::new(3 * MIB)?];
    let sizes = disks
        .iter()
        .fold(Guest::new(), |guest, disk| guest.disk(disk, ""))
        .script("echo $(cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/size)")
        .output()?;
    assert_eq!(sizes, "2048 4096 6144");
    Ok(())
}

#[test]
fn serial_number_is_seen() -> Result<()> {
    let disk = Disk::new(MIB)?;
    let serial = Guest::new()
        .disk(&disk, ",serial=twenty-bytes-exactly")
        .script("cat /sys/block/vda/serial")
        .output()?;
    assert_eq!(serial, "twenty-bytes-exactly");
    Ok(())
}

#[test]
fn fio_verifies_what_it_wrote() -> Result<()> {
    let disk = Disk::new(32 * MIB)?;
    Guest::new()
        .memory("size=256M")
        .cpus("boot=2")
        .disk(&disk, "")
        .tools()?
        .script(
            "tools fio --name=verify --filename=/dev/vda --size=8M --rw=randwrite --bsrange=512-64k --bs_unaligned=0 \
                --ioengine=libaio --iodepth=16 --direct=1 --fsync=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 \
                --output-format=terse >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }",
        )
        .output()?;
    Ok(())
}

#[test]
fn file_system_made_in_the_guest_is_sound_on_the_host() -> Result<()> {
    let disk = Disk::new(32 * MIB)?;
    Guest::new()
        .disk(&disk, "")
        .script(
            "mke2fs /dev/vda >/dev/null 2>&1 && mount -t ext4 /dev/vda /mnt && cp -a /bin/busybox /mnt/copy &&
             umount /mnt",
        )
        .output()?;
    let check = std::process::Command::new("/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(disk.path())
        .output()
        .context("this test needs: apt-get install e2fsprogs")?;
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    Ok(())
}

#[test]
fn killed_vmm_leaves_all_that_the_guest_saw_flushed() -> Result<()> {
    const RECORD: usize = 512;
    let disk = Disk::new(16 * MIB)?;
    let guest = Guest::new()
        .disk(&disk, "")
        .script(
            "i=0
             while true; do
                 printf 'record %05d %0499d' $i $i | dd of=/dev/vda bs=512 seek=$i conv=fsync,notrunc 2>/dev/null || exit 1
                 echo \"flushed $i.\"
                 i=$((i + 1))
             done",
        )
        .start()?;
    guest.wait_for("flushed 25.")?;
    guest.signal("KILL")?;
    let finished = guest.wait()?.expect_status(128 + 9)?;

    let flushed = finished.console.matches("flushed ").count();
    // The last line may have been cut before its full stop, but its record was flushed before it began.
    for record in 0..flushed {
        let bytes = disk.read((record * RECORD) as u64, RECORD)?;
        assert_eq!(
            String::from_utf8(bytes)?,
            format!("record {record:05} {record:0499}")
        );
    }
    Ok(())
}
