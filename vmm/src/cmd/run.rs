//! `podvisor --kernel ...`: boots one machine and stays with it until it ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::config::{EndpointConfig, VmArgs};
use api::request::Descriptors;
use clap::Args as ClapArgs;

use super::outside::{Doors, Outside};
use crate::exit_status::ExitStatus;
use crate::{logging, vm};

/// The flags of a run.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    machine: VmArgs,

    /// Serve the REST API on a Unix socket; without --kernel, wait there for a VM to be created
    #[arg(long, value_name = "PATH|path=PATH|fd=N", help_heading = "Process")]
    api_socket: Option<EndpointConfig>,

    /// Write events in JSON to a file or descriptor
    #[arg(long, value_name = "path=PATH|fd=N", help_heading = "Process")]
    event_monitor: Option<EndpointConfig>,

    /// Let a debugger connect to a Unix socket: a guest that boots waits at its first instruction until gdb, told
    /// `target remote PATH`, lets it run
    #[arg(long, value_name = "PATH|path=PATH|fd=N", help_heading = "Process")]
    gdb: Option<EndpointConfig>,

    /// End when the guest reboots, instead of starting it again
    #[arg(long, help_heading = "Process")]
    no_reboot: bool,

    /// Go on serving the API when the guest has powered off
    #[arg(long, requires = "api_socket", help_heading = "Process")]
    no_shutdown: bool,

    /// Seconds between SIGTERM or SIGINT, which press the power button, and the end; a second signal ends at once
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Process")]
    shutdown_timeout: Duration,

    /// Log more: -v information, -vv debug, -vvv trace
    #[arg(short = 'v', action = clap::ArgAction::Count, help_heading = "Process")]
    verbosity: u8,

    /// Append the log to a file instead of stderr
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    log_file: Option<PathBuf>,
}

/// Runs the machine that the flags describe, or those that clients of the API create, to the end.
///
/// # Errors
///
/// A configuration that cannot be used, or a failure of the VMM.
pub fn run(args: Args, started: Instant) -> anyhow::Result<ExitCode> {
    let Args {
        machine,
        api_socket,
        event_monitor,
        gdb,
        no_reboot,
        no_shutdown,
        shutdown_timeout,
        verbosity,
        log_file,
    } = args;
    // Before any thread is started, which would take the signals otherwise.
    vm::signals::Signals::block().context("cannot block SIGTERM and SIGINT")?;
    vm::signals::Signals::ignore_file_limit();
    let machine = if api_socket.is_some() && machine.is_empty() {
        None
    } else {
        let mut config = machine.into_config()?;
        config.assign_ids();
        Some(vm::Definition {
            config: Box::new(config),
            descriptors: Descriptors::none(),
        })
    };
    let debugger = gdb.as_ref().map(|gdb| match &gdb.path {
        Some(path) => path.display().to_string(),
        None => "SOCKET".to_owned(),
    });
    let doors = Doors::open(api_socket, event_monitor, gdb)?;
    if let Some(socket) = &debugger {
        super::tell(format_args!(
            "a guest that boots waits for a debugger: gdb -ex 'target remote {socket}'"
        ));
    }
    logging::start(started, verbosity, log_file.as_deref())?;
    let options = vm::Options {
        wait_for_debugger: debugger.is_some(),
        no_reboot,
        no_shutdown,
        shutdown_timeout,
        started,
    };
    let inbox = vm::Inbox::new().context("cannot get an eventfd")?;
    let outside = Outside::start(doors, &inbox, started)?;
    let result = vm::run(machine, options, inbox, outside.events());
    // What was asked and what happened until now is told, however it ended.
    outside.finish();
    let outcome = result?;
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
