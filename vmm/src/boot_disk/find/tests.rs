//! Disks in the shapes of distributions, made by the programs that make real ones.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::boot_disk::uki::tests::pe;

const MIB: usize = 1 << 20;
const UUID: &str = "12345678-9abc-def0-1234-56789abcdef0";
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const XBOOTLDR: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

type Files<'a> = &'a [(&'a str, &'a [u8])];

fn run(command: &mut Command) {
    let output = command
        .output()
        .expect("these tests need: apt-get install e2fsprogs dosfstools mtools fdisk");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn write(files: Files<'_>, folder: &Path) {
    for (path, contents) in files {
        let path = folder.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
}

fn filesystem(files: Files<'_>, make: impl FnOnce(&Path, &Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    write(files, &tree);
    let image = folder.path().join("image");
    let file = fs::File::create(&image).unwrap();
    file.set_len(4 * MIB as u64).unwrap();
    make(&tree, &image);
    fs::read(image).unwrap()
}

fn ext4(files: Files<'_>) -> Vec<u8> {
    filesystem(files, |tree, image| {
        let mut make = Command::new("/sbin/mke2fs");
        make.args(["-q", "-t", "ext4", "-U", UUID, "-d"]);
        run(make.arg(tree).arg(image));
    })
}

fn vfat(files: Files<'_>) -> Vec<u8> {
    filesystem(files, |tree, image| {
        run(Command::new("/sbin/mkfs.vfat").arg(image));
        for entry in fs::read_dir(tree).unwrap() {
            let mut copy = Command::new("mcopy");
            copy.arg("-s").arg("-i").arg(image);
            run(copy.arg(entry.unwrap().path()).arg("::"));
        }
    })
}

/// A disk with a table of `label` and partitions of some types.
fn disk(label: &str, partitions: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut bytes = vec![0; (5 * partitions.len() + 3) * MIB];
    fs::write(&path, &bytes).unwrap();
    let mut script = format!("label: {label}\n");
    for (index, (kind, _)) in partitions.iter().enumerate() {
        script += &format!("start={}MiB, size=4MiB, type={kind}\n", 1 + 5 * index);
    }
    let mut sfdisk = Command::new("/sbin/sfdisk")
        .arg("--quiet")
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("this test needs: apt-get install fdisk");
    sfdisk
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(sfdisk.wait().unwrap().success());
    bytes = fs::read(path).unwrap();
    for (index, (_, contents)) in partitions.iter().enumerate() {
        bytes[(1 + 5 * index) * MIB..][..contents.len()].copy_from_slice(contents);
    }
    bytes
}

/// What came of a disk.
#[derive(Debug, Default)]
struct Taken {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

impl Output for Taken {
    fn kernel(&mut self, piece: &[u8]) -> io::Result<()> {
        self.kernel.extend_from_slice(piece);
        Ok(())
    }

    fn initrd(&mut self, piece: &[u8]) -> io::Result<()> {
        self.initrd.extend_from_slice(piece);
        Ok(())
    }
}

const LIMITS: Limits = Limits {
    kernel: 1000,
    initrd: 1000,
};

fn refused(bytes: Vec<u8>) -> String {
    let image = Image::new(Box::new(bytes.clone()), bytes.len() as u64);
    let error = boot(&image, 512, LIMITS, &mut Taken::default()).unwrap_err();
    error.to_string()
}

/// The kernel, the initial RAM disks, the command line and the title.
fn booted(bytes: Vec<u8>) -> (String, String, String, String) {
    let image = Image::new(Box::new(bytes.clone()), bytes.len() as u64);
    let mut taken = Taken::default();
    let found = boot(&image, 512, LIMITS, &mut taken).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        text(taken.kernel),
        text(taken.initrd),
        found.cmdline,
        found.title,
    )
}

fn expected(
    kernel: &str,
    initrd: &str,
    cmdline: &str,
    title: &str,
) -> (String, String, String, String) {
    let owned = str::to_owned;
    (owned(kernel), owned(initrd), owned(cmdline), owned(title))
}

fn grub_cfg(root: &str) -> String {
    format!(
        "set default=0\nmenuentry 'Linux' --id one {{\n  set root='hd7,gpt7'\n  \
         search --no-floppy --fs-uuid --set=root {UUID}\n  linux {root}/vmlinuz root=UUID={UUID} ro quiet\n  \
         initrd {root}/early {root}/initrd.img\n}}\n"
    )
}

fn debian_root() -> Vec<u8> {
    ext4(&[
        ("/boot/grub/grub.cfg", grub_cfg("/boot").as_bytes()),
        ("/boot/vmlinuz", b"kernel"),
        ("/boot/early", b"early"),
        ("/boot/initrd.img", b"initrd"),
    ])
}

const DEBIAN_CMDLINE: &str =
    "BOOT_IMAGE=/boot/vmlinuz root=UUID=12345678-9abc-def0-1234-56789abcdef0 ro quiet";

#[test]
fn debian_boots_by_its_grub_cfg() {
    let esp = vfat(&[("/EFI/debian/grub.cfg", b"search.fs_uuid 1234 root\n")]);
    let bios = vec![0x90; MIB];
    let bytes = disk(
        "gpt",
        &[
            (LINUX, debian_root()),
            ("21686148-6449-6E6F-744E-656564454649", bios),
            (ESP, esp),
        ],
    );
    // The second one begins on a multiple of four bytes.
    let linux = expected(
        "kernel",
        "early\0\0\0initrd",
        DEBIAN_CMDLINE,
        "Linux (hd0,gpt1)",
    );
    assert_eq!(booted(bytes), linux);
}

#[test]
fn debian_on_an_mbr_boots() {
    let bytes = disk("dos", &[("82", vec![0; 10]), ("83", debian_root())]);
    let linux = expected(
        "kernel",
        "early\0\0\0initrd",
        DEBIAN_CMDLINE,
        "Linux (hd0,msdos2)",
    );
    assert_eq!(booted(bytes), linux);
}

#[test]
fn file_system_without_a_table_boots() {
    let linux = expected("kernel", "early\0\0\0initrd", DEBIAN_CMDLINE, "Linux (hd0)");
    assert_eq!(booted(debian_root()), linux);
    let bytes = vfat(&[
        ("/loader/entries/a.conf", b"linux /k\noptions ro\n"),
        ("/k", b"kernel"),
    ]);
    assert_eq!(booted(bytes), expected("kernel", "", "ro", "a (hd0)"));
}

#[test]
fn ubuntu_boots_from_its_boot_partition() {
    let boot = ext4(&[
        ("/grub/grub.cfg", grub_cfg("").as_bytes()),
        ("/vmlinuz", b"kernel"),
        ("/early", b"earl"),
        ("/initrd.img", b"initrd"),
    ]);
    let root = ext4(&[("/etc/fstab", b"")]);
    let bytes = disk("gpt", &[(LINUX, root), (ESP, vfat(&[])), (XBOOTLDR, boot)]);
    let cmdline = format!("BOOT_IMAGE=/vmlinuz root=UUID={UUID} ro quiet");
    let linux = expected("kernel", "earlinitrd", &cmdline, "Linux (hd0,gpt3)");
    assert_eq!(booted(bytes), linux);
}

const FEDORA_GRUB: &[u8] = b"load_env\nset default=\"${saved_entry}\"\n\
    if [ -z \"${kernelopts}\" ]; then set kernelopts=\"root=/dev/vda4 ro\"; fi\nblscfg\n";

fn fedora(environment: &str) -> Vec<u8> {
    let environment = format!("# GRUB Environment Block\n{environment}{}", "#".repeat(900));
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\noptions $kernelopts x={version}\n"
        )
    };
    ext4(&[
        ("/grub2/grub.cfg", FEDORA_GRUB),
        ("/grub2/grubenv", environment.as_bytes()),
        ("/loader/entries/id-6.9.0.conf", entry("6.9.0").as_bytes()),
        ("/loader/entries/id-6.10.0.conf", entry("6.10.0").as_bytes()),
        ("/loader/entries/id-7.0.0.conf", entry("7.0.0").as_bytes()),
        ("/vmlinuz-6.9.0", b"nine"),
        ("/initramfs-6.9.0.img", b"9"),
        ("/vmlinuz-6.10.0", b"ten"),
        ("/initramfs-6.10.0.img", b"10"),
    ])
}

