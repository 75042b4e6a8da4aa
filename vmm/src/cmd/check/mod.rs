//! `podvisor check`: what this host can do, and how to mend what it cannot.
//!
//! Each row is a function of the host's file tree and of system calls that are really made: what matters is not what
//! a host claims but what this process may do on it.

mod confinement;
mod guest;
mod io;
pub mod kvm;
mod memory;
mod probe;
mod report;
mod root;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use report::{Report, Row};
use root::Root;

/// Prints the list and returns exit status 1 if no machine can run here, else 0.
///
/// `json` prints an array of `{check, status, detail, mend}` with a status of `pass`, `warn` or `fail`; `mend` is null
/// where there is nothing to mend.
///
/// # Errors
///
/// When standard output cannot be written to.
pub fn run(json: bool) -> anyhow::Result<ExitCode> {
    let report = Report::new(rows(&Root::host()));
    let mut stdout = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut stdout, &report)?;
        writeln!(stdout)?;
    } else {
        let colour = stdout.is_terminal();
        write!(stdout, "{}", report.text(colour))?;
    }
    Ok(ExitCode::from(u8::from(report.has_failure())))
}

fn rows(root: &Root) -> Vec<Row> {
    let mut rows = kvm::rows(root);
    rows.extend([
        io::tap(root),
        io::io_uring(root),
        memory::userfaultfd(root),
        memory::memlock(),
        memory::hugepages(root),
        memory::transparent_hugepages(root),
        confinement::cgroup_memory(root),
        confinement::cgroup_cpu(root),
        confinement::open_files(),
        confinement::landlock(),
        confinement::container(root),
        confinement::kernel(root),
    ]);
    rows
}

#[cfg(test)]
mod tests;
