use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;

use api::client::Method;
use api::openapi::DOCUMENT;
use clap::Parser;
use serde_json::{Value, json};

use super::*;

mod answers;

#[derive(Debug, Parser)]
struct Ctl {
    #[command(flatten)]
    args: Args,
}

fn parse(words: &[&str]) -> Result<Args, clap::Error> {
    let all = [&["ctl", "--api-socket", "/s"], words].concat();
    Ctl::try_parse_from(all).map(|ctl| ctl.args)
}

/// What becomes of `words`.
fn call(words: &[&str]) -> Call {
    parse(words).unwrap().verb.into_call().unwrap()
}

/// What is said of `words` that cannot be used.
fn refusal(words: &[&str]) -> String {
    match parse(words) {
        Err(error) => {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        }
        Ok(args) => {
            let error = anyhow::Error::from(args.verb.into_call().unwrap_err());
            assert_eq!(ExitStatus::of(&error), ExitStatus::Configuration);
            format!("{error:#}")
        }
    }
}

/// Each verb without what it may be given beyond its required arguments.
const VERBS: &[(&[&str], &str)] = &[
    (&["ping"], "GET vmm.ping"),
    (&["info"], "GET vm.info"),
    (&["counters"], "GET vm.counters"),
    (&["events"], "GET vm.events"),
    (&["metrics"], "GET metrics"),
    (&["openapi"], "GET openapi.json"),
    (&["boot"], "PUT vm.boot"),
    (&["pause"], "PUT vm.pause"),
    (&["resume"], "PUT vm.resume"),
    (&["power-button"], "PUT vm.power-button"),
    (&["reboot"], "PUT vm.reboot"),
    (&["shutdown"], "PUT vm.shutdown"),
    (&["delete"], "PUT vm.delete"),
    (&["nmi"], "PUT vm.nmi"),
    (&["shutdown-vmm"], "PUT vmm.shutdown"),
    (
        &["remove-device", "data"],
        r#"PUT vm.remove-device {"id":"data"}"#,
    ),
    (
        &["add-device", "path=/sys/dev,iommu=on"],
        r#"PUT vm.add-device {"iommu":true,"path":"/sys/dev"}"#,
    ),
    (
        &["add-fs", "tag=home,socket=/run/fs,num_queues=2"],
        r#"PUT vm.add-fs {"num_queues":2,"pci_segment":0,"queue_size":1024,"socket":"/run/fs","tag":"home"}"#,
    ),
    (
        &[
            "add-generic-vhost-user",
            "socket=/run/v,queue_sizes=[64,64]",
        ],
        r#"PUT vm.add-generic-vhost-user {"queue_sizes":[64,64],"socket":"/run/v"}"#,
    ),
    (
        &["add-pmem", "file=\"/a,b\",size=1M,discard_writes=off"],
        r#"PUT vm.add-pmem {"discard_writes":false,"file":"/a,b","size":1048576}"#,
    ),
    (
        &["add-user-device", "socket=/run/u"],
        r#"PUT vm.add-user-device {"socket":"/run/u"}"#,
    ),
    (
        &["add-vdpa", r#"{"path": "/dev/vhost-vdpa-0"}"#],
        r#"PUT vm.add-vdpa {"path":"/dev/vhost-vdpa-0"}"#,
    ),
    (
        &["add-vsock", "cid=3,socket=/run/vsock"],
        r#"PUT vm.add-vsock {"cid":3,"iommu":false,"pci_segment":0,"socket":"/run/vsock"}"#,
    ),
    (
        &["resize", "--cpus", "3"],
        r#"PUT vm.resize {"desired_vcpus":3}"#,
    ),
    (
        &["set-link", "lan", "down"],
        r#"PUT vm.set-link {"id":"lan","up":false}"#,
    ),
    (
        &["resize-disk", "--disk", "data", "--size", "2G"],
        r#"PUT vm.resize-disk {"desired_size":2147483648,"id":"data"}"#,
    ),
    (
        &[
            "set-rate-limiter",
            "--id",
            "data",
            "ops_size=5,ops_refill_time=100",
        ],
        r#"PUT vm.set-rate-limiter {"id":"data","rate_limiter_config":{"ops":{"refill_time":100,"size":5}}}"#,
    ),
    (
        &["set-rate-limiter", "--group", "slow"],
        r#"PUT vm.set-rate-limiter {"rate_limit_group":"slow"}"#,
    ),
    (
        &["resize-zone", "--id", "mem0", "--size", "512"],
        r#"PUT vm.resize-zone {"desired_ram":512,"id":"mem0"}"#,
    ),
    (
        &["coredump", "file:///core"],
        r#"PUT vm.coredump {"destination_url":"file:///core"}"#,
    ),
    (
        &["snapshot", "file:///snap"],
        r#"PUT vm.snapshot {"destination_url":"file:///snap"}"#,
    ),
    (
        &["restore", "source_url=file:///snap,prefault=on"],
        r#"PUT vm.restore {"prefault":true,"source_url":"file:///snap"}"#,
    ),
    (
        &["send-migration", "unix:/run/other"],
        r#"PUT vm.send-migration {"destination_url":"unix:/run/other"}"#,
    ),
    (
        &["receive-migration", "receiver_url=unix:/run/here"],
        r#"PUT vm.receive-migration {"receiver_url":"unix:/run/here"}"#,
    ),
];

/// Method, verb and body of a call.
fn written(call: &Call) -> String {
    match call {
        Call::Metrics => "GET metrics".to_owned(),
        Call::Events => "GET vm.events".to_owned(),
        Call::Api {
            method, verb, body, ..
        } => {
            let method = match method {
                Method::Get => "GET",
                Method::Put => "PUT",
            };
            match body {
                None => format!("{method} {verb}"),
                Some(body) => format!("{method} {verb} {body}"),
            }
        }
    }
}

#[test]
fn verbs_become_requests() {
    for (words, expected) in VERBS {
        assert_eq!(written(&call(words)), *expected, "{words:?}");
    }
}

#[test]
fn there_is_a_verb_for_every_path_of_the_document() {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<String> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let known = ["get", "put"]
                .iter()
                .filter(|name| methods.get(name).is_some());
            known.map(|method| {
                let path = path.trim_start_matches('/');
                format!("{} {path}", method.to_uppercase())
            })
        })
        .collect();
    let mut called: BTreeSet<String> = VERBS
        .iter()
        .map(|(_, written)| written.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    called.extend(["PUT vm.create", "PUT vm.add-disk", "PUT vm.add-net"].map(str::to_owned));
    assert_eq!(called, documented);
}

