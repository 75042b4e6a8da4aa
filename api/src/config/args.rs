//! The command-line flags that describe a machine.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{
    BalloonConfig, ConfigError, ConsoleConfig, ConsoleOutputMode, ConsolePortConfig, CpusConfig,
    DiskConfig, FsConfig, MemoryConfig, NetConfig, PayloadConfig, PlatformConfig,
    RateLimitGroupConfig, RngConfig, SerialConfig, VmConfig, VsockConfig, WatchdogAction,
};

/// What the kernel is told unless it is told something: to speak on the serial port, or on the console if that has the
/// terminal.
const DEFAULT_CMDLINE: &str = "console=ttyS0";
const CONSOLE_CMDLINE: &str = "console=hvc0";

/// The flags that describe a machine, spelled as Cloud Hypervisor spells them. For `#[command(flatten)]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Machine")]
pub struct VmArgs {
    /// Kernel to boot: an ELF file or a bzImage.
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk.
    #[arg(long, value_name = "PATH")]
    pub initramfs: Option<PathBuf>,

    /// Boot what the disk of this id boots by itself: its own kernel, initial RAM disk and command line are read from it, again
    /// at each reboot, by way of its grub.cfg or its boot entries.
    #[arg(long, value_name = "ID", conflicts_with_all = ["kernel", "initramfs"])]
    pub boot_disk: Option<String>,

    /// Command line of the kernel [default: console=ttyS0; console=hvc0 with --console tty;
    /// nothing with --serial off]. With --boot-disk, words to append to that of the disk [default: none].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// Firmware to boot instead of a kernel: an ELF file with a PVH entry, such as CLOUDHV.fd.
    #[arg(long, value_name = "PATH")]
    pub firmware: Option<PathBuf>,

    /// Virtual processors [default: boot=1]. Keys: boot=N, max=M, topology=T:C:D:P (threads per core, cores per die,
    /// dies per package, packages).
    #[arg(long, value_name = "boot=N,...")]
    pub cpus: Option<CpusConfig>,

    /// Guest memory [default: size=512M]. Keys: size=S with K, M, G or T, hugepage_size=2M|1G, and shared, hugepages,
    /// prefault, mergeable, thp, each =on|off.
    #[arg(long, value_name = "size=S,...")]
    pub memory: Option<MemoryConfig>,

    /// A disk: a raw or qcow2 image, or a block device. May be repeated. Keys: path=PATH, image_type=raw|qcow2, readonly=on|off,
    /// id=NAME, serial=TEXT, backing_files=on|off (whether a qcow2 image may build on others), overlay=PATH (a layer that takes
    /// the writes), direct=on|off, sparse=on|off, num_queues=N, queue_size=N, queue_affinity=[QUEUE@[CPU,...],...],
    /// lock_granularity=byte-range|full, and limits: bw_size=BYTES, bw_one_time_burst=BYTES, bw_refill_time=MS, ops_size=N,
    /// ops_one_time_burst=N, ops_refill_time=MS, or rate_limit_group=GROUP.
    #[arg(long, value_name = "path=PATH,...", action = ArgAction::Append, num_args = 1..)]
    pub disk: Vec<DiskConfig>,

    /// Limits that several disks share. May be repeated. Keys: id=NAME, and the limits of --disk.
    #[arg(long, value_name = "id=NAME,...", action = ArgAction::Append, num_args = 1..)]
    pub rate_limit_group: Vec<RateLimitGroupConfig>,

    /// A network on a tap, which is made when there is none, or on a macvtap. May be repeated. Keys: tap=NAME, fd=N or
    /// fd=[N,...], mac=ADDRESS, ip=ADDRESS with mask=MASK, mtu=N, id=NAME, num_queues=N (2 for each queue of the tap),
    /// queue_size=N, link, offload_tso, offload_ufo, offload_csum, each =on|off, and limits as for --disk, for each direction
    /// by itself.
    #[arg(long, value_name = "tap=NAME,...", action = ArgAction::Append, num_args = 1..)]
    pub net: Vec<NetConfig>,

    /// A directory that virtiofsd serves at the socket PATH. May be repeated. Needs --memory shared=on. Keys: tag=NAME, which
    /// the guest mounts, socket=PATH, num_queues=N, queue_size=N, id=NAME.
    #[arg(long, value_name = "tag=NAME,socket=PATH,...", action = ArgAction::Append, num_args = 1..)]
    pub fs: Vec<FsConfig>,

    /// Source of the guest's random numbers [default: src=/dev/urandom].
    #[arg(long, value_name = "src=PATH")]
    pub rng: Option<RngConfig>,

