//! The client against the server.

use std::os::fd::AsFd;

use super::*;
use crate::client::ClientError;
use crate::config::{DiskConfig, FsConfig, NetConfig, VsockConfig};

#[test]
fn calls_give_what_the_server_says() {
    let fixture = Fixture::new();
    let client = fixture.client();
    assert_eq!(client.ping().unwrap().pid, 1);
    let machine = json!({"payload": {"kernel": "/k"}, "disks": [{"path": "/d"}]});
    assert_eq!(client.put_with("vm.create", &machine, &[]).unwrap(), None);
    client.put("vm.boot").unwrap();
    let info = client.info().unwrap();
    assert_eq!(info.state, VmState::Running);
    assert_eq!(info.config.disks[0].id.as_deref(), Some("_disk0"));
    assert!(client.counters().unwrap().is_empty());
    let disk: DiskConfig = "path=/e,id=e".parse().unwrap();
    let added = client.put_with("vm.add-disk", &disk, &[]).unwrap().unwrap();
    assert_eq!(
        (added.id.as_str(), added.bdf.as_str()),
        ("e", "0000:00:05.0")
    );
    let net: NetConfig = "tap=t".parse().unwrap();
    assert!(client.put_with("vm.add-net", &net, &[]).unwrap().is_some());
    let fs: FsConfig = "tag=home,socket=/s".parse().unwrap();
    let added = client.put_with("vm.add-fs", &fs, &[]).unwrap();
    assert_eq!(added.unwrap().id, "_fs9");
    let vsock: VsockConfig = "cid=3,socket=/s".parse().unwrap();
    let added = client.put_with("vm.add-vsock", &vsock, &[]).unwrap();
    assert_eq!(added.unwrap().id, "_vsock9");
    assert!(client.metrics().unwrap().ends_with("# EOF\n"));
    assert_eq!(fixture.fake.seen().disks, [disk]);
    assert_eq!(fixture.fake.seen().nets, [net]);
    assert_eq!(fixture.fake.seen().fs, [fs]);
    assert_eq!(fixture.fake.seen().vsocks, [vsock]);
}

#[test]
fn refusal_is_an_error_with_all_its_causes() {
    let fixture = Fixture::new();
    let error = fixture.client().put("vm.pause").unwrap_err();
    let text = "vm.pause needs a VM, and there is none: create one first (vm.create)";
    assert_eq!(error.to_string(), text);
    assert_eq!(error.messages(), [text]);
    let ClientError::Refused { status, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(status, 404);
    let response = Response {
        status: 500,
        body: r#"["outer", "inner"]"#.to_owned(),
    };
    assert_eq!(
        response.success().unwrap_err().messages(),
        ["outer", "inner"]
    );
    let response = Response {
        status: 502,
        body: "no JSON".to_owned(),
    };
    assert_eq!(response.success().unwrap_err().to_string(), "no JSON");
}

#[test]
fn descriptors_go_with_the_call() {
    let fixture = Fixture::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let machine = json!({"fds": {"kernel": [1], "initramfs": [0]}});
    let descriptors = [reader.as_fd(), writer.as_fd()];
    fixture
        .client()
        .put_with("vm.create", &machine, &descriptors)
        .unwrap();
    drop(writer);
    let kernel = fixture.fake.seen().descriptors.remove("kernel").unwrap();
    let mut kernel = std::fs::File::from(kernel.into_iter().next().unwrap());
    kernel.write_all(b"x").unwrap();
    drop(kernel);
    let mut text = String::new();
    std::io::BufReader::new(reader)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "x");
}

#[test]
fn more_descriptors_than_a_message_carries_are_not_sent() {
    let fixture = Fixture::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let descriptors = vec![reader.as_fd(); 254];
    let error = fixture
        .client()
        .call(Method::Put, "vm.create", Some(&json!({})), &descriptors)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "254 descriptors are given, expected at most 253"
    );
}

#[test]
fn vmm_that_is_not_there_is_named() {
    let error = Client::new("/nowhere/api.sock").ping().unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to /nowhere/api.sock");
    assert_eq!(
        error.messages()[1],
        "No such file or directory (os error 2)"
    );
}

#[test]
fn vmm_that_ends_without_an_answer_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let vmm = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let error = Client::new(&path).ping().unwrap_err();
    assert!(matches!(error, ClientError::Broken(_)), "{error:?}");
    vmm.join().unwrap();
}

#[test]
fn two_clients_see_one_order() {
    let fixture = Fixture::new();
    fixture.create();
    fixture.call(Method::Put, "vm.boot");
    let client = fixture.client();
    let other = client.clone();
    let pauses =
        std::thread::spawn(move || (0..50).filter(|_| other.put("vm.pause").is_ok()).count());
    let resumes = (0..50).filter(|_| client.put("vm.resume").is_ok()).count();
    let pauses = pauses.join().unwrap();
    // Each pause that was carried out but the last was followed by a resume.
    let paused = client.info().unwrap().state == VmState::Paused;
    assert_eq!(pauses, resumes + usize::from(paused));
}