/// The body of a call, and how many descriptors go with it.
fn sent(call: Call) -> (Value, usize) {
    match call {
        Call::Api {
            body, descriptors, ..
        } => (body.unwrap_or_default(), descriptors.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn disk_and_network_are_sent_as_their_types_write_them() {
    let disk: api::config::DiskConfig = "path=/d.img,readonly=on,id=d".parse().unwrap();
    let sent_disk = sent(call(&["add-disk", "path=/d.img,readonly=on,id=d"]));
    assert_eq!(sent_disk, (json!(disk), 0));
    let net: api::config::NetConfig = "tap=tap0,id=n".parse().unwrap();
    let sent_net = sent(call(&["add-net", "tap=tap0,id=n"]));
    assert_eq!(sent_net, (json!(net), 0));
}

#[test]
fn descriptors_of_devices_go_beside_the_body() {
    let file = File::open("/dev/null").unwrap();
    let fd = file.as_raw_fd();
    let (body, count) = sent(call(&["add-disk", &format!("fd={fd},id=d")]));
    assert_eq!((&body["fds"], count), (&json!([0]), 1));
    assert_eq!(body.get("path"), None);
    let (body, count) = sent(call(&["add-net", &format!("fd={fd}")]));
    assert_eq!((body.get("fds"), count), (None, 1));
}

#[test]
fn machine_is_sent_as_its_file_says() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(br#"{"payload": {"kernel": "/k"}, "whatever": [1]}"#)
        .unwrap();
    let path = file.path().to_str().unwrap();
    let expected = json!({"payload": {"kernel": "/k"}, "whatever": [1]});
    let created = call(&["create", path]);
    assert!(written(&created).starts_with("PUT vm.create {"));
    assert_eq!(sent(created), (expected.clone(), 0));

    let text = expected.to_string();
    let created = lifecycle::create("-", vec![], text.as_bytes()).unwrap();
    assert_eq!(sent(created), (expected, 0));
}

#[test]
fn descriptors_of_a_machine_are_numbered_in_their_order() {
    let file = File::open("/dev/null").unwrap();
    let fd = file.as_raw_fd();
    let fds = ["kernel", "root", "kernel"].map(|id| (id.to_owned(), fd));
    let created = lifecycle::create("-", fds.to_vec(), &b"{}"[..]).unwrap();
    let expected = json!({"fds": {"kernel": [0, 2], "root": [1]}});
    assert_eq!(sent(created), (expected, 3));

    let twice = &br#"{"fds": {}}"#[..];
    let error = lifecycle::create("-", fds.to_vec(), twice).unwrap_err();
    assert!(error.to_string().contains("fds already"), "{error}");
}

#[test]
fn values_that_the_document_does_not_know_go_as_they_are() {
    let (body, _) = sent(call(&["add-pmem", "size=many,iommu=perhaps,colour=3"]));
    let expected = json!({"size": "many", "iommu": "perhaps", "colour": "3"});
    assert_eq!(body, expected);
}

#[test]
fn arguments_that_cannot_be_used_are_refused_by_name() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "--help"),
        (&["fly"], "'fly'"),
        (&["boot", "now"], "'now'"),
        (&["resize"], "--balloon"),
        (&["resize", "--memory", "much"], "'much' for '--memory"),
        (&["resize-disk", "--disk", "d"], "--size"),
        (&["set-rate-limiter"], "--group"),
        (
            &["set-rate-limiter", "--id", "d", "--group", "g"],
            "--group",
        ),
        (
            &["set-rate-limiter", "--id", "d", "size=5"],
            "unknown key \"size\"",
        ),
        (
            &["add-disk", "path=/d,colour=red"],
            "unknown key \"colour\"",
        ),
        (&["add-disk", "fd=1"], "above 2"),
        (&["add-disk", "fd=999999"], "fd 999999 cannot be passed on"),
        (&["add-net", "fd=999999"], "fd 999999 cannot be passed on"),
        (&["add-pmem", "home"], "expected key=value"),
        (&["add-pmem", "{home"], "bad value \"{home\""),
        (&["create", "/no/such/file"], "cannot read /no/such/file"),
        (
            &["create", "/dev/null"],
            "/dev/null is not the JSON of a VM",
        ),
        (&["create", "--fd", "root=2"], "above 2"),
        (&["create", "--fd", "root"], "ID=N"),
        (&["create", "--fd", "=3"], "ID=N"),
    ];
    for (words, part) in cases {
        let text = refusal(words);
        assert!(text.contains(part), "{words:?}: no {part:?} in {text}");
    }
}

#[test]
fn socket_is_named_as_the_vmm_names_it() {
    let path = |text| socket(text).unwrap();
    assert_eq!(path("/run/api"), path("path=/run/api"));
    for text in ["fd=5", "path=", ""] {
        socket(text).unwrap_err();
    }
}
