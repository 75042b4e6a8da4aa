//! Guests that boot what is on their own disk.

use std::fs;

use anyhow::{Context, Result, ensure};
use tests::{Disk, Guest, archive, assets};

/// Tells the release of the kernel at each boot. The first one installs the next kernel, as its package's scripts do: an
/// initramfs is made, and GRUB's configuration is written anew. The second one ends the machine.
const UPGRADE: &str = r#"#cloud-config
bootcmd:
  - 'echo "release=$(uname -r) root=$(findmnt -n -o SOURCE /)." >/dev/ttyS0; [ ! -e /upgraded ] || { sync; poweroff -f; }'
runcmd:
  - 'exec >/dev/ttyS0 2>&1; echo upgrading.; dpkg -i /upgrade/*.deb && touch /upgraded && echo upgraded.; systemctl reboot'
"#;

/// What the guest does: the first time it changes what its disk boots.
const REBOOT: &str = "
    grep -o 'boot=[a-z]*' /proc/cmdline
    grep -q boot=second /proc/cmdline && exit
    mount -t ext4 /dev/vda /mnt
    sed -i s/boot=first/boot=second/ /mnt/boot/grub/grub.cfg
    umount /mnt
    reboot -f
    sleep 60";

#[test]
fn what_the_guest_has_written_boots_after_its_reboot() -> Result<()> {
    let menu = "menuentry Linux {
        linux /boot/vmlinuz console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check boot=first
        initrd /boot/initrd.img /boot/script.cpio
    }";
    let disk = Disk::new(64 << 20)?;
    disk.format_ext4(&[
        ("/boot/grub/grub.cfg", menu.as_bytes()),
        ("/boot/vmlinuz", &fs::read(assets::bzimage()?)?),
        ("/boot/initrd.img", &fs::read(assets::initramfs()?)?),
        (
            "/boot/script.cpio",
            &archive::one_file("script", REBOOT.as_bytes()),
        ),
    ])?;
    let finished = Guest::new()
        .boot_disk("root")
        .disk(&disk, ",id=root")
        .run()?
        .expect_status(0)?;
    let told = |word| finished.console.matches(word).count();
    assert_eq!(
        (told("boot=first\n"), told("boot=second\n")),
        (1, 1),
        "{}",
        finished.console
    );
    Ok(())
}

#[test]
#[ignore = "minutes: ./tests/run --all"]
fn upgraded_kernel_of_a_debian_runs_after_its_reboot() -> Result<()> {
    let disk = Disk::copy_of(&assets::debian()?)?;
    let seed = Disk::cloud_init_seed(UPGRADE)?;
    let guest = Guest::new()
        .boot_disk("root")
        .memory("size=512M")
        .disk(&disk, ",id=root")
        .disk(&seed, ",readonly=on")
        .arg("-v")
        .start()?;
    guest.wait_for("release=")?;
    guest.wait_for("upgrading.\n")?;
    guest.wait_for("upgraded.\n")?;
    guest.wait_for_times("release=", 2)?;
    let finished = guest.wait()?.expect_status(0)?;
    let mut releases = finished.console.split("release=").skip(1);
    let mut release = || releases.next()?.split_once(' ').map(|(release, _)| release);
    let (before, after) = (release(), release());
    let (before, after) = before.zip(after).context(finished.console.clone())?;
    ensure!(
        before != after && after.ends_with("-cloud-amd64"),
        "{before} and {after}\n{}",
        finished.console
    );
    // Each boot told which entry it took.
    let told = finished.messages.matches("booting from the disk").count();
    ensure!(told == 2, "{}", finished.messages);
    Ok(())
}
