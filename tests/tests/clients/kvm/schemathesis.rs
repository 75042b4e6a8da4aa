//! Thousands of requests that schemathesis makes of the served document, to a VMM in each state.

use std::env;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::api::Api;
use tests::tiny::Program;
use tests::{Running, assets, confined_vmm, eventually};

/// The fewest requests that a state has to stand. All states together stand 5,000.
const REQUESTS: u64 = 1250;
/// How much memory the VMM may have more afterwards, in KiB: what allocators keep.
const GROWTH: u64 = 16 << 10;

/// What a process holds.
#[derive(Debug, PartialEq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(vmm: &Running) -> Result<Self> {
        Ok(Self {
            descriptors: vmm.count("fd")?,
            threads: vmm.count("task")?,
        })
    }
}

/// How many sockets the VMM has: those of connections may still be closing when curl has ended.
fn sockets(vmm: &Running) -> Result<usize> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", vmm.pid()))?;
    // One may be closed meanwhile.
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let names = targets.filter(|target| target.to_string_lossy().starts_with("socket:"));
    Ok(names.count())
}

/// Creates a machine, boots it, and ends it.
fn live_and_die(api: &Api) -> Result<()> {
    api.done(
        "vm.create",
        Some(&json!({
            "payload": {"kernel": "/shared/guest.elf"},
            "disks": [{"path": "/shared/disk.img"}],
            "net": [{}],
        })),
    )?;
    api.done("vm.boot", None)?;
    ensure!(api.state()? == "Running");
    api.done("vm.delete", None)?;
    Ok(())
}

fn stands_all_requests(state: &str) -> Result<()> {
    let python = assets::python()?;
    let (vmm, shared) = confined_vmm()?;
    fs::write(shared.join("guest.elf"), Program::new().print("up\n").elf())?;
    for disk in ["disk.img", "other.img"] {
        let file = File::create(shared.join(disk))?;
        file.set_len(1 << 20)?;
        file.set_permissions(Permissions::from_mode(0o666))?;
    }
    let socket = shared.join("api.sock");
    let api = Api::new(&socket);
    api.wait()?;
    live_and_die(&api)?;
    eventually("only the socket that is listened on is open", || {
        Ok(sockets(&vmm)? == 1)
    })?;
    let held = Held::by(&vmm)?;
    let resident = vmm.resident()?;

    let story = drive(&python, &socket, state);
    let requests = story.with_context(|| format!("the VMM said\n{}", vmm.messages()))?;
    assert!(requests >= REQUESTS, "only {requests} requests");

    // Whatever is there still.
    api.put("vm.delete")?;
    eventually("what the VMM holds is what it held", || {
        Ok(Held::by(&vmm)? == held)
    })?;
    let grown = vmm.resident()?.saturating_sub(resident);
    assert!(grown < GROWTH, "the VMM has {grown} KiB more");
    assert_eq!(api.get("vmm.ping")?.status, 200);
    live_and_die(&api)?;
    api.done("vmm.shutdown", None)?;
    vmm.wait()?.expect_status(0)?;
    Ok(())
}

/// Lets schemathesis make its requests and gives their number.
fn drive(python: &Path, socket: &Path, state: &str) -> Result<u64> {
    let dir = tempfile::tempdir()?;
    let tally = dir.path().join("tally.json");
    let variable = |name: &str, or: &str| env::var(name).unwrap_or_else(|_| or.to_owned());
    let mut command = Command::new(python);
    command
        .arg(assets::ours("schemathesis/drive.py"))
        .arg("--socket")
        .arg(socket)
        .args(["--state", state, "--tally"])
        .arg(&tally)
        .args(["--max-examples", &variable("SCHEMATHESIS_EXAMPLES", "30")])
        .args(["--seed", &variable("SCHEMATHESIS_SEED", "1")])
        .current_dir(dir.path());
    if state != "absent" {
        // A request that has the right form can still not be what this machine can do.
        command.args(["--exclude-checks", "positive_data_acceptance"]);
    }
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "schemathesis, with a VM {state}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let tally: Value = serde_json::from_slice(&fs::read(&tally)?)?;
    println!("{tally}");
    // How often each request was answered by each status.
    let requests = tally["requests"].as_object().context("no requests")?;
    let statuses = requests.values().filter_map(Value::as_object);
    let counts = statuses.flat_map(|statuses| statuses.values());
    Ok(counts.filter_map(Value::as_u64).sum())
}

#[test]
fn vmm_without_a_machine_stands_all_requests() -> Result<()> {
    stands_all_requests("absent")
}

#[test]
fn created_machine_stands_all_requests() -> Result<()> {
    stands_all_requests("created")
}

#[test]
fn running_machine_stands_all_requests() -> Result<()> {
    stands_all_requests("running")
}

#[test]
fn paused_machine_stands_all_requests() -> Result<()> {
    stands_all_requests("paused")
}