#[test]
fn fedora_boots_the_newest_entry_with_a_kernel() {
    let bytes = disk("gpt", &[(ESP, vfat(&[])), (LINUX, fedora(""))]);
    let cmdline = "BOOT_IMAGE=/vmlinuz-6.10.0 root=/dev/vda4 ro x=6.10.0";
    assert_eq!(
        booted(bytes),
        expected("ten", "10", cmdline, "Fedora 6.10.0 (hd0,gpt2)")
    );
}

#[test]
fn rhel_boots_the_saved_entry_with_its_kernelopts() {
    let environment = "saved_entry=id-6.9.0\nkernelopts=root=UUID=1 ro crashkernel=auto\n";
    let bytes = disk("gpt", &[(LINUX, fedora(environment))]);
    let cmdline = "BOOT_IMAGE=/vmlinuz-6.9.0 root=UUID=1 ro crashkernel=auto x=6.9.0";
    assert_eq!(
        booted(bytes),
        expected("nine", "9", cmdline, "Fedora 6.9.0 (hd0,gpt1)")
    );
}

#[test]
fn arch_boots_by_the_entries_of_systemd_boot() {
    let esp = vfat(&[
        ("/loader/loader.conf", b"timeout 3\ndefault arch-lts.conf\n"),
        ("/loader/entries/arch.conf", b"title Arch\nlinux /vmlinuz-linux\ninitrd /initramfs.img\noptions rw\n"),
        ("/loader/entries/arch-lts.conf", b"title LTS\nlinux /vmlinuz-lts\ninitrd /initramfs.img\noptions root=/dev/vda2\noptions rw\n"),
        ("/vmlinuz-linux", b"kernel"),
        ("/vmlinuz-lts", b"lts"),
        ("/initramfs.img", b"initrd"),
    ]);
    let bytes = disk("gpt", &[(ESP, esp), (LINUX, ext4(&[]))]);
    assert_eq!(
        booted(bytes),
        expected("lts", "initrd", "root=/dev/vda2 rw", "LTS (hd0,gpt1)")
    );
}

