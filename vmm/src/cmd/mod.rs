//! The command line: one file per subcommand, and [`main`], which turns what they return into an exit status.

pub mod check;
pub mod ctl;
pub mod generate;
pub mod outside;
mod panic;
pub mod run;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};

use crate::boot_disk;
use crate::exit_status::ExitStatus;

/// A hypervisor for pods, REST clients and developers.
///
/// Without a subcommand, boots the kernel that --kernel names.
#[derive(Debug, Parser)]
#[command(
    name = "podvisor",
    version,
    about,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "COMMAND",
    max_term_width = 80,
    after_help = EXIT_STATUS
)]
struct Cli {
    #[command(flatten)]
    run: run::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what this host can do: pass, warn or fail, and how to mend it
    Check {
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Call the API of a running VMM
    #[command(after_help = ctl::EXIT_STATUS, subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
    Ctl(Box<ctl::Args>),
    /// Read a disk for the VMM, which starts this by itself
    #[command(name = boot_disk::SUBCOMMAND, hide = true)]
    ReadBootDisk,
    /// Print a script that completes what is typed in a shell
    Completions {
        /// The shell
        shell: generate::Shell,
    },
    /// Print the manual page, which man -l - shows
    Man,
}

const EXIT_STATUS: &str = "\
Escape keys of --serial tty and --console tty: Ctrl-A x ends the VM, Ctrl-A h lists the others.

Exit status: 0 guest powered off, 1 VMM failure, 2 bad configuration,
3 guest panic, 4 KVM not usable, 134 abort.";

/// Runs the process, which started at `started`, to its exit status.
pub fn main(started: Instant) -> ExitCode {
    panic::install_hook();
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    if let (Some(line), Some("--version" | "-V")) = (
        version_line(&name),
        words.next().as_deref().and_then(OsStr::to_str),
    ) {
        // Nobody is left to be told that nobody reads it.
        let _ = writeln!(std::io::stdout(), "{line}");
        return ExitStatus::Success.into();
    }
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Check { json }) => check::run(json),
        Some(Command::Ctl(args)) => ctl::run(*args),
        Some(Command::ReadBootDisk) => boot_disk::child::run(),
        Some(Command::Completions { shell }) => {
            printed(|stdout| generate::completions(Cli::command(), shell, stdout))
        }
        Some(Command::Man) => printed(|stdout| generate::manual(Cli::command(), stdout)),
        None => run::run(cli.run, started),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            tell(format_args!("{error:#}"));
            ExitStatus::of(&error).into()
        }
    }
}

/// What a process that was started as `cloud-hypervisor` says of its version: libvirt and Kata Containers look for this
/// form, and take what the API can do from the number.
fn version_line(name: &OsStr) -> Option<String> {
    let name = Path::new(name).file_name()?;
    (name == "cloud-hypervisor")
        .then(|| format!("cloud-hypervisor v{}", api::CLOUD_HYPERVISOR_VERSION))
}

/// Prints something that cannot fail but for a closed standard output.
fn printed(
    print: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>,
) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    let result = print(&mut stdout).and_then(|()| stdout.flush());
    unless_nobody_reads(result).context("cannot write to standard output")?;
    Ok(ExitStatus::Success.into())
}

/// The same result, but for a reader that has gone because it has read enough: that is no failure.
fn unless_nobody_reads(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Says on stderr how the process ends. Nothing is left to do if that is closed: the status still tells.
fn tell(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "podvisor: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["podvisor"], flags].concat())
    }

    /// What is said of flags that are well-formed and cannot be run.
    fn refusal(flags: &[&str]) -> String {
        let error = run::run(parse(flags).unwrap().run, Instant::now()).unwrap_err();
        assert_eq!(ExitStatus::of(&error), ExitStatus::Configuration);
        error.to_string()
    }

    #[test]
    fn help_fits_80_columns() {
        fn check(command: &mut clap::Command) {
            for text in [command.render_help(), command.render_long_help()] {
                for line in text.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{line:?}");
                }
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        check(&mut command);
    }

    #[test]
    fn flags_of_later_releases_are_refused_by_name() {
        let error = parse(&["--kernel", "/k", "--rng", "src=/r,iommu=on"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("--rng") && text.contains("iommu"), "{text}");
        assert!(text.contains("not supported by podvisor"), "{text}");
    }

    #[test]
    fn machine_without_a_kernel_is_refused_even_where_the_api_is_served() {
        for flags in [
            &["--cpus", "boot=2"][..],
            &["--cpus", "boot=2", "--api-socket", "/nowhere/api"],
        ] {
            let text = refusal(flags);
            assert!(text.contains("payload.kernel is missing"), "{text}");
        }
    }

    #[test]
    fn guest_that_ends_without_the_process_needs_an_api() {
        let error = parse(&["--kernel", "/k", "--no-shutdown"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--api-socket"), "{error}");
    }

    #[test]
    fn name_of_cloud_hypervisor_has_its_version() {
        let version = |name: &str| version_line(std::ffi::OsStr::new(name));
        let api = api::CLOUD_HYPERVISOR_VERSION;
        let expected = format!("cloud-hypervisor v{api}");
        assert_eq!(version("/usr/bin/cloud-hypervisor"), Some(expected));
        assert_eq!(version("podvisor"), None);
        assert_eq!(api.split('.').count(), 3);
    }

    #[test]
    fn shutdown_timeout_is_a_number_of_seconds() {
        let error = parse(&["--kernel", "/k", "--shutdown-timeout", "5m"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("'5m'"), "{text}");
        assert!(text.contains("expected a number of seconds"), "{text}");
        parse(&["--kernel", "/k", "--shutdown-timeout", "0"]).unwrap();
    }
}
