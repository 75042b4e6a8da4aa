//! The VMMs under comparison, each started in the way its own documentation recommends for a quick boot.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Guest memory in MiB.
pub(crate) const MEMORY: u64 = 128;

const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=k mitigations=off nokaslr tsc=reliable";

/// What every guest boots.
pub(crate) struct Payload {
    pub(crate) vmlinux: PathBuf,
    pub(crate) bzimage: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// For the files that a VMM wants beside its command line.
    pub(crate) scratch: PathBuf,
}

/// A VMM with a kernel format.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    kind: Kind,
    binary: PathBuf,
}

#[derive(Clone, Copy)]
enum Kind {
    Podvisor { bzimage: bool, mmio: bool },
    CloudHypervisor { bzimage: bool },
    Firecracker,
    QemuMicrovm,
    QemuQ35,
}

/// Those whose binaries are there; the first is Podvisor, which the ratios refer to.
pub(crate) fn peers() -> Result<Vec<Peer>> {
    let podvisor = tests::assets::podvisor()?;
    let qemu = PathBuf::from("/usr/bin/qemu-system-x86_64");
    anyhow::ensure!(
        qemu.exists(),
        "there is no QEMU to compare with; install it with: apt-get install qemu-system-x86"
    );
    let named = |variable: &str| env::var_os(variable).map(PathBuf::from);
    let (cloud_hypervisor, firecracker) = (named("CLOUD_HYPERVISOR"), named("FIRECRACKER"));
    let list = [
        (
            "podvisor",
            Kind::Podvisor {
                bzimage: false,
                mmio: false,
            },
            Some(podvisor.clone()),
        ),
        (
            "podvisor, mmio",
            Kind::Podvisor {
                bzimage: false,
                mmio: true,
            },
            Some(podvisor.clone()),
        ),
        (
            "cloud-hypervisor",
            Kind::CloudHypervisor { bzimage: false },
            cloud_hypervisor.clone(),
        ),
        ("firecracker", Kind::Firecracker, firecracker),
        ("qemu microvm", Kind::QemuMicrovm, Some(qemu.clone())),
        ("qemu q35", Kind::QemuQ35, Some(qemu)),
        (
            "podvisor, bzImage",
            Kind::Podvisor {
                bzimage: true,
                mmio: false,
            },
            Some(podvisor),
        ),
        (
            "cloud-hypervisor, bzImage",
            Kind::CloudHypervisor { bzimage: true },
            cloud_hypervisor,
        ),
    ];
    Ok(list
        .into_iter()
        .filter_map(|(name, kind, binary)| {
            Some(Peer {
                name,
                kind,
                binary: binary?,
            })
        })
        .collect())
}

impl Peer {
    /// The command that boots the payload with one CPU, a serial port and nothing else. `settle` is how many seconds the
    /// guest idles before it ends.
    pub(crate) fn command(&self, payload: &Payload, settle: u32) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        let kernel = match self.kind {
            Kind::Podvisor { bzimage: true, .. } | Kind::CloudHypervisor { bzimage: true } => {
                &payload.bzimage
            }
            _ => &payload.vmlinux,
        };
        // Firecracker has no power button register: its guests end by the keyboard controller's reset.
        let end = match self.kind {
            Kind::Firecracker => "reboot",
            _ => "poweroff",
        };
        let mut cmdline = format!("{CMDLINE} bench.end={end}");
        if settle > 0 {
            cmdline += &format!(" bench.settle={settle}");
        }
        match self.kind {
            Kind::Podvisor { mmio, .. } => {
                if mmio {
                    command.args(["--platform", "transport=mmio"]);
                }
                command.args(["--serial", "null", "--memory", &format!("size={MEMORY}M")]);
                direct_boot(&mut command, "--", kernel, &payload.initramfs, &cmdline);
            }
            Kind::CloudHypervisor { .. } => {
                command
                    .args(["--serial", "null", "--console", "off"])
                    .args(["--memory", &format!("size={MEMORY}M")]);
                direct_boot(&mut command, "--", kernel, &payload.initramfs, &cmdline);
            }
            Kind::Firecracker => {
                let config = firecracker(kernel, &payload.initramfs, &cmdline);
                let path = payload.scratch.join("firecracker.json");
                fs::write(&path, config).context("cannot write Firecracker's configuration")?;
                command
                    .args(["--no-api", "--no-seccomp", "--config-file"])
                    .arg(path);
            }
            Kind::QemuMicrovm => {
                command.args(["-M", "microvm,pit=off,pic=off,rtc=off,isa-serial=on"]);
                qemu(&mut command);
                direct_boot(&mut command, "-", kernel, &payload.initramfs, &cmdline);
            }
            Kind::QemuQ35 => {
                command.args(["-M", "q35"]);
                qemu(&mut command);
                direct_boot(&mut command, "-", kernel, &payload.initramfs, &cmdline);
            }
        }
        Ok(command)
    }
}

fn qemu(command: &mut Command) {
    command
        .args([
            "-enable-kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &MEMORY.to_string(),
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "null",
            "-no-reboot",
        ]);
}

fn direct_boot(
    command: &mut Command,
    dashes: &str,
    kernel: &Path,
    initramfs: &Path,
    cmdline: &str,
) {
    let [kernel_flag, initramfs_flag, cmdline_flag] = match dashes {
        "-" => ["-kernel", "-initrd", "-append"],
        _ => ["--kernel", "--initramfs", "--cmdline"],
    };
    let words: [&OsStr; 6] = [
        kernel_flag.as_ref(),
        kernel.as_ref(),
        initramfs_flag.as_ref(),
        initramfs.as_ref(),
        cmdline_flag.as_ref(),
        cmdline.as_ref(),
    ];
    command.args(words);
}

fn firecracker(kernel: &Path, initramfs: &Path, cmdline: &str) -> String {
    serde_json::json!({
        "boot-source": {
            "kernel_image_path": kernel,
            "initrd_path": initramfs,
            "boot_args": format!("{cmdline} pci=off"),
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY },
    })
    .to_string()
}
