//! `/metrics`, read by Prometheus' own tool and by its client library for Python.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tests::{Disk, assets};

use super::halted;

/// The parser is one that refuses whatever OpenMetrics does not allow.
const PARSE: &str = "\
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
print(*sorted(family.name for family in parse(sys.stdin.read())), sep='\\n')";

/// Headers and body of `/metrics`, asked for as `accept`.
fn scrape(socket: &Path, accept: &[&str]) -> Result<(String, String)> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--include"])
        .arg("--unix-socket")
        .arg(socket)
        .args(accept)
        .arg("http://localhost/metrics")
        .output()
        .context("this test needs: apt-get install curl")?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// What `command` prints of `input`; all of it, when it fails.
fn filter(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && errors.is_empty(),
        "{command:?}: {}\n{errors}\n{input}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics_of_a_running_machine() -> Result<()> {
    let disk = Disk::new(1 << 20)?;
    let path = disk.path();
    let guest = halted(&["--disk", &format!("id=root,path={}", path.display())])?;
    let api = guest.api()?;
    let (head, body) = scrape(api.socket(), &["--header", "Accept: text/plain"])?;
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    let mut promtool = Command::new(assets::promtool()?);
    filter(promtool.args(["check", "metrics"]), &body)?;
    for name in [
        "podvisor_vcpu_exits_total",
        "podvisor_disk_read_bytes_total{id=\"root\"}",
    ] {
        assert!(body.contains(name), "{name}\n{body}");
    }
    Ok(())
}

#[test]
fn metrics_are_openmetrics_unless_something_else_is_asked_for() -> Result<()> {
    let guest = halted(&[])?;
    let api = guest.api()?;
    let (head, body) = scrape(api.socket(), &[])?;
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.contains(kind), "{head}");
    assert!(body.ends_with("\n# EOF\n"), "{body}");
    let mut python = Command::new(assets::python()?);
    let families = filter(python.args(["-c", PARSE]), &body)?;
    for family in [
        "podvisor_vcpu_exits",
        "podvisor_api_request_duration_seconds",
    ] {
        assert!(families.lines().any(|line| line == family), "{families}");
    }
    Ok(())
}
