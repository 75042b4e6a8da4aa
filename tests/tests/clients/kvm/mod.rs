//! With tiny guests on this machine's own /dev/kvm.

mod events;
mod metrics;
mod readme;
mod schemathesis;

use anyhow::Result;
use tests::tiny::Program;
use tests::{Guest, Running};

/// A machine that has printed `up` and halts, with the API.
fn halted(args: &[&str]) -> Result<Running> {
    let program = Program::new().print("up\n");
    let guest = Guest::new().program(program).args(args).api().start()?;
    guest.wait_for("up\n")?;
    Ok(guest)
}
