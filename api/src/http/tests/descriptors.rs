//! Descriptors beside requests.

use std::fs::File;
use std::io::{IoSlice, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::super::limits::MAX_DESCRIPTORS;
use super::*;

const CREATE: &str = "PUT /api/v1/vm.create";
const ADD_DISK: &str = "PUT /api/v1/vm.add-disk";
const ADD_NET: &str = "PUT /api/v1/vm.add-net";
const PING: &str = "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n";

fn files<const N: usize>() -> [File; N] {
    std::array::from_fn(|_| tempfile::tempfile().unwrap())
}

fn borrowed(files: &[File]) -> Vec<BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}

fn send_with(wire: &Wire, bytes: impl AsRef<[u8]>, descriptors: &[BorrowedFd<'_>]) {
    let bytes = bytes.as_ref();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent = sendmsg(
        wire.0.get_ref(),
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent.unwrap(), bytes.len());
}

fn request(line: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "{line} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Fixture {
    /// A request whose descriptors come with its first byte.
    fn pass(&self, line: &str, body: &Value, files: &[File]) -> Raw {
        let mut wire = self.connect();
        send_with(&wire, request(line, body), &borrowed(files));
        wire.receive().unwrap()
    }

    /// Whether what the VMM took under `id` are `files`.
    fn assert_taken(&self, id: &str, files: &[&File]) {
        let seen = self.fake.seen();
        let inode = |file: &File| file.metadata().unwrap().ino();
        let taken = seen.descriptors.get(id).map_or(&[][..], Vec::as_slice);
        let taken: Vec<_> = taken
            .iter()
            .map(|taken| inode(&File::from(taken.try_clone().unwrap())))
            .collect();
        let given: Vec<_> = files.iter().map(|file| inode(file)).collect();
        assert_eq!(taken, given, "{id}");
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn message(raw: &Raw) -> String {
    assert_eq!(raw.status, 400, "{raw:?}");
    let messages: Vec<String> = serde_json::from_str(&raw.body).unwrap();
    messages[0].clone()
}

#[test]
fn machine_takes_its_descriptors_by_id_and_index() {
    let fixture = Fixture::new();
    let files = files::<4>();
    let body = json!({
        "payload": {"cmdline": "quiet"},
        "disks": [{"id": "root"}, {"path": "/b"}],
        "net": [{}],
        "fds": {"kernel": [0], "initramfs": [2], "root": [1], "_net1": [3]},
    });
    let raw = fixture.pass(CREATE, &body, &files);
    assert_eq!(raw.status, 204, "{raw:?}");
    fixture.assert_taken("kernel", &[&files[0]]);
    fixture.assert_taken("root", &[&files[1]]);
    fixture.assert_taken("initramfs", &[&files[2]]);
    fixture.assert_taken("_net1", &[&files[3]]);
    let info = fixture.call(Method::Get, "vm.info");
    assert!(!info.body.contains("fds"), "{info:?}");
}

#[test]
fn misuse_of_descriptors_is_refused_by_field() {
    let fixture = Fixture::new();
    let files = files::<2>();
    let kernel = json!({"kernel": "/k"});
    let refused = |body: Value| message(&fixture.pass(CREATE, &body, &files));
    insta::assert_snapshot!(refused(json!({"fds": {"kernel": [2]}})),
        @"bad value 2 for fds.kernel[0]: expected an index below 2, as so many descriptors came");
    insta::assert_snapshot!(refused(json!({"disks": [{"id": "a"}], "fds": {"kernel": [0], "a": [0]}})),
        @"bad value 0 for fds.kernel[0]: expected each descriptor to be named once");
    insta::assert_snapshot!(refused(json!({"fds": {"kernel": [1, 1]}})),
        @"bad value 1 for fds.kernel[1]: expected each descriptor to be named once");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "fds": {"nobody": [0]}})),
        @r#"bad value "nobody" for fds.nobody: expected the id of a disk or a network, kernel or initramfs"#);
    insta::assert_snapshot!(refused(json!({"payload": kernel, "fds": {"_rng0": [0]}})),
        @r#"bad value "_rng0" for fds._rng0: expected the id of a disk or a network, kernel or initramfs"#);
    insta::assert_snapshot!(refused(json!({"payload": kernel, "disks": [{"id": "a", "path": "/a"}], "fds": {"a": [0]}})),
        @r#"bad value "/a" for disks[0].path: expected either a path or a descriptor, not both"#);
    insta::assert_snapshot!(refused(json!({"payload": kernel, "disks": [{"id": "a"}]})),
        @"disks[0].path is missing: expected the path of an image file or a block device");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "fds": {"kernel": [0]}})),
        @r#"bad value "/k" for payload.kernel: expected either a path or a descriptor, not both"#);
    insta::assert_snapshot!(refused(json!({"payload": {"initramfs": "/i"}, "fds": {"kernel": [0], "initramfs": [1]}})),
        @r#"bad value "/i" for payload.initramfs: expected either a path or a descriptor, not both"#);
    insta::assert_snapshot!(refused(json!({"fds": {"kernel": [0, 1]}})),
        @"bad value of 2 descriptors for payload.kernel: expected one descriptor");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "disks": [{"id": "a"}], "fds": {"a": [0, 1]}})),
        @"bad value of 2 descriptors for disks[0].fds: expected one descriptor");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "net": [{"id": "n", "tap": "t"}], "fds": {"n": [0]}})),
        @r#"bad value "t" for net[0].tap: expected either a tap's name or its descriptor, not both"#);
    insta::assert_snapshot!(refused(json!({"payload": kernel, "net": [{"id": "n"}], "fds": {"n": [0, 1]}})),
        @"bad value of 2 descriptors for net[0].fds: expected one descriptor, as there is one pair of queues");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "net": [{"fds": [7]}]})),
        @r#"bad value [7] for net[0].fds: expected descriptors beside the request (SCM_RIGHTS), named by the machine's fds, as in {"ID": [0]}"#);
    insta::assert_snapshot!(refused(json!({"payload": kernel, "fds": {"kernel": []}})),
        @"bad value [] for fds.kernel: expected one index or more");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "fds": [0]})),
        @"fds: invalid type: sequence, expected a map from ids to lists of indexes at line 1 column 7");
    insta::assert_snapshot!(refused(json!({"payload": kernel, "disks": [{"id": "kernel", "path": "/a"}], "fds": {"kernel": [0]}})),
        @r#"bad value "kernel" for fds.kernel: expected a name of one thing: a device has that id, too"#);
    let twice = r#"{"payload": {"kernel": "/k"}, "fds": {"a": [0], "a": [1]}}"#;
    let raw = fixture.connect().exchange(format!(
        "{CREATE} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{twice}",
        twice.len()
    ));
    assert!(message(&raw).contains("is given more than once"), "{raw:?}");
    let raw = fixture
        .connect()
        .exchange(request(CREATE, &json!({"fds": {"kernel": [0]}})));
    insta::assert_snapshot!(message(&raw),
        @"bad value 0 for fds.kernel[0]: expected descriptors beside the request (SCM_RIGHTS), and none came");
    assert_eq!(fixture.fake.seen().verbs, [""; 0]);
}

