//! A network namespace of the test's own, so that tests with taps run side by side.

use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace; it and all that is in it go away with the value.
pub struct Network {
    name: String,
}

impl Network {
    /// The host's address on the tap of [`Network::add_tap`].
    pub const HOST: &str = "192.168.250.1";
    /// An address for the guest on the same network, whose prefix has 24 bits.
    pub const GUEST: &str = "192.168.250.2";

    /// An empty namespace with its loopback device up.
    pub fn new() -> Result<Self> {
        let name = format!(
            "podvisor-{}-{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let network = Self { name };
        checked(Command::new("ip").args(["netns", "add", &network.name]))
            .context("network tests need root and `apt-get install iproute2`")?;
        network.host("ip link set lo up")?;
        Ok(network)
    }

    /// Creates a tap called `name` that has [`Network::HOST`] and is up.
    pub fn add_tap(&self, name: &str) -> Result<()> {
        self.host(&format!("ip tuntap add dev {name} mode tap vnet_hdr"))?;
        self.host(&format!("ip address add {}/24 dev {name}", Self::HOST))?;
        self.host(&format!("ip link set {name} up"))?;
        Ok(())
    }

    /// Runs a shell command on the host's side of the network and gives its output; fails when the command does.
    pub fn host(&self, command: &str) -> Result<String> {
        checked(&mut self.command(&["sh", "-c", command]))
    }

    /// A command that will run in the namespace.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The only thing left to do for a namespace that will not go is to leave it.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

fn checked(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        status.success(),
        "{command:?} failed, {status}: {}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
