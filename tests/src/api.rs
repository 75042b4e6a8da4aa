//! The REST API of a VMM under test, called with curl: a client that is not ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longer than any call takes; one that takes longer hangs.
const LIMIT: &str = "120";

/// A socket of the API.
pub struct Api {
    socket: PathBuf,
}

/// What a call answered.
#[derive(Debug)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// The body; null when there is none.
    pub body: Value,
}

impl Api {
    /// The API at `socket`, which need not be there yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the API answers.
    pub fn wait(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            match self.get("vmm.ping") {
                Ok(response) if response.status == 200 => return Ok(()),
                result if Instant::now() > until => {
                    bail!("the API does not answer: {result:?}")
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// GET of `verb`.
    pub fn get(&self, verb: &str) -> Result<Response> {
        self.call("GET", verb, None)
    }

    /// PUT of `verb` without a body.
    pub fn put(&self, verb: &str) -> Result<Response> {
        self.call("PUT", verb, None)
    }

    /// PUT of `verb` with `body`.
    pub fn put_json(&self, verb: &str, body: &Value) -> Result<Response> {
        self.call("PUT", verb, Some(body))
    }

    /// PUT of `verb`, which has to succeed; gives the body.
    pub fn done(&self, verb: &str, body: Option<&Value>) -> Result<Value> {
        let response = self.call("PUT", verb, body)?;
        ensure!(
            response.status == 200 || response.status == 204,
            "{verb} {body:?} answers {response:?}"
        );
        Ok(response.body)
    }

    /// The state that `vm.info` tells.
    pub fn state(&self) -> Result<String> {
        let response = self.get("vm.info")?;
        let state = response.body["state"].as_str();
        Ok(state.with_context(|| format!("{response:?}"))?.to_owned())
    }

    fn call(&self, method: &str, verb: &str, body: Option<&Value>) -> Result<Response> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", LIMIT])
            .arg("--unix-socket")
            .arg(&self.socket)
            .args(["--request", method, "--write-out", "\n%{http_code}"])
            .arg(format!("http://localhost/api/v1/{verb}"));
        if let Some(body) = body {
            curl.args(["--header", "Content-Type: application/json"])
                .args(["--data", &body.to_string()]);
        }
        let output = curl
            .output()
            .context("this test needs: apt-get install curl")?;
        ensure!(
            output.status.success(),
            "curl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout)?;
        let (body, status) = text.rsplit_once('\n').context("curl's output")?;
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(body).with_context(|| format!("{verb} answers {body:?}"))?
        };
        Ok(Response {
            status: status.parse()?,
            body,
        })
    }
}
