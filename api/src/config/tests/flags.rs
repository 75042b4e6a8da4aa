//! The flags around the option strings.

use clap::{CommandFactory, Parser};

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    vm: VmArgs,
}

fn from_flags(flags: &[&str]) -> Result<VmConfig, ConfigError> {
    let flags = std::iter::once("podvisor").chain(flags.iter().copied());
    Cli::try_parse_from(flags).unwrap().vm.into_config()
}

#[test]
fn flags_make_a_machine() {
    let config = from_flags(&[
        "--kernel",
        "/boot/vmlinuz",
        "--initramfs",
        "/boot/initrd",
        "--cmdline",
        "-x console=ttyS0",
        "--cpus",
        "boot=2",
        "--memory",
        "size=1G",
        "--disk",
        "path=/a",
        "path=/b",
        "--disk",
        "path=/c",
        "--net",
        "tap=t0",
        "--serial",
        "file=/tmp/log",
        "--pvpanic=off",
        "--balloon",
        "size=64M",
        "--watchdog=poweroff",
    ])
    .unwrap();
    let paths: Vec<_> = config.disks.iter().map(|disk| disk.path.clone()).collect();
    assert_eq!(paths, ["/a", "/b", "/c"].map(|path| Some(path.into())));
    assert_eq!(config.payload.cmdline.as_deref(), Some("-x console=ttyS0"));
    assert_eq!(config.cpus.boot_vcpus, 2);
    assert_eq!(config.memory.size, ByteSize(1 << 30));
    assert_eq!(config.net.len(), 1);
    assert_eq!(config.serial.mode, ConsoleOutputMode::File);
    assert!(!config.pvpanic);
    assert_eq!(config.balloon.unwrap().size, ByteSize::mib(64));
    let poweroff = Some(WatchdogAction::Poweroff);
    assert_eq!((config.watchdog, config.watchdog_action), (true, poweroff));
}

#[test]
fn a_kernel_alone_makes_a_machine_on_the_terminal() {
    let config = from_flags(&["--kernel", "/boot/vmlinuz"]).unwrap();
    assert_eq!(config.serial.mode, ConsoleOutputMode::Tty);
    assert_eq!(config.console.mode, ConsoleOutputMode::Off);
    assert!(config.pvpanic);
    assert!(!config.watchdog && config.balloon.is_none());
    assert_eq!(config.memory.size, ByteSize::mib(512));
}

#[test]
fn console_takes_the_terminal_from_a_serial_port_that_was_not_asked_for() {
    let kernel = ["--kernel", "/boot/vmlinuz"];
    let flags = |flags: &[&'static str]| from_flags(&[&kernel, flags].concat());
    let config = flags(&["--console", "tty"]).unwrap();
    assert_eq!(config.serial.mode, ConsoleOutputMode::Null);
    flags(&["--console", "tty", "--serial", "tty"]).unwrap_err();
    let config = flags(&["--console-port", "name=a,tty"]).unwrap();
    assert_eq!(config.serial.mode, ConsoleOutputMode::Null);
    let config = flags(&["--console-port", "name=a,pty", "name=b,file=/b"]).unwrap();
    assert_eq!(config.serial.mode, ConsoleOutputMode::Tty);
    assert_eq!(config.console.mode, ConsoleOutputMode::Off);
    let ports = config.console.ports.unwrap();
    let modes: Vec<_> = ports.iter().map(|port| port.mode).collect();
    assert_eq!(modes, [ConsoleOutputMode::Pty, ConsoleOutputMode::File]);
}

#[test]
fn kernel_speaks_on_the_serial_port_unless_it_is_told_something_else() {
    let cmdline = |flags: &[&str]| {
        let flags = [&["--kernel", "/boot/vmlinuz"], flags].concat();
        from_flags(&flags).unwrap().payload.cmdline
    };
    assert_eq!(cmdline(&[]).as_deref(), Some("console=ttyS0"));
    assert_eq!(
        cmdline(&["--serial", "pty"]).as_deref(),
        Some("console=ttyS0")
    );
    assert_eq!(cmdline(&["--cmdline", "quiet"]).as_deref(), Some("quiet"));
    assert_eq!(cmdline(&["--cmdline", ""]).as_deref(), Some(""));
    assert_eq!(cmdline(&["--serial", "off"]), None);
    assert_eq!(
        cmdline(&["--console", "tty"]).as_deref(),
        Some("console=hvc0")
    );
    assert_eq!(
        cmdline(&["--console", "socket=/c"]).as_deref(),
        Some("console=ttyS0")
    );
}

#[test]
fn a_machine_without_a_kernel_is_refused() {
    insta::assert_snapshot!(from_flags(&[]).unwrap_err(),
        @"payload.kernel is missing: expected the path of a kernel (an ELF file or a bzImage), --kernel on the command line, or boot_disk, --boot-disk");
}

#[test]
fn firmware_stands_alone() {
    let config = from_flags(&["--firmware", "/fw"]).unwrap();
    assert_eq!(config.payload.firmware.as_deref(), Some("/fw".as_ref()));
    assert_eq!(config.payload.cmdline, None);
    for (flag, value) in [
        ("--kernel", "/k"),
        ("--initramfs", "/i"),
        ("--cmdline", "quiet"),
    ] {
        let error = from_flags(&["--firmware", "/fw", flag, value]).unwrap_err();
        let field = flag.trim_start_matches('-');
        assert_eq!(
            error.to_string(),
            format!(
                "bad value \"/fw\" for payload.firmware: expected no {field} beside it: a firmware finds what it boots on \
                 the disks"
            )
        );
    }
}

#[test]
fn clap_names_the_flag_of_a_bad_value() {
    let error = Cli::try_parse_from(["podvisor", "--disk", "pth=/a"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(
        text.contains("invalid value 'pth=/a' for '--disk <path=PATH,...>...'"),
        "{text}"
    );
    assert!(
        text.contains("unknown key \"pth\"; known keys: path"),
        "{text}"
    );
}

#[test]
fn flags_are_well_formed_and_the_help_fits_80_columns() {
    Cli::command().debug_assert();
    let help = Cli::command().term_width(80).render_help().to_string();
    for line in help.lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
}

#[test]
fn boot_disk_keeps_its_own_command_line() {
    let flags = ["--boot-disk", "root", "--disk", "path=/d,id=root"];
    let payload = from_flags(&flags).unwrap().payload;
    assert_eq!(payload.boot_disk.as_deref(), Some("root"));
    assert_eq!(payload.cmdline, None);
    let flags = [&flags[..], &["--cmdline", "console=ttyS0"]].concat();
    let payload = from_flags(&flags).unwrap().payload;
    assert_eq!(payload.cmdline.as_deref(), Some("console=ttyS0"));
}