#[test]
fn disk_that_is_added_takes_the_descriptor_that_is_named() {
    let fixture = Fixture::new();
    fixture.create();
    let files = files::<2>();
    for (body, id, index) in [
        (json!({"id": "a", "fds": {"a": [1]}}), "a", 1),
        (json!({"id": "b", "fds": [0]}), "b", 0),
        (json!({"fds": [1]}), "_disk9", 1),
    ] {
        let raw = fixture.pass(ADD_DISK, &body, &files);
        assert_eq!(raw.status, 204, "{body}: {raw:?}");
        fixture.assert_taken(id, &[&files[index]]);
    }
    let refused = |body: Value| message(&fixture.pass(ADD_DISK, &body, &files));
    insta::assert_snapshot!(refused(json!({"id": "a"})),
        @"path is missing: expected the path of an image file or a block device");
    insta::assert_snapshot!(refused(json!({"path": "/a", "fds": [0]})),
        @r#"bad value "/a" for path: expected either a path or a descriptor, not both"#);
    insta::assert_snapshot!(refused(json!({"fds": [0, 1]})),
        @"bad value of 2 descriptors for fds: expected one descriptor");
    insta::assert_snapshot!(refused(json!({"fds": [-1]})),
        @"bad value [-1] for fds: expected indexes, which begin at 0");
    insta::assert_snapshot!(refused(json!({"fds": [2]})),
        @"bad value 2 for fds[0]: expected an index below 2, as so many descriptors came");
    insta::assert_snapshot!(refused(json!({"id": "a", "fds": {"b": [0]}})),
        @r#"bad value [0] for fds.b: expected the id of the device, "a""#);
    insta::assert_snapshot!(refused(json!({"fds": {"b": [0]}})),
        @"bad value [0] for fds.b: expected the device to have that id, and it has none");
    insta::assert_snapshot!(refused(json!({"fds": "x"})),
        @"fds: expected a list of numbers, or a map from the device's id to one at line 1 column 11");
}

#[test]
fn net_that_is_added_takes_all_descriptors_as_in_cloud_hypervisor() {
    let fixture = Fixture::new();
    fixture.create();
    let files = files::<2>();
    for (body, id, index) in [
        (json!({"id": "a"}), "a", 0),
        (json!({"id": "b", "fds": null}), "b", 0),
        // The number that it has in the client, or none.
        (json!({"id": "c", "fds": [17]}), "c", 0),
        (json!({"id": "d", "fds": [-1]}), "d", 0),
        (json!({}), "_net9", 0),
    ] {
        let raw = fixture.pass(ADD_NET, &body, &files[..1]);
        assert_eq!(raw.status, 204, "{body}: {raw:?}");
        fixture.assert_taken(id, &[&files[index]]);
    }
    let raw = fixture.pass(ADD_NET, &json!({"id": "e", "fds": {"e": [1]}}), &files);
    assert_eq!(raw.status, 204, "{raw:?}");
    fixture.assert_taken("e", &[&files[1]]);
    let refused =
        |body: Value, count: usize| message(&fixture.pass(ADD_NET, &body, &files[..count]));
    insta::assert_snapshot!(refused(json!({}), 2),
        @"bad value of 2 descriptors for fds: expected one descriptor, as there is one pair of queues");
    insta::assert_snapshot!(refused(json!({"fds": [3, 4]}), 1),
        @"bad value [3, 4] for fds: expected as many as came beside the request (SCM_RIGHTS), 1");
    insta::assert_snapshot!(refused(json!({"tap": "t"}), 1),
        @r#"bad value "t" for tap: expected either a tap's name or its descriptor, not both"#);
    insta::assert_snapshot!(refused(json!({"ip": "10.0.0.1", "mask": "255.0.0.0"}), 1),
        @"bad value 10.0.0.1 for ip: expected no ip beside it: who opened the tap gives it its address");
}

#[test]
fn descriptors_may_come_with_any_byte_of_their_request() {
    let fixture = Fixture::new();
    let files = files::<3>();
    let body = json!({
        "disks": [{"id": "a"}, {"id": "b"}],
        "fds": {"kernel": [0], "a": [1], "b": [2]},
    });
    let text = request(CREATE, &body);
    let (head, body) = text.split_at(text.find("{").unwrap());
    let mut wire = fixture.connect();
    send_with(&wire, &head[..10], &borrowed(&files[..1]));
    wire.send(&head[10..]);
    send_with(&wire, &body[..5], &borrowed(&files[1..2]));
    send_with(&wire, &body[5..], &borrowed(&files[2..]));
    let raw = wire.receive().unwrap();
    assert_eq!(raw.status, 204, "{raw:?}");
    fixture.assert_taken("kernel", &[&files[0]]);
    fixture.assert_taken("a", &[&files[1]]);
    fixture.assert_taken("b", &[&files[2]]);
}

#[test]
fn descriptors_belong_to_their_own_request_among_pipelined_ones() {
    let fixture = Fixture::new();
    fixture.create();
    let files = files::<2>();
    let mut wire = fixture.connect();
    // A network without a descriptor must not take the next one's.
    wire.send(request(ADD_NET, &json!({"id": "a"})));
    send_with(
        &wire,
        request(ADD_NET, &json!({"id": "b"})),
        &borrowed(&files[..1]),
    );
    wire.send(PING);
    send_with(
        &wire,
        request(ADD_DISK, &json!({"id": "c", "fds": [0]})),
        &borrowed(&files[1..]),
    );
    let statuses = [0; 4].map(|_| wire.receive().unwrap().status);
    assert_eq!(statuses, [204, 204, 200, 204]);
    fixture.assert_taken("a", &[]);
    fixture.assert_taken("b", &[&files[0]]);
    fixture.assert_taken("c", &[&files[1]]);
}

/// A pipe whose other end is at its end when nobody has the writer any more.
fn pipe_passed(pass: impl FnOnce(BorrowedFd<'_>)) -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    pass(writer.as_fd());
    reader
}

fn assert_closed(mut reader: PipeReader) {
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn descriptors_that_nobody_names_are_closed() {
    let fixture = Fixture::new();
    for text in [
        PING.to_owned(),
        "GET /nowhere HTTP/1.1\r\n\r\n".to_owned(),
        "PUT /api/v1/vm.info HTTP/1.1\r\n\r\n".to_owned(),
        request("PUT /api/v1/vm.add-pmem", &json!({})),
        request(CREATE, &json!({"payload": {"kernel": "/k"}})),
        request(CREATE, &json!({"fds": {"kernel": [1]}})),
        request(ADD_DISK, &json!({"path": "/a"})),
        request("PUT /api/v1/vm.boot", &json!(3)),
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n".to_owned(),
        "no request at all\r\n\r\n".to_owned(),
    ] {
        let mut wire = fixture.connect();
        assert_closed(pipe_passed(|writer| {
            send_with(&wire, &text, &[writer]);
            wire.receive().unwrap();
        }));
    }
    // Of a request that never ends.
    let wire = fixture.connect();
    assert_closed(pipe_passed(|writer| {
        send_with(&wire, "PUT /api", &[writer]);
        drop(wire);
    }));
}

#[test]
fn descriptors_beyond_the_limit_are_closed_and_refused() {
    let fixture = Fixture::new();
    let file = tempfile::tempfile().unwrap();
    let mut wire = fixture.connect();
    let text = request(CREATE, &json!({"fds": {"kernel": [0]}}));
    let reader = pipe_passed(|writer| {
        send_with(&wire, &text[..1], &vec![file.as_fd(); MAX_DESCRIPTORS]);
        send_with(&wire, &text[1..], &[writer; 253]);
        let raw = wire.receive().unwrap();
        assert_eq!(
            message(&raw),
            "bad value of 317 descriptors for fds: expected at most 64"
        );
    });
    assert_closed(reader);
}

#[test]
fn nothing_is_left_open_after_all() {
    let before = open_descriptors();
    {
        let fixture = Fixture::new();
        let files = files::<3>();
        fixture.pass(CREATE, &json!({"fds": {"kernel": [0]}}), &files);
        fixture.pass(ADD_NET, &json!({"id": "n"}), &files[..1]);
        fixture.pass(ADD_NET, &json!({"id": "n"}), &files);
        fixture.pass(CREATE, &json!({"fds": {"kernel": [9]}}), &files);
        let wire = fixture.connect();
        send_with(&wire, "PUT /api/v1", &borrowed(&files));
    }
    assert_eq!(open_descriptors(), before);
}
