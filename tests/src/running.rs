//! A VMM process that runs: what it prints, what it is sent, how it ends.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::api::Api;
use crate::assets;
use crate::guest::API_SOCKET;

/// The longest that anything is waited for: an emulated machine that runs several guests boots one in half a minute,
/// and longer when other work is on it.
const LIMIT: Duration = Duration::from_secs(300);

const SCRIPT_BEGINS: &str = "=== script begins ===\n";
const SCRIPT_ENDED: &str = "=== script ended: ";

/// A running VMM. Dropping it kills the process.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
    started: Instant,
    files: TempDir,
}

/// How a VMM ended, and all that it printed.
#[derive(Debug)]
pub struct Finished {
    /// Exit status, or 128 and the signal that ended the process.
    pub status: i32,
    /// Standard output: the guest's serial port, without carriage returns.
    pub console: String,
    /// Standard error: the VMM's own messages.
    pub messages: String,
    /// From the start of the process to its end.
    pub elapsed: Duration,
}

impl Running {
    pub(crate) fn spawn(mut command: Command, files: TempDir) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: Captured::from(child.stdout.take().context("standard output is a pipe")?),
            stderr: Captured::from(child.stderr.take().context("standard error is a pipe")?),
            child,
            started: Instant::now(),
            files,
        })
    }

    /// The API of a machine with [`Guest::api`](crate::Guest::api), once it answers.
    pub fn api(&self) -> Result<Api> {
        let api = Api::new(&self.files.path().join(API_SOCKET));
        match api.wait() {
            Ok(()) => Ok(api),
            Err(error) => Err(error.context(self.story())),
        }
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the guest has printed on the serial port so far.
    pub fn console(&self) -> String {
        self.stdout.text()
    }

    /// What the VMM has said on standard error so far.
    pub fn messages(&self) -> String {
        self.stderr.text()
    }

    /// Memory of the process that is in RAM now, in KiB.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = size.and_then(|size| size.split_whitespace().next());
        Ok(size.context("VmRSS")?.parse()?)
    }

    /// How many entries /proc/PID/`what` has: `task` for threads, `fd` for descriptors.
    pub fn count(&self, what: &str) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/{what}", self.pid()))?.count())
    }

    /// Waits until the guest has printed `text` on the serial port.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.wait_for_times(text, 1)
    }

    /// Waits until the guest has printed `text` that many times.
    pub fn wait_for_times(&self, text: &str, times: usize) -> Result<()> {
        if self
            .stdout
            .wait_until(|console| console.matches(text).count() >= times)
        {
            return Ok(());
        }
        bail!(
            "the guest did not print {text:?} ({times} times)\n{}",
            self.story()
        )
    }

    /// Waits until the VMM has said `text` on standard error.
    pub fn wait_for_message(&self, text: &str) -> Result<()> {
        if self.stderr.wait_until(|messages| messages.contains(text)) {
            return Ok(());
        }
        bail!("the VMM did not say {text:?}\n{}", self.story())
    }

    /// What was printed, and what each thread of the VMM does: name, state, CPU time in user and kernel (in ticks), and
    /// where in the kernel it waits.
    fn story(&self) -> String {
        let mut threads = String::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))
            .into_iter()
            .flatten()
            .flatten()
        {
            // A thread may end meanwhile.
            let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let stat = read("stat");
            let fields: Vec<_> = stat
                .rsplit_once(')')
                .map(|(_, rest)| rest.split_whitespace().collect())
                .unwrap_or_default();
            let field = |index: usize| fields.get(index).copied().unwrap_or("?");
            threads += &format!(
                "{} {} {} {} {}\n",
                read("comm").trim_end(),
                field(0),
                field(11),
                field(12),
                read("wchan"),
            );
        }
        format!(
            "--- console\n{}\n--- messages\n{}\n--- threads\n{threads}",
            self.stdout.text(),
            self.stderr.text()
        )
    }

    /// Types `text` on the serial port.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Sends the process a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status()?;
        ensure!(status.success(), "cannot send SIG{name} to the VMM");
        Ok(())
    }

    /// Waits until the process has ended.
    pub fn wait(self) -> Result<Finished> {
        self.wait_at_most(LIMIT)
    }

    /// Waits until the process has ended, which fails when it lasts longer than `limit`.
    pub fn wait_at_most(mut self, limit: Duration) -> Result<Finished> {
        let until = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > until {
                bail!("the VMM did not end in {limit:?}\n{}", self.story());
            }
            thread::sleep(Duration::from_millis(20));
        };
        let elapsed = self.started.elapsed();
        self.stdout.join();
        self.stderr.join();
        Ok(Finished {
            status: number(status),
            console: self.stdout.text(),
            messages: self.stderr.text(),
            elapsed,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A process that has ended already cannot be killed, and that is the wish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Fails, with everything that was printed, unless the process ended with `status`.
    pub fn expect_status(self, status: i32) -> Result<Self> {
        ensure!(
            self.status == status,
            "the VMM ended with {}, not {status}\n--- console\n{}\n--- messages\n{}",
            self.status,
            self.console,
            self.messages
        );
        Ok(self)
    }

    /// What the script printed, when it and the process ended with status 0.
    pub fn output(self) -> Result<String> {
        let finished = self.expect_status(0)?;
        let (output, status) = finished.script()?;
        ensure!(
            status == 0,
            "the script ended with {status}\n--- console\n{}\n--- messages\n{}",
            finished.console,
            finished.messages
        );
        Ok(output.to_owned())
    }

    /// What the script printed and its exit status.
    pub fn script(&self) -> Result<(&str, i32)> {
        let framed = self
            .console
            .split_once(SCRIPT_BEGINS)
            .and_then(|(_, rest)| rest.rsplit_once(SCRIPT_ENDED))
            .with_context(|| {
                format!(
                    "the guest did not run the script to its end; the VMM ended with {}\n--- console\n{}\n--- messages\n{}",
                    self.status, self.console, self.messages
                )
            })?;
        let (output, rest) = framed;
        let status = rest.split_whitespace().next().unwrap_or_default();
        Ok((
            output.trim_end(),
            status.parse().context("the script's exit status")?,
        ))
    }
}

/// A VMM that waits for its API to create a machine. Files of the test's own are in `files`.
pub fn vmm_without_machine(files: &Path) -> Result<Running> {
    let dir = tempfile::tempdir_in(files)?;
    let mut command = Command::new(assets::podvisor()?);
    command.arg("--api-socket").arg(dir.path().join(API_SOCKET));
    Running::spawn(command, dir)
}

/// A VMM without a machine that can harm nothing: as nobody, in a root of its own, of which `shared` is the part that both
/// sides see (`/shared` there). Its API is at `shared/api.sock`.
pub fn confined_vmm() -> Result<(Running, PathBuf)> {
    ensure!(
        fs::metadata("/proc/self")?.uid() == 0,
        "only root can confine a VMM; run the tests as root"
    );
    let dir = tempfile::tempdir()?;
    let shared = dir.path().join("shared");
    fs::create_dir(&shared)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net"])
        .arg(assets::ours("schemathesis/confined"))
        .arg(dir.path())
        .arg(assets::podvisor()?)
        .args(["--api-socket", "/shared/api.sock"]);
    let running = Running::spawn(command, dir)?;
    Ok((running, shared))
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while !condition()? {
        ensure!(Instant::now() < until, "not in {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn number(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A pipe that a thread empties, and the text that came.
struct Captured {
    text: Arc<(Mutex<Text>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new((Mutex::new(Text::default()), Condvar::new()));
        let shared = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = pipe.read(&mut buffer).unwrap_or(0);
                let (text, changed) = &*shared;
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                text.bytes
                    .extend(buffer[..read].iter().filter(|&&byte| byte != b'\r'));
                text.ended |= read == 0;
                changed.notify_all();
                if text.ended {
                    return;
                }
            }
        });
        Self {
            text,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        let text = self.text.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text.bytes).into_owned()
    }

    /// Waits until the text satisfies `found`; false when the pipe ended or the time is over.
    fn wait_until(&self, found: impl Fn(&str) -> bool) -> bool {
        let until = Instant::now() + LIMIT;
        let (text, changed) = &*self.text;
        let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if found(&String::from_utf8_lossy(&text.bytes)) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if text.ended || left.is_zero() {
                return false;
            }
            text = changed
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            // The thread cannot panic, and its text is already here.
            let _ = reader.join();
        }
    }
}
