//! A guest that runs what it is told on its serial port, one command after the other.

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::running::Running;

/// Reads commands for ever. The lines that frame an output are what [`Shell::run`] looks for.
const SCRIPT: &str = "stty -echo; echo 'shell is ready'; \
    while read -r line; do echo '<<<'; sh -c \"$line\" 2>&1 || echo \"failed: $?\"; echo '>>>'; done";

/// A running guest at a shell.
pub struct Shell {
    running: Running,
    commands: usize,
    boots: usize,
}

impl Shell {
    /// Boots `guest`, and waits for its shell.
    pub fn start(guest: Guest) -> Result<Self> {
        let running = guest.script(SCRIPT).start()?;
        let mut shell = Self {
            running,
            commands: 0,
            boots: 0,
        };
        shell.wait_for_boot()?;
        Ok(shell)
    }

    /// Waits until the guest's shell is there once more.
    pub fn wait_for_boot(&mut self) -> Result<()> {
        self.boots += 1;
        self.running.wait_for_times("shell is ready\n", self.boots)
    }

    /// Runs a shell command of one line in the guest, and gives what it printed; fails when the command does.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.running.send(&format!("{command}\n"))?;
        self.commands += 1;
        self.running.wait_for_times(">>>\n", self.commands)?;
        let console = self.running.console();
        let output = console
            .rsplit_once(">>>\n")
            .and_then(|(before, _)| before.rsplit_once("<<<\n"))
            .map(|(_, output)| output.trim_end().to_owned())
            .with_context(|| format!("{command}: {console}"))?;
        ensure!(!output.contains("failed: "), "{command}: {output}");
        Ok(output)
    }

    /// Runs `command` again and again until it prints `expected`.
    pub fn run_until(&mut self, command: &str, expected: &str) -> Result<()> {
        let waiting = format!(
            "i=0; while [ \"$({command})\" != '{expected}' ]; do i=$((i+1)); [ $i -lt 600 ] || \
             {{ echo \"it is: $({command})\"; exit 1; }}; sleep 0.1; done"
        );
        self.run(&waiting).map(|_| ())
    }

    /// The VMM.
    pub fn vmm(&mut self) -> &mut Running {
        &mut self.running
    }

    /// The VMM, when the shell is needed no more.
    pub fn into_vmm(self) -> Running {
        self.running
    }
}
