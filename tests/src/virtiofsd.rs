//! A directory of the host, and the process that shows it to a guest.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::eventually;

/// Where distributions put it.
const PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/lib/virtiofsd",
];

/// A running virtiofsd with a directory of its own. Dropping it kills the process.
pub struct Virtiofsd {
    files: TempDir,
    process: Child,
}

impl Virtiofsd {
    /// Starts it with an empty directory, and waits until it listens.
    pub fn start() -> Result<Self> {
        let files = tempfile::tempdir()?;
        std::fs::create_dir(files.path().join("shared"))?;
        let process = spawn(files.path())?;
        let virtiofsd = Self { files, process };
        virtiofsd.wait()?;
        Ok(virtiofsd)
    }

    /// The socket that it listens at.
    pub fn socket(&self) -> PathBuf {
        self.files.path().join("socket")
    }

    /// A file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join("shared").join(name)
    }

    /// Kills the process as it is.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts another process for the same directory, at the same socket.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill()?;
        let _ = std::fs::remove_file(self.socket());
        self.process = spawn(self.files.path())?;
        self.wait()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    fn wait(&self) -> Result<()> {
        eventually("virtiofsd listens", || Ok(self.socket().exists()))
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.kill();
    }
}

fn spawn(files: &Path) -> Result<Child> {
    let program = PLACES.iter().find(|place| Path::new(place).exists());
    let program = program.context("there is no virtiofsd; ./tests/run guest installs it")?;
    let source = files.join("shared");
    Command::new(program)
        .arg(format!("--socket-path={}", files.join("socket").display()))
        .args(["-o", &format!("source={}", source.display())])
        .args(["-o", "cache=none"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))
}
