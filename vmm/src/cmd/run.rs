//! `podvisor --kernel ...`: boots one machine and stays with it until it ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::config::{ConfigError, VmArgs};
use clap::Args as ClapArgs;

use crate::exit_status::ExitStatus;
use crate::{logging, vm};

/// The flags of a run.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    machine: VmArgs,

    /// End when the guest reboots, instead of starting it again
    #[arg(long, help_heading = "Process")]
    no_reboot: bool,

    /// Seconds between SIGTERM or SIGINT, which press the power button, and the end; a second signal ends at once
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Process")]
    shutdown_timeout: Duration,

    /// REST API on a Unix socket (not supported by this release)
    #[arg(long, value_name = "PATH", hide = true)]
    api_socket: Option<String>,

    /// Events in JSON (not supported by this release)
    #[arg(long, value_name = "path=PATH|fd=N", hide = true)]
    event_monitor: Option<String>,

    /// Log more: -v information, -vv debug, -vvv trace
    #[arg(short = 'v', action = clap::ArgAction::Count, help_heading = "Process")]
    verbosity: u8,

    /// Append the log to a file instead of stderr
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    log_file: Option<PathBuf>,
}

/// Runs the machine that the flags describe to its end.
///
/// # Errors
///
/// A configuration that cannot be used, or a failure of the VMM.
pub fn run(args: Args, started: Instant) -> anyhow::Result<ExitCode> {
    let Args {
        machine,
        no_reboot,
        shutdown_timeout,
        api_socket,
        event_monitor,
        verbosity,
        log_file,
    } = args;
    refuse("--api-socket", api_socket)?;
    refuse("--event-monitor", event_monitor)?;
    let mut config = machine.into_config()?;
    config.assign_ids();
    logging::start(started, verbosity, log_file.as_deref())?;
    let options = vm::Options {
        no_reboot,
        shutdown_timeout,
        started,
    };
    let inbox = vm::Inbox::new().context("cannot get an eventfd")?;
    let outcome = vm::run(config, options, inbox)?;
    if outcome == vm::Outcome::Panicked {
        super::tell("the guest's kernel panicked");
    }
    Ok(ExitStatus::from(outcome).into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text
        .parse()
        .map_err(|_| format!("expected a number of seconds from 0 to {}", u32::MAX))?;
    Ok(Duration::from_secs(seconds.into()))
}

fn refuse(flag: &str, value: Option<String>) -> Result<(), ConfigError> {
    match value {
        None => Ok(()),
        Some(value) => Err(ConfigError::Unsupported {
            field: flag.to_owned(),
            value: format!("{value:?}"),
            default: "none".to_owned(),
        }),
    }
}
