//! The `podvisor` binary.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    vmm::cmd::main(Instant::now())
}
