//! The description of a machine under test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::running::{Finished, Running};
use crate::tiny::Program;
use crate::{Disk, Network, archive, assets};

/// Name of the API's socket in the machine's directory.
pub(crate) const API_SOCKET: &str = "api.sock";

const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check";

/// A machine to boot: Debian's cloud kernel, the small userland and one CPU with 128 MiB, unless told otherwise.
///
/// The serial port is the process's standard input and output.
pub struct Guest {
    kernel: Kernel,
    script: Option<String>,
    files: Vec<(String, Vec<u8>)>,
    cmdline: String,
    cpus: String,
    memory: String,
    serial: String,
    args: Vec<OsString>,
    api: bool,
    wrapper: Option<Command>,
}

enum Kernel {
    Debian,
    File(PathBuf),
    Program(Program),
    /// Whatever the disk of this id boots.
    Disk(String),
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// The default machine.
    pub fn new() -> Self {
        Self {
            kernel: Kernel::Debian,
            script: None,
            files: Vec::new(),
            cmdline: CMDLINE.into(),
            cpus: "boot=1".into(),
            memory: "size=128M".into(),
            serial: "tty".into(),
            args: Vec::new(),
            api: false,
            wrapper: None,
        }
    }

    /// Boots this kernel instead of Debian's bzImage.
    pub fn kernel(mut self, path: PathBuf) -> Self {
        self.kernel = Kernel::File(path);
        self
    }

    /// Boots what the disk of this id boots by itself.
    pub fn boot_disk(mut self, id: &str) -> Self {
        self.kernel = Kernel::Disk(id.into());
        self
    }

    /// Boots a tiny program, with neither Linux nor a userland.
    pub fn program(mut self, program: Program) -> Self {
        self.kernel = Kernel::Program(program);
        self
    }

    /// Runs a shell script in the guest, which then powers off. Without one the guest gives a shell.
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.into());
        self
    }

    /// Puts a copy of `path` into the root directory of the guest's userland.
    pub fn file(mut self, path: &Path) -> Result<Self> {
        let name = path.file_name().context("a file's name")?;
        let contents = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = name.to_string_lossy().into_owned();
        self.files.push((name, contents));
        Ok(self)
    }

    /// Adds words to the kernel's command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// The value of `--cpus`.
    pub fn cpus(mut self, value: &str) -> Self {
        self.cpus = value.into();
        self
    }

    /// The value of `--memory`.
    pub fn memory(mut self, value: &str) -> Self {
        self.memory = value.into();
        self
    }

    /// The value of `--serial`.
    pub fn serial(mut self, value: &str) -> Self {
        self.serial = value.into();
        self
    }

    /// Adds a disk; `more` continues the value, as in `,readonly=on`.
    pub fn disk(self, disk: &Disk, more: &str) -> Self {
        let value = format!("path={}{more}", disk.path().display());
        self.arg("--disk").arg(value)
    }

    /// Adds the disk with fio, iperf3 and socat, which a script runs by `tools COMMAND`.
    pub fn tools(self) -> Result<Self> {
        let value = format!("path={},readonly=on", assets::tools()?.display());
        Ok(self.arg("--disk").arg(value))
    }

    /// Adds one word to the command line.
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.args.push(word.into());
        self
    }

    /// Adds words to the command line.
    pub fn args(self, words: &[&str]) -> Self {
        words.iter().fold(self, |guest, word| guest.arg(*word))
    }

    /// Serves the API, which [`Running::api`] calls.
    pub fn api(mut self) -> Self {
        self.api = true;
        self
    }

    /// Runs the VMM in a network namespace.
    pub fn network(self, network: &Network) -> Self {
        self.wrapped(network.command(&[]))
    }

    /// Runs the VMM by a command that ends in becoming it.
    pub fn wrapped(mut self, command: Command) -> Self {
        self.wrapper = Some(command);
        self
    }

    /// Starts the machine.
    pub fn start(self) -> Result<Running> {
        let (command, files) = self.command()?;
        Running::spawn(command, files)
    }

    /// The command that starts the machine as a shell reads it, and the directory that it needs.
    pub fn command_line(self) -> Result<(String, TempDir)> {
        let (command, files) = self.command()?;
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let quoted: Vec<_> = words
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
            .collect();
        Ok((quoted.join(" "), files))
    }

    fn command(mut self) -> Result<(Command, TempDir)> {
        let dir = tempfile::tempdir()?;
        let mut files = self.files;
        files.extend(self.script.map(|script| ("script".into(), script.into())));
        let (kernel, initramfs) = match self.kernel {
            Kernel::Debian => (
                Some(assets::bzimage()?),
                Some(userland(dir.path(), &files)?),
            ),
            Kernel::File(kernel) => (Some(kernel), Some(userland(dir.path(), &files)?)),
            Kernel::Disk(ref id) => {
                self.args.extend(["--boot-disk".into(), id.into()]);
                (None, None)
            }
            Kernel::Program(program) => {
                let kernel = dir.path().join("program.elf");
                fs::write(&kernel, program.elf())?;
                (Some(kernel), None)
            }
        };
        let podvisor = assets::podvisor()?;
        let mut command = match self.wrapper {
            Some(mut wrapper) => {
                wrapper.arg(podvisor);
                wrapper
            }
            None => Command::new(podvisor),
        };
        command
            .args(["--cpus", &self.cpus])
            .args(["--memory", &self.memory])
            .args(["--serial", &self.serial])
            .args(self.args);
        // A disk has a command line of its own.
        if let Some(kernel) = kernel {
            command.arg("--kernel").arg(kernel);
            command.args(["--cmdline", &self.cmdline]);
        }
        if let Some(initramfs) = initramfs {
            command.arg("--initramfs").arg(initramfs);
        }
        if self.api {
            command.arg("--api-socket").arg(dir.path().join(API_SOCKET));
        }
        Ok((command, dir))
    }

    /// Starts the machine and waits for the process to end.
    pub fn run(self) -> Result<Finished> {
        self.start()?.wait()
    }

    /// What the script printed, from a run in which it and the process ended with status 0.
    pub fn output(self) -> Result<String> {
        self.run()?.output()
    }
}

/// Writes the initramfs: the small userland and, appended to it, `files` by their names.
fn userland(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<PathBuf> {
    let path = dir.join("initramfs.cpio");
    let mut archives = File::create(&path)?;
    io::copy(&mut File::open(assets::initramfs()?)?, &mut archives)?;
    for (name, contents) in files {
        archives.write_all(&archive::one_file(name, contents))?;
    }
    Ok(path)
}
