//! `podvisor ctl`: the API of a running VMM from the command line.
//!
//! Verbs and their arguments are spelled as those of ch-remote, which drives Cloud Hypervisor. A verb becomes a `Call`
//! before anything is sent; what is wrong with its arguments is told by then.

mod call;
mod descriptor;
mod devices;
mod error;
mod foreign;
mod lifecycle;
mod resize;
mod saved;
mod show;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use api::client::Client;
use api::config::{ConfigError, EndpointConfig};
use clap::{Args as ClapArgs, Subcommand, ValueHint};

use call::Call;
pub use error::UsageError;
use error::{Failure, lines};

use crate::exit_status::ExitStatus;

/// The flags of a call.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Socket of the VMM's API: what it was started with
    #[arg(long, value_name = "PATH", value_parser = socket, value_hint = ValueHint::FilePath)]
    api_socket: PathBuf,
    /// Print the JSON that the VMM answers
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

pub(super) const EXIT_STATUS: &str = "\
A verb that the VMM does not support is refused by name.

Exit status: 0 done, 1 refused by the VMM or no VMM there, 2 bad usage.";

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Watch(watch::Verb),
    #[command(flatten)]
    Lifecycle(lifecycle::Verb),
    #[command(flatten)]
    Devices(devices::Verb),
    #[command(flatten)]
    Resize(resize::Verb),
    #[command(flatten)]
    Saved(saved::Verb),
}

impl Verb {
    fn into_call(self) -> Result<Call, UsageError> {
        match self {
            Self::Watch(verb) => Ok(verb.into_call()),
            Self::Lifecycle(verb) => verb.into_call(),
            Self::Devices(verb) => verb.into_call(),
            Self::Resize(verb) => Ok(verb.into_call()),
            Self::Saved(verb) => verb.into_call(),
        }
    }
}

/// Makes the call and prints what it answers. The exit status is 1 when it was refused or nobody is there to take it; why is
/// on stderr then, one message a line.
///
/// # Errors
///
/// Arguments that cannot be used ([`UsageError`]), or standard output that cannot be written to.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        api_socket,
        json,
        verb,
    } = args;
    let call = verb.into_call()?;
    let client = Client::new(api_socket);
    match call.make(&client, json, &mut io::stdout().lock()) {
        Ok(()) => Ok(ExitStatus::Success.into()),
        Err(Failure::Usage(error)) => Err(error.into()),
        Err(Failure::Output(error)) => {
            super::unless_nobody_reads(Err(error)).context("cannot write to standard output")?;
            Ok(ExitStatus::Success.into())
        }
        Err(Failure::Call(error)) => {
            for line in lines(&error) {
                super::tell(line);
            }
            Ok(ExitStatus::Failure.into())
        }
    }
}

/// The path of a socket, in the forms that the VMM takes it in.
fn socket(text: &str) -> Result<PathBuf, ConfigError> {
    let EndpointConfig { path, .. } = text.parse()?;
    path.ok_or_else(|| ConfigError::Syntax {
        found: text.to_owned(),
        problem: "expected the path of a socket".to_owned(),
    })
}
