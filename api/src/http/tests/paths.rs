//! Paths, methods, bodies.

use super::super::verbs::{UNSUPPORTED, VERBS};
use super::*;

/// All paths of Cloud Hypervisor's document.
const CLOUD_HYPERVISOR: &[&str] = &[
    "GET vmm.ping",
    "PUT vmm.shutdown",
    "GET vm.info",
    "GET vm.counters",
    "PUT vm.create",
    "PUT vm.delete",
    "PUT vm.boot",
    "PUT vm.pause",
    "PUT vm.resume",
    "PUT vm.shutdown",
    "PUT vm.reboot",
    "PUT vm.power-button",
    "PUT vm.resize",
    "PUT vm.resize-disk",
    "PUT vm.resize-zone",
    "PUT vm.add-device",
    "PUT vm.remove-device",
    "PUT vm.add-disk",
    "PUT vm.add-fs",
    "PUT vm.add-generic-vhost-user",
    "PUT vm.add-pmem",
    "PUT vm.add-net",
    "PUT vm.add-vsock",
    "PUT vm.add-vdpa",
    "PUT vm.add-user-device",
    "PUT vm.snapshot",
    "PUT vm.coredump",
    "PUT vm.nmi",
    "PUT vm.restore",
    "PUT vm.receive-migration",
    "PUT vm.send-migration",
];

/// Those that Cloud Hypervisor does not have.
const OURS: &[&str] = &["PUT vm.set-link", "PUT vm.set-rate-limiter"];

#[test]
fn paths_are_those_of_cloud_hypervisor_and_ours() {
    let supported = VERBS
        .iter()
        .map(|verb| format!("{} {}", verb.method, verb.name));
    let unsupported = UNSUPPORTED.iter().map(|(verb, _)| format!("PUT {verb}"));
    let mut ours: Vec<_> = supported.chain(unsupported).collect();
    let mut theirs = [CLOUD_HYPERVISOR, OURS].concat();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
}

#[test]
fn each_verb_becomes_the_request_of_its_name() {
    let fixture = Fixture::new();
    fixture.create();
    let mut expected = vec!["vm.create"];
    for verb in VERBS {
        let body = match verb.name {
            "vm.create" => json!({"payload": {"kernel": "/k"}}),
            "vm.coredump" => json!({"destination_url": "file:///core"}),
            "vm.resize" => {
                json!({"desired_vcpus": 1, "desired_ram": null, "desired_balloon": null})
            }
            "vm.resize-disk" => json!({"id": "a", "desired_size": 512}),
            "vm.set-link" => json!({"id": "a", "up": true}),
            "vm.set-rate-limiter" => json!({"id": "a"}),
            "vm.add-disk" => json!({"path": "/d"}),
            "vm.add-net" => json!({"tap": "t"}),
            "vm.add-fs" => json!({"tag": "t", "socket": "/s"}),
            "vm.add-vsock" => json!({"cid": 3, "socket": "/s"}),
            "vm.remove-device" => json!({"id": "a"}),
            _ => Value::Null,
        };
        let method = if verb.method == "GET" {
            Method::Get
        } else {
            Method::Put
        };
        let body = (!body.is_null()).then_some(&body);
        let response = fixture.client().call(method, verb.name, body, &[]).unwrap();
        assert!(
            matches!(response.status, 200 | 204 | 404 | 405 | 409),
            "{}: {response:?}",
            verb.name
        );
        expected.push(verb.name);
    }
    assert_eq!(fixture.fake.seen().verbs, expected);
}