#[test]
fn entries_of_both_boot_partitions_are_one_list() {
    let esp = vfat(&[
        (
            "/loader/entries/a.conf",
            b"linux /k\nsort-key a\nversion 2\n",
        ),
        ("/k", b"esp"),
    ]);
    let boot = ext4(&[
        (
            "/loader/entries/b+0-3.conf",
            b"linux /k\nsort-key a\nversion 4\n",
        ),
        (
            "/loader/entries/c+2.conf",
            b"linux /k\nsort-key a\nversion 3\n",
        ),
        ("/k", b"boot"),
    ]);
    let bytes = disk("gpt", &[(ESP, esp), (XBOOTLDR, boot)]);
    assert_eq!(booted(bytes), expected("boot", "", "", "c (hd0,gpt2)"));
}

#[test]
fn unified_kernel_image_boots() {
    let image = pe(&[
        (".osrel", b"PRETTY_NAME=\"Some Linux\"\nID=some\n"),
        (".cmdline", b"root=/dev/vda2 ro\0"),
        (".uname", b"6.1"),
        (".initrd", b"initrd"),
        (".linux", b"kernel"),
        (".ucode", b"code"),
    ]);
    let esp = vfat(&[("/EFI/Linux/some-6.1.efi", &image)]);
    let bytes = disk("gpt", &[(ESP, esp)]);
    let linux = expected(
        "kernel",
        "codeinitrd",
        "root=/dev/vda2 ro",
        "Some Linux (hd0,gpt1)",
    );
    assert_eq!(booted(bytes), linux);
}

#[test]
fn opensuse_boots_where_its_boot_can_be_read() {
    let root = ext4(&[
        ("/boot/grub2/grub.cfg", grub_cfg("/boot").as_bytes()),
        ("/boot/vmlinuz", b"kernel"),
        ("/boot/early", b"1234"),
        ("/boot/initrd.img", b"initrd"),
    ]);
    let bytes = disk(
        "gpt",
        &[
            (ESP, vfat(&[])),
            ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", root),
        ],
    );
    assert_eq!(booted(bytes).3, "Linux (hd0,gpt2)");
}

#[test]
fn file_systems_that_cannot_be_read_are_named_with_a_way_out() {
    let mut xfs = vec![0; 4096];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut lvm = vec![0; 4096];
    lvm[0x218..0x220].copy_from_slice(b"LVM2 001");
    let text = refused(disk("gpt", &[(ESP, vfat(&[])), (LINUX, xfs), (LINUX, lvm)]));
    assert!(
        text.contains("partition 2 holds XFS; partition 3 holds LVM; no boot entry on (hd0,gpt1)"),
        "{text}"
    );
    assert!(text.contains("--firmware"), "{text}");
    let text = refused(vec![0; MIB]);
    assert!(
        text.contains("the disk has no partitions and holds no file system that is known"),
        "{text}"
    );
}

#[test]
fn broken_configuration_is_told_of() {
    let text = refused(ext4(&[(
        "/boot/grub/grub.cfg",
        b"menuentry Windows { chainloader /x }",
    )]));
    assert!(
        text.contains(
            "/boot/grub/grub.cfg of (hd0): its default entry \"Windows\" boots no Linux kernel"
        ),
        "{text}"
    );
    let text = refused(ext4(&[("/boot/grub2/grub.cfg", b"blscfg")]));
    assert!(
        text.contains("it asks for boot entries (blscfg), and there is none with a kernel"),
        "{text}"
    );
}

#[test]
fn missing_and_large_files_are_named() {
    let text = refused(ext4(&[(
        "/boot/grub/grub.cfg",
        grub_cfg("/boot").as_bytes(),
    )]));
    assert_eq!(
        text,
        "entry \"Linux (hd0)\" names /boot/vmlinuz: there is no such file"
    );
    let large = vec![b'x'; 1001];
    for (kernel, early, name) in [(&large[..], &b"e"[..], "vmlinuz"), (b"k", &large, "early")] {
        let text = refused(ext4(&[
            ("/boot/grub/grub.cfg", grub_cfg("/boot").as_bytes()),
            ("/boot/vmlinuz", kernel),
            ("/boot/early", early),
        ]));
        assert_eq!(
            text,
            format!("entry \"Linux (hd0)\" names /boot/{name}: it has more than 1000 bytes")
        );
    }
}
