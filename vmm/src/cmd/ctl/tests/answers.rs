//! What becomes of answers, which a server of one answer says.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use super::*;

/// A VMM of one answer.
struct Vmm {
    client: Client,
    thread: JoinHandle<()>,
    _files: tempfile::TempDir,
}

impl Vmm {
    fn answering(status: &str, body: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
            // What is left of the request is taken, too: an answer to a closed connection could be lost.
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        Self {
            client: Client::new(path),
            thread,
            _files: files,
        }
    }

    /// What `words` print.
    fn prints(self, words: &[&str]) -> Result<String, Failure> {
        let args = parse(words).unwrap();
        let mut output = Vec::new();
        let result = args
            .verb
            .into_call()?
            .make(&self.client, args.json, &mut output);
        self.thread.join().unwrap();
        result.map(|()| String::from_utf8(output).unwrap())
    }
}

const INFO: &str = r#"{
    "config": {
        "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
        "memory": {"size": 1073741824},
        "payload": {"kernel": "/boot/vmlinuz", "cmdline": "console=ttyS0"},
        "disks": [{"path": "/var/lib/root.img", "readonly": true, "id": "root"}, {"id": "passed"}],
        "net": [{"tap": "tap0", "mac": "52:54:00:12:34:56", "id": "_net1"}],
        "rng": {"src": "/dev/urandom", "id": "_rng2"},
        "serial": {"mode": "File", "file": "/tmp/log"}
    },
    "state": "Running",
    "memory_actual_size": 1073741824,
    "device_tree": {"root": {"id": "root", "resources": [], "children": [], "pci_bdf": "0000:00:01.0"}}
}"#;

#[test]
fn machine_is_a_short_table() {
    let text = Vmm::answering("200 OK", INFO).prints(&["info"]).unwrap();
    let expected = "\
state    running
cpus     2, at most 4
memory   1G
kernel   /boot/vmlinuz
cmdline  console=ttyS0
serial   file /tmp/log

id      device  bdf           backed by
root    disk    0000:00:01.0  /var/lib/root.img, read-only
passed  disk    -             a passed descriptor
_net1   net     -             tap tap0, mac 52:54:00:12:34:56
_rng2   rng     -             /dev/urandom
";
    assert_eq!(text, expected);
}

#[test]
fn counters_are_a_table() {
    let counters = r#"{"root": {"read_bytes": 4096, "read_ops": 1}, "_net1": {"rx_bytes": 60}}"#;
    let text = Vmm::answering("200 OK", counters)
        .prints(&["counters"])
        .unwrap();
    let expected = "\
id     counter     value
_net1  rx_bytes       60
root   read_bytes   4096
root   read_ops        1
";
    assert_eq!(text, expected);
}

#[test]
fn other_answers_are_a_line() {
    let ping = r#"{"build_version": "v1.2.3", "version": "1.2.3", "pid": 7, "features": []}"#;
    let text = Vmm::answering("200 OK", ping).prints(&["ping"]).unwrap();
    assert_eq!(text, "v1.2.3, process 7\n");
    let device = r#"{"id": "data", "bdf": "0000:00:05.0"}"#;
    let text = Vmm::answering("200 OK", device)
        .prints(&["add-disk", "path=/d"])
        .unwrap();
    assert_eq!(text, "data 0000:00:05.0\n");
}

#[test]
fn json_is_what_the_vmm_says() {
    for (words, body) in [(&["info", "--json"], INFO), (&["--json", "counters"], "{}")] {
        let text = Vmm::answering("200 OK", body).prints(words).unwrap();
        assert_eq!(text, format!("{body}\n"));
    }
}

#[test]
fn success_without_a_body_prints_nothing() {
    for words in [
        &["boot"][..],
        &["add-disk", "path=/d"],
        &["--json", "pause"],
    ] {
        let text = Vmm::answering("204 No Content", "").prints(words).unwrap();
        assert_eq!(text, "");
    }
}

#[test]
fn events_are_a_line_each_until_the_vmm_ends() {
    let stream = ":\n\ndata: {\"timestamp\": {\"secs\": 1, \"nanos\": 5000}, \"source\": \"vm\", \"event\": \
                  \"device-added\", \"properties\": {\"id\": \"data\"}}\n\n";
    let text = Vmm::answering("200 OK", stream)
        .prints(&["events"])
        .unwrap();
    assert_eq!(text, "    1.000005 vm device-added id=data\n");
    let text = Vmm::answering("200 OK", stream)
        .prints(&["events", "--json"])
        .unwrap();
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(event["properties"], json!({"id": "data"}));
}

fn told(failure: Failure) -> Vec<String> {
    match failure {
        Failure::Call(error) => lines(&error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusal_is_told_in_the_words_of_the_vmm() {
    let body = r#"["vm.boot failed", "no such kernel"]"#;
    let failure = Vmm::answering("500 Internal Server Error", body)
        .prints(&["boot", "--json"])
        .unwrap_err();
    assert_eq!(told(failure), ["vm.boot failed", "no such kernel"]);
}

#[test]
fn socket_without_a_vmm_is_named() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("api");
    let ping = || {
        let client = Client::new(&path);
        told(
            call(&["ping"])
                .make(&client, false, &mut Vec::new())
                .unwrap_err(),
        )
    };
    let name = format!("--api-socket {}: ", path.display());
    assert_eq!(
        ping(),
        [format!(
            "{name}there is no such socket: no VMM serves its API there"
        )]
    );
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(
        ping(),
        [format!(
            "{name}nobody listens: it is no socket, or its VMM has ended"
        )]
    );
}

#[test]
fn measurements_have_no_json() {
    let call = call(&["metrics"]);
    let failure = call.make(&Client::new("/nowhere"), true, &mut Vec::new());
    assert!(matches!(failure, Err(Failure::Usage(UsageError::NoJson))));
}