    /// Sockets between host and guest, over the Unix socket PATH. Keys: cid=N, the guest's address from 3 on,
    /// socket=PATH, id=NAME.
    #[arg(long, value_name = "cid=N,socket=PATH,...")]
    pub vsock: Option<VsockConfig>,

    /// A memory balloon. Keys: size=S, which the guest is asked to give back, deflate_on_oom=on|off,
    /// free_page_reporting=on|off, stats_polling_interval_s=N, id=NAME.
    #[arg(long, value_name = "size=S,...")]
    pub balloon: Option<BalloonConfig>,

    /// Properties of the whole machine. Keys: transport=pci|mmio: how the guest finds its virtio devices. With mmio there is
    /// no PCI bus: the guest boots faster, and no device comes or goes while it runs.
    #[arg(long, value_name = "transport=T")]
    pub platform: Option<PlatformConfig>,

    /// Serial port: off, null, tty, pty, file=PATH or socket=PATH [default: tty, or null where something else is tty].
    #[arg(long, value_name = "MODE")]
    pub serial: Option<SerialConfig>,

    /// Virtio console, hvc0 in a Linux guest: off, null, tty, pty, file=PATH or socket=PATH, and id=NAME [default: off].
    #[arg(long, value_name = "MODE")]
    pub console: Option<ConsoleConfig>,

    /// A port between a program of the guest, which opens /dev/virtio-ports/NAME, and one of the host. May be repeated.
    /// Keys: name=NAME, and null, tty, pty, file=PATH or socket=PATH.
    #[arg(long, value_name = "name=NAME,...", action = ArgAction::Append, num_args = 1..)]
    pub console_port: Vec<ConsolePortConfig>,

    /// Whether the guest has a device to tell of its panic [default: on].
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on",
          value_parser = on_or_off)]
    pub pvpanic: Option<bool>,

    /// A watchdog (i6300esb), and what happens when the guest does not reload it in time: reset, poweroff, shutdown (presses
    /// the power button), pause or none (tells of it by an event) [default: no watchdog; without ACTION: reset].
    #[arg(long, value_name = "ACTION", num_args = 0..=1, require_equals = true, default_missing_value = "reset")]
    pub watchdog: Option<WatchdogAction>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

impl VmArgs {
    /// Whether none of the flags was given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The machine that the flags describe, checked.
    ///
    /// The serial port is on the terminal unless another place is named or something else has the terminal, and the kernel
    /// speaks there unless it gets a command line: a person who boots a kernel wants to see it.
    ///
    /// # Errors
    /// What is wrong first, with the path of the field.
    pub fn into_config(self) -> Result<VmConfig, ConfigError> {
        let Self {
            kernel,
            initramfs,
            boot_disk,
            cmdline,
            firmware,
            cpus,
            memory,
            disk,
            rate_limit_group,
            net,
            fs,
            rng,
            vsock,
            platform,
            balloon,
            serial,
            console,
            console_port,
            pvpanic,
            watchdog,
        } = self;
        let default = VmConfig::default();
        let mut console = console.unwrap_or_default();
        console.ports = (!console_port.is_empty()).then_some(console_port);
        let console_has_terminal = console.mode == ConsoleOutputMode::Tty;
        let mut ports = console.ports.iter().flatten();
        let port_has_terminal = ports.any(|port| port.mode == ConsoleOutputMode::Tty);
        let serial = serial.unwrap_or_else(|| {
            SerialConfig::from(if console_has_terminal || port_has_terminal {
                ConsoleOutputMode::Null
            } else {
                ConsoleOutputMode::Tty
            })
        });
        let default_cmdline = match serial.mode {
            // A firmware takes no words, and a disk's own command line says where to speak.
            _ if firmware.is_some() || boot_disk.is_some() => None,
            _ if console_has_terminal => Some(CONSOLE_CMDLINE),
            ConsoleOutputMode::Off => None,
            _ => Some(DEFAULT_CMDLINE),
        };
        let cmdline = cmdline.or_else(|| default_cmdline.map(str::to_owned));
        let config = VmConfig {
            payload: PayloadConfig {
                kernel,
                initramfs,
                boot_disk,
                cmdline,
                firmware,
                ..PayloadConfig::default()
            },
            cpus: cpus.unwrap_or_default(),
            memory: memory.unwrap_or_default(),
            disks: disk,
            rate_limit_groups: (!rate_limit_group.is_empty()).then_some(rate_limit_group),
            net,
            fs,
            rng: rng.unwrap_or_default(),
            vsock,
            platform,
            balloon,
            serial,
            console,
            pvpanic: pvpanic.unwrap_or(default.pvpanic),
            watchdog: watchdog.is_some(),
            watchdog_action: watchdog,
            ..default
        };
        config.validate()?;
        Ok(config)
    }
}
