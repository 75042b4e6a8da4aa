//! Tests of the server through its socket, as any client sees it.

mod called;
mod descriptors;
mod document;
mod fake;
mod limits;
mod measured;
mod paths;
mod stop;
mod time;
mod walk;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::client::{Client, Method, Response};
use crate::metrics::Metrics;
use crate::request::VmState;
use fake::Fake;

/// A server on a socket of its own, with a fake VMM behind it.
struct Fixture {
    server: Server,
    fake: Arc<Fake>,
    events: Events,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with_metrics(Metrics::default())
    }

    fn with_metrics(metrics: Metrics) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let fake = Fake::start(metrics);
        let events = Events::new(std::time::Instant::now());
        let service = Arc::clone(&fake) as Arc<dyn Service>;
        Self {
            server: Server::start(listener, service, events.clone()).unwrap(),
            fake,
            events,
            path,
            _folder: folder,
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.path)
    }

    fn connect(&self) -> Wire {
        Wire(BufReader::new(UnixStream::connect(&self.path).unwrap()))
    }

    fn put(&self, verb: &str, body: Value) -> Response {
        self.client()
            .call(Method::Put, verb, Some(&body), &[])
            .unwrap()
    }

    /// A call without a body.
    fn call(&self, method: Method, verb: &str) -> Response {
        self.client().call(method, verb, None, &[]).unwrap()
    }

    fn create(&self) {
        let response = self.put("vm.create", json!({"payload": {"kernel": "/k"}}));
        assert_eq!(response.status, 204, "{response:?}");
    }
}

/// The messages of a response that must say no with `status`.
fn refusal(response: &Response, status: u16) -> Vec<String> {
    assert_eq!(response.status, status, "{response:?}");
    serde_json::from_str(&response.body).unwrap()
}

/// A connection, byte by byte.
struct Wire(BufReader<UnixStream>);

/// A response as it came.
#[derive(Debug)]
struct Raw {
    status: u16,
    head: String,
    body: String,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Wire {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// The next response; `None` at the end of the connection.
    fn receive(&mut self) -> Option<Raw> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).unwrap() == 0 {
                assert_eq!(head, "");
                return None;
            }
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut raw = Raw {
            status,
            head,
            body: String::new(),
        };
        let length = raw
            .header("Content-Length")
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        raw.body = String::from_utf8(body).unwrap();
        Some(raw)
    }

    fn exchange(&mut self, request: impl AsRef<[u8]>) -> Raw {
        self.send(request);
        self.receive().unwrap()
    }
}
