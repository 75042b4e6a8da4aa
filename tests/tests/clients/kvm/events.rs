//! What happens to a machine, read from `--event-monitor` and from `vm.events`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Deserializer, Value};
use tests::api::Api;
use tests::tiny::Program;
use tests::{Disk, Guest, Running};

use super::halted;

/// The events of a machine's whole life, in their order.
const LIFE: [&str; 10] = [
    "vmm starting",
    "vm booting",
    "vm booted",
    "vm pausing",
    "vm paused",
    "vm resuming",
    "vm resumed",
    "vm shutdown",
    "vm deleted",
    "vmm shutdown",
];

fn live(guest: Running) -> Result<()> {
    let api = guest.api()?;
    for verb in ["vm.pause", "vm.resume", "vm.delete", "vmm.shutdown"] {
        api.done(verb, None)?;
    }
    guest.wait()?.expect_status(0)?;
    Ok(())
}

/// The events of a file. Each is JSON, and an empty line ends it.
fn events(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file)?;
    let values = Deserializer::from_str(&text).into_iter::<Value>();
    let values: Vec<Value> = values.collect::<Result<_, _>>()?;
    let parts: Vec<&str> = text.split_terminator("\n\n").collect();
    ensure!(
        text.ends_with("\n\n") && parts.len() == values.len(),
        "{text:?}"
    );
    let mut before = 0;
    for value in &values {
        let nanos = nanos(value).with_context(|| format!("no time: {value}"))?;
        ensure!(before <= nanos, "time goes backwards: {text}");
        before = nanos;
    }
    Ok(values.iter().map(name).collect())
}

/// The time of an event whose members are those that Cloud Hypervisor's have.
fn nanos(event: &Value) -> Option<u64> {
    let members = event.as_object()?;
    let properties = &members["properties"];
    let known = members.len() == 4 && (properties.is_null() || properties.is_object());
    let time = &members.get("timestamp").filter(|_| known)?;
    Some(time["secs"].as_u64()? * 1_000_000_000 + time["nanos"].as_u64()?)
}

fn name(event: &Value) -> String {
    let word = |member: &str| event[member].as_str().unwrap_or("?").to_owned();
    format!("{} {}", word("source"), word("event"))
}

#[test]
fn life_of_a_machine_is_written_to_a_file() -> Result<()> {
    let files = Disk::new(0)?;
    let file = files.dir().join("events");
    live(halted(&[
        "--event-monitor",
        &format!("path={}", file.display()),
    ])?)?;
    assert_eq!(events(&file)?, LIFE);
    Ok(())
}

#[test]
fn life_of_a_machine_is_written_to_a_descriptor() -> Result<()> {
    let files = Disk::new(0)?;
    let file = files.dir().join("events");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "file=$1; shift; exec \"$@\" 7>\"$file\"", "sh"])
        .arg(&file);
    let guest = Guest::new()
        .wrapped(shell)
        .program(Program::new().print("up\n"))
        .args(&["--event-monitor", "fd=7"])
        .api()
        .start()?;
    guest.wait_for("up\n")?;
    live(guest)?;
    assert_eq!(events(&file)?, LIFE);
    Ok(())
}

/// `curl -N` on `vm.events`, once the server has answered it.
struct Listener {
    curl: Child,
    lines: Box<dyn Iterator<Item = std::io::Result<String>>>,
}

impl Listener {
    fn connect(api: &Api) -> Result<Self> {
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--include"])
            .args(["--max-time", "120", "--unix-socket"])
            .arg(api.socket())
            .arg("http://localhost/api/v1/vm.events")
            .stdout(Stdio::piped())
            .spawn()
            .context("this test needs: apt-get install curl")?;
        let output = curl.stdout.take().context("standard output is a pipe")?;
        let mut lines = BufReader::new(output).lines();
        let mut is_stream = false;
        for line in lines.by_ref() {
            let line = line?;
            is_stream |= line == "Content-Type: text/event-stream";
            if line.is_empty() {
                break;
            }
        }
        ensure!(is_stream, "this is no stream of events");
        let lines = Box::new(lines);
        Ok(Self { curl, lines })
    }

    /// All events until the stream ends.
    fn listen(mut self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for line in self.lines {
            let line = line?;
            // A comment tells that the stream is alive; an empty line ends an event.
            if line.is_empty() || line.starts_with(':') {
                continue;
            }
            let data = line.strip_prefix("data: ");
            let event: Value = serde_json::from_str(data.with_context(|| line.clone())?)?;
            nanos(&event).with_context(|| format!("no time: {event}"))?;
            names.push(name(&event));
        }
        let status = self.curl.wait()?;
        ensure!(status.success(), "curl ends with {status}");
        Ok(names)
    }
}

#[test]
fn listeners_hear_of_all_that_happens_after_they_came() -> Result<()> {
    let guest = halted(&[])?;
    let api = guest.api()?;
    let first = Listener::connect(&api)?;
    api.done("vm.pause", None)?;
    let second = Listener::connect(&api)?;
    api.done("vm.resume", None)?;
    api.done("vm.delete", None)?;
    api.done("vmm.shutdown", None)?;
    assert_eq!(first.listen()?, LIFE[3..]);
    assert_eq!(second.listen()?, LIFE[5..]);
    guest.wait()?.expect_status(0)?;
    Ok(())
}
