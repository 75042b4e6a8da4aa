//! With tiny guests on this machine's own /dev/kvm.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::tiny::Program;
use tests::{Disk, Running, assets, eventually, vmm_without_machine};

/// A VMM, which has no machine yet, and the files that one is made of.
struct Vmm {
    running: Running,
    socket: PathBuf,
    files: Disk,
}

impl Vmm {
    fn start() -> Result<Self> {
        let files = Disk::new(1 << 20)?;
        let running = vmm_without_machine(files.dir())?;
        let socket = running.api()?.socket().to_owned();
        let kernel = Program::new().print("up\n").elf();
        fs::write(files.dir().join("kernel"), kernel)?;
        Ok(Self {
            running,
            socket,
            files,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.dir().join(name)
    }

    /// A machine that prints to a file, without a kernel and disks.
    fn machine(&self) -> Value {
        json!({
            "memory": {"size": 64 << 20},
            "serial": {"mode": "File", "file": self.file("console")},
        })
    }

    /// Runs `podvisor ctl` with `words`, with the descriptors from 3 on that the shell's redirections `opened` make, and with
    /// `input`.
    fn ctl(&self, words: &[&str], opened: &str, input: &str) -> Result<Output> {
        let mut child = self.spawn(words, opened)?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        Ok(child.wait_with_output()?)
    }

    fn spawn(&self, words: &[&str], opened: &str) -> Result<Child> {
        let child = Command::new("sh")
            .args(["-c", &format!("exec \"$@\" {opened}"), "sh"])
            .arg(assets::podvisor()?)
            .args(["ctl", "--api-socket"])
            .arg(&self.socket)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(child)
    }

    /// What `words` print when they are carried out.
    fn done(&self, words: &[&str]) -> Result<String> {
        succeeded(words, self.ctl(words, "", "")?)
    }

    /// What is said of `words` when they are refused.
    fn refused(&self, words: &[&str]) -> Result<String> {
        let output = self.ctl(words, "", "")?;
        ensure!(output.status.code() == Some(1), "{words:?}: {output:?}");
        ensure!(output.stdout.is_empty(), "{words:?}: {output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// Creates and boots a machine with a kernel.
    fn boot(&self) -> Result<()> {
        let mut machine = self.machine();
        machine["payload"] = json!({"kernel": self.file("kernel")});
        let path = self.file("machine.json");
        fs::write(&path, machine.to_string())?;
        assert_eq!(self.done(&["create", text(&path)?])?, "");
        assert_eq!(self.done(&["boot"])?, "");
        self.wait_for_guest()
    }

    fn wait_for_guest(&self) -> Result<()> {
        eventually("the guest's console", || {
            Ok(fs::read_to_string(self.file("console"))?.contains("up"))
        })
    }

    fn end(self) -> Result<()> {
        assert_eq!(self.done(&["shutdown-vmm"])?, "");
        self.running.wait()?.expect_status(0)?;
        Ok(())
    }
}

fn succeeded(words: &[&str], output: Output) -> Result<String> {
    ensure!(output.status.success(), "{words:?}: {output:?}");
    ensure!(output.stderr.is_empty(), "{words:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is text")
}

#[test]
fn verbs_lead_a_machine_from_its_creation_to_its_end() -> Result<()> {
    let vmm = Vmm::start()?;
    let pid = vmm.running.pid();
    let ping = vmm.done(&["ping"])?;
    assert!(ping.ends_with(&format!(", process {pid}\n")), "{ping}");
    vmm.boot()?;
    let state = |vmm: &Vmm| -> Result<String> {
        let info = vmm.done(&["info"])?;
        let state = info.lines().next().unwrap_or_default();
        Ok(state.trim_start_matches("state").trim().to_owned())
    };
    assert_eq!(state(&vmm)?, "running");
    for (verb, expected) in [
        ("pause", "paused"),
        ("resume", "running"),
        ("power-button", "running"),
        ("reboot", "running"),
        ("shutdown", "shut down"),
        ("boot", "running"),
    ] {
        assert_eq!(vmm.done(&[verb])?, "", "{verb}");
        assert_eq!(state(&vmm)?, expected, "{verb}");
    }
    assert_eq!(vmm.done(&["delete"])?, "");
    assert!(vmm.refused(&["info"])?.contains("there is none"));
    vmm.end()
}

#[test]
fn devices_of_a_running_machine_are_added_resized_and_removed() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot()?;
    let disk = format!("path={},id=data", vmm.files.path().display());
    let added = vmm.done(&["add-disk", &disk])?;
    let bdf = added
        .strip_prefix("data 0000:00:")
        .with_context(|| added.clone())?;
    assert!(vmm.done(&["info"])?.contains(bdf.trim_end()));
    assert_eq!(
        vmm.done(&["resize-disk", "--disk", "data", "--size", "2M"])?,
        ""
    );
    assert_eq!(fs::metadata(vmm.files.path())?.len(), 2 << 20);
    let counters = vmm.done(&["counters", "--json"])?;
    let counters: Value = serde_json::from_str(&counters)?;
    assert_eq!(counters["data"]["read_ops"], 0, "{counters}");
    assert!(vmm.done(&["metrics"])?.ends_with("# EOF\n"));
    assert_eq!(vmm.done(&["remove-device", "data"])?, "");
    vmm.end()
}

#[test]
fn descriptors_are_passed_for_the_kernel_and_for_disks() -> Result<()> {
    let vmm = Vmm::start()?;
    let mut machine = vmm.machine();
    machine["disks"] = json!([{"id": "root"}]);
    let opened = format!(
        "3<'{}' 4<>'{}'",
        vmm.file("kernel").display(),
        vmm.files.path().display()
    );
    let create = ["create", "--fd", "kernel=3", "--fd", "root=4"];
    let output = vmm.ctl(&create, &opened, &machine.to_string())?;
    assert_eq!(succeeded(&create, output)?, "");
    assert_eq!(vmm.done(&["boot"])?, "");
    vmm.wait_for_guest()?;

    let plugged = Disk::new(1 << 20)?;
    let opened = format!("7<>'{}'", plugged.path().display());
    let add = ["add-disk", "fd=7,id=plugged", "--json"];
    let added: Value = serde_json::from_str(&succeeded(&add, vmm.ctl(&add, &opened, "")?)?)?;
    assert_eq!(added["id"], "plugged");
    // What was passed is that file.
    vmm.done(&["resize-disk", "--disk", "plugged", "--size", "2M"])?;
    assert_eq!(fs::metadata(plugged.path())?.len(), 2 << 20);
    vmm.end()
}

#[test]
fn descriptor_of_a_network_arrives() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot()?;
    let output = vmm.ctl(&["add-net", "fd=5,id=lan"], "5</dev/null", "")?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = String::from_utf8(output.stderr)?;
    assert!(message.contains("tap"), "{message}");
    vmm.end()
}

#[test]
fn refusals_are_told_line_by_line() -> Result<()> {
    let vmm = Vmm::start()?;
    assert_eq!(
        vmm.refused(&["boot"])?,
        "podvisor: vm.boot needs a VM, and there is none: create one first (vm.create)\n"
    );
    let unsupported = vmm.refused(&["add-pmem", "file=/home/image"])?;
    assert!(
        unsupported.contains("vm.add-pmem is not supported"),
        "{unsupported}"
    );
    vmm.boot()?;
    let nowhere = vmm.refused(&["add-disk", "path=/no/such/disk"])?;
    assert!(nowhere.lines().count() > 1, "{nowhere}");
    assert!(
        nowhere.lines().all(|line| line.starts_with("podvisor: ")),
        "{nowhere}"
    );
    assert!(nowhere.contains("/no/such/disk"), "{nowhere}");
    vmm.end()
}

#[test]
fn events_are_told_until_the_vmm_ends() -> Result<()> {
    let vmm = Vmm::start()?;
    let heard = vmm.file("heard");
    let listener = vmm.spawn(&["events"], &format!(">'{}'", heard.display()))?;
    // The listener does not say from when on it hears.
    eventually("an event", || {
        vmm.boot()?;
        vmm.done(&["delete"])?;
        Ok(fs::read_to_string(&heard)?.contains(" vm deleted\n"))
    })?;
    vmm.end()?;
    let output = listener.wait_with_output()?;
    assert!(output.status.success(), "{output:?}");
    Ok(())
}