#[test]
fn answers_have_the_codes_and_bodies_of_cloud_hypervisor() {
    let fixture = Fixture::new();
    let ping = fixture.call(Method::Get, "vmm.ping");
    assert_eq!(ping.status, 200);
    assert_eq!(
        ping.body,
        r#"{"build_version":"v1","version":"1","pid":1,"features":[]}"#
    );
    fixture.create();
    let added = fixture.put("vm.add-disk", json!({"path": "/d"}));
    assert_eq!((added.status, added.body.as_str()), (204, ""));
    let booted = fixture.call(Method::Put, "vm.boot");
    assert_eq!((booted.status, booted.body.as_str()), (204, ""));
    let added = fixture.put("vm.add-disk", json!({"path": "/d", "id": "d"}));
    assert_eq!(added.status, 200);
    assert_eq!(added.body, r#"{"id":"d","bdf":"0000:00:05.0"}"#);
    assert_eq!(fixture.client().info().unwrap().state, VmState::Running);
}

#[test]
fn refusals_are_lists_of_messages() {
    let fixture = Fixture::new();
    let response = fixture.call(Method::Put, "vm.boot");
    assert_eq!(
        refusal(&response, 404),
        ["vm.boot needs a VM, and there is none: create one first (vm.create)"]
    );
    fixture.create();
    let response = fixture.call(Method::Put, "vm.resume");
    assert_eq!(
        refusal(&response, 405),
        ["vm.resume is not possible while the VM is created, expected another state"]
    );
    let response = fixture.put("vm.create", json!({"payload": {"kernel": "/k"}}));
    assert_eq!(refusal(&response, 409).len(), 1);
}

#[test]
fn verbs_without_their_device_say_so() {
    let fixture = Fixture::new();
    for &(verb, reason) in UNSUPPORTED {
        let response = fixture.put(verb, json!({"id": "x", "socket": "/s"}));
        assert_eq!(
            refusal(&response, 501),
            [format!("{verb} is not supported: {reason}")]
        );
        assert_eq!(fixture.call(Method::Put, verb).status, 501);
    }
    assert_eq!(fixture.fake.seen().verbs, [""; 0]);
}

#[test]
fn unknown_path_is_not_found() {
    let fixture = Fixture::new();
    let response = fixture.call(Method::Put, "vm.explode");
    insta::assert_debug_snapshot!(refusal(&response, 404), @r#"
    [
        "nothing is at \"/api/v1/vm.explode\": the paths are /api/v1/VERB, as in /api/v1/vmm.ping",
    ]
    "#);
    let mut wire = fixture.connect();
    for target in [
        "/",
        "/api/v1",
        "/api/v1/",
        "//api/v1/vm.info",
        "/api/v1/vm.info/x",
        "/api/v2/vm.info",
    ] {
        let raw = wire.exchange(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(raw.status, 404, "{target}");
    }
}

#[test]
fn wrong_method_is_told_the_right_one() {
    let fixture = Fixture::new();
    let mut wire = fixture.connect();
    for (method, target, allow) in [
        ("PUT", "/api/v1/vm.info", "GET,HEAD"),
        ("GET", "/api/v1/vm.boot", "PUT"),
        ("POST", "/api/v1/vm.create", "PUT"),
        ("DELETE", "/api/v1/vm.add-fs", "PUT"),
        ("PATCH", "/metrics", "GET,HEAD"),
        ("PUT", "/api/v1/vm.events", "GET,HEAD"),
    ] {
        let raw = wire.exchange(format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ));
        assert_eq!(raw.status, 405, "{method} {target}");
        assert_eq!(raw.header("Allow"), Some(allow), "{raw:?}");
        let messages: Vec<String> = serde_json::from_str(&raw.body).unwrap();
        assert_eq!(
            messages,
            [format!(
                "{target} does not take {method}: the header Allow tells what it takes"
            )]
        );
    }
}

#[test]
fn bodies_that_do_not_fit_are_refused_by_field() {
    let fixture = Fixture::new();
    let refused = |verb: &str, body: &str| {
        let mut wire = fixture.connect();
        let raw = wire.exchange(format!(
            "PUT /api/v1/{verb} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(raw.status, 400, "{raw:?}");
        let messages: Vec<String> = serde_json::from_str(&raw.body).unwrap();
        assert_eq!(messages.len(), 1);
        messages[0].clone()
    };
    insta::assert_snapshot!(refused("vm.create", "{"), @"the document: EOF while parsing an object at line 1 column 1");
    insta::assert_snapshot!(refused("vm.create", ""), @"the document: EOF while parsing a value at line 1 column 0");
    insta::assert_snapshot!(refused("vm.create", "null"), @"the document: invalid type: null, expected an object at line 1 column 4");
    insta::assert_snapshot!(refused("vm.create", "\u{1}\u{2}"), @"the document: expected value at line 1 column 1");
    insta::assert_snapshot!(refused("vm.create", "{}"), @"payload.kernel is missing: expected the path of a kernel (an ELF file or a bzImage), --kernel on the command line, or boot_disk, --boot-disk");
    insta::assert_snapshot!(refused("vm.create", r#"{"payload": {"kernel": "/k"}, "disks": [{"path": "/a"}, {"path": 1}]}"#), @"disks[1].path: invalid type: integer `1`, expected path string at line 1 column 66");
    assert!(
        refused("vm.create", r#"{"payload": {"kernel": "/k"}, "diks": []}"#)
            .starts_with("diks: unknown field `diks`, expected one of `cpus`")
    );
    assert!(
        refused(
            "vm.create",
            r#"{"payload": {"kernel": "/k"}, "payload": {"kernel": "/k"}}"#
        )
        .contains("duplicate field `payload`")
    );
    insta::assert_snapshot!(refused("vm.resize", r#"{"desired_vcpus": "4"}"#), @r#"desired_vcpus: invalid type: string "4", expected u32 at line 1 column 21"#);
    insta::assert_snapshot!(refused("vm.resize", r#"{"desired_ram": -1}"#), @"desired_ram: invalid value: integer `-1`, expected u64 at line 1 column 18");
    insta::assert_snapshot!(refused("vm.resize-disk", r#"{"id": "a"}"#), @"the document: missing field `desired_size` at line 1 column 11");
    insta::assert_snapshot!(refused("vm.remove-device", r#"{"id": "a", "force": true}"#), @"force: unknown field `force`, expected `id` at line 1 column 19");
    insta::assert_snapshot!(refused("vm.remove-device", r#"{"id": "a"} x"#), @"the document: trailing characters at line 1 column 13");
    insta::assert_snapshot!(refused("vm.add-disk", r#"{"path": "/d", "queue_size": 3}"#), @"bad value 3 for queue_size: expected a power of two from 4 to 32768");
    insta::assert_snapshot!(refused("vm.boot", r#"{"a": 1}"#), @"the document: expected no body, as vm.boot takes none");
    insta::assert_snapshot!(refused("vm.boot", "x"), @"the document: expected value at line 1 column 1");
    assert_eq!(fixture.fake.seen().verbs, [""; 0]);
}

#[test]
fn verb_without_body_takes_an_empty_one() {
    let fixture = Fixture::new();
    for body in ["", "{}", "null", " \r\n", " { } "] {
        let mut wire = fixture.connect();
        let raw = wire.exchange(format!(
            "PUT /api/v1/vm.delete HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(raw.status, 204, "{body:?}: {raw:?}");
    }
}

#[test]
fn any_media_type_is_taken_for_json() {
    let fixture = Fixture::new();
    let body = r#"{"payload": {"kernel": "/k"}}"#;
    for header in ["", "Content-Type: text/plain\r\n", "Content-Type: \r\n"] {
        let mut wire = fixture.connect();
        let raw = wire.exchange(format!(
            "PUT /api/v1/vm.create HTTP/1.1\r\n{header}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(raw.status, 204, "{header:?}: {raw:?}");
        fixture.call(Method::Put, "vm.delete");
    }
}

#[test]
fn head_is_written_as_ch_remote_reads_it() {
    let fixture = Fixture::new();
    // What ch-remote sends, in its pieces.
    let mut wire = fixture.connect();
    wire.send("GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    let raw = wire.exchange("\r\n");
    assert!(raw.head.starts_with("HTTP/1.1 200 \r\n"), "{raw:?}");
    assert!(raw.head.contains("\r\nContent-Length: 58\r\n"), "{raw:?}");
    assert_eq!(raw.header("Content-Type"), Some("application/json"));
}

#[test]
fn body_may_come_in_chunks() {
    let fixture = Fixture::new();
    let mut wire = fixture.connect();
    let raw = wire.exchange(
        "PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
         e\r\n{\"payload\": {\"\r\nf\r\nkernel\": \"/k\"}}\r\n0\r\n\r\n",
    );
    assert_eq!(raw.status, 204, "{raw:?}");
    // curl's form of a PUT from an empty standard input.
    let raw = wire.exchange(
        "PUT /api/v1/vm.boot HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
    );
    assert!(matches!(raw.status, 100 | 204), "{raw:?}");
}

#[test]
fn service_that_has_gone_is_an_internal_error() {
    struct Gone;
    impl Service for Gone {
        fn post(&self, _: crate::request::Request, _: crate::request::Answerer) {}
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let events = Events::new(std::time::Instant::now());
    let server = Server::start(listener, Arc::new(Gone), events).unwrap();
    let response = Client::new(&path)
        .call(Method::Get, "vm.info", None, &[])
        .unwrap();
    assert_eq!(refusal(&response, 500), ["the VMM has ended"]);
    server.stop();
}
