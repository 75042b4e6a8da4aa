//! The command line: one file per subcommand, and [`main`], which turns what they return into an exit status.

pub mod check;
mod panic;
pub mod run;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

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
}

const EXIT_STATUS: &str = "\
Escape keys of --serial tty: Ctrl-A x ends the VM, Ctrl-A h lists the others.

Exit status: 0 guest powered off, 1 VMM failure, 2 bad configuration,
3 guest panic, 4 KVM not usable, 134 abort.";

/// Runs the process, which started at `started`, to its exit status.
pub fn main(started: Instant) -> ExitCode {
    panic::install_hook();
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Check { json }) => check::run(json),
        None => run::run(cli.run, started),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to do if stderr is closed: the status still tells.
            let _ = writeln!(std::io::stderr(), "podvisor: {error:#}");
            ExitStatus::of(&error).into()
        }
    }
}
