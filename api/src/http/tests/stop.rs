//! How the server ends.

use std::sync::Mutex;
use std::sync::mpsc;

use super::*;
use crate::request::{Answerer, Reply, Request};

const PING: &str = "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n";

/// Hands its requests to the test.
struct Held(Mutex<mpsc::Sender<(Request, Answerer)>>);

impl Service for Held {
    fn post(&self, request: Request, answerer: Answerer) {
        self.0.lock().unwrap().send((request, answerer)).unwrap();
    }
}

struct HeldFixture {
    server: Server,
    posts: mpsc::Receiver<(Request, Answerer)>,
    events: Events,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn held() -> HeldFixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (sender, posts) = mpsc::channel();
    let events = Events::new(std::time::Instant::now());
    let service = Arc::new(Held(Mutex::new(sender)));
    HeldFixture {
        server: Server::start(listener, service, events.clone()).unwrap(),
        posts,
        events,
        path,
        _folder: folder,
    }
}

fn connect(path: &std::path::Path) -> Wire {
    Wire(BufReader::new(UnixStream::connect(path).unwrap()))
}

#[test]
fn request_in_flight_is_answered_before_the_end() {
    let fixture = held();
    let mut wire = connect(&fixture.path);
    wire.send(PING);
    let (_, answerer) = fixture.posts.recv().unwrap();
    let stopping = std::thread::spawn(|| fixture.server.stop());
    answerer(Ok(Reply::Done));
    assert_eq!(wire.receive().unwrap().status, 204);
    assert!(wire.receive().is_none());
    stopping.join().unwrap();
}

#[test]
fn shutdown_of_the_vmm_is_answered() {
    let fixture = held();
    let mut wire = connect(&fixture.path);
    wire.send("PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n");
    let (request, answerer) = fixture.posts.recv().unwrap();
    assert!(matches!(request, Request::ShutdownVmm));
    answerer(Ok(Reply::Done));
    drop(fixture);
    assert_eq!(wire.receive().unwrap().status, 204);
    assert!(wire.receive().is_none());
}

#[test]
fn request_that_nobody_carries_out_any_more_is_told_so() {
    let fixture = held();
    let mut wire = connect(&fixture.path);
    wire.send(PING);
    let post = fixture.posts.recv().unwrap();
    let stopping = std::thread::spawn(|| fixture.server.stop());
    drop(post);
    let raw = wire.receive().unwrap();
    assert_eq!(raw.status, 500);
    assert_eq!(raw.body, r#"["the VMM has ended"]"#);
    stopping.join().unwrap();
}

#[test]
fn requests_that_were_sent_before_the_end_are_answered() {
    let fixture = Fixture::new();
    // Some of these are not accepted yet when the server is told to stop.
    let mut wires: Vec<_> = (0..20)
        .map(|_| {
            let mut wire = fixture.connect();
            wire.send(PING);
            wire
        })
        .collect();
    fixture.server.stop();
    for wire in &mut wires {
        assert_eq!(wire.receive().unwrap().status, 200);
        assert!(wire.receive().is_none());
    }
}

#[test]
fn idle_connections_and_streams_do_not_hold_up_the_end() {
    let fixture = held();
    let mut idle = connect(&fixture.path);
    let mut stream = connect(&fixture.path);
    assert_eq!(
        stream
            .exchange("GET /api/v1/vm.events HTTP/1.1\r\n\r\n")
            .status,
        200
    );
    fixture.events.publish("vmm", "shutdown", &[]);
    fixture.server.stop();
    assert!(idle.receive().is_none());
    let mut text = String::new();
    stream.0.read_to_string(&mut text).unwrap();
    assert!(text.contains(r#""event":"shutdown""#), "{text}");
    // The stream is complete, not broken.
    assert!(text.ends_with("0\r\n\r\n"), "{text}");
}

#[test]
fn nobody_is_served_after_the_end() {
    let fixture = Fixture::new();
    drop(fixture.server);
    assert!(UnixStream::connect(&fixture.path).is_err());
}
