//! What clients can take of the server, and of each other.

use std::net::Shutdown;

use super::super::limits::{MAX_BODY, MAX_CONNECTIONS, MAX_HEAD, MAX_HEADERS};
use super::*;

const PING: &str = "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n";

#[test]
fn head_beyond_the_limit_is_refused() {
    let fixture = Fixture::new();
    let long = "x".repeat(MAX_HEAD);
    let mut wire = fixture.connect();
    let raw = wire.exchange(format!(
        "GET /api/v1/vmm.ping HTTP/1.1\r\nX-Long: {long}\r\n\r\n"
    ));
    assert_eq!(raw.status, 431, "{raw:?}");
    assert!(wire.receive().is_none());

    let mut wire = fixture.connect();
    let many = "X-Many: x\r\n".repeat(MAX_HEADERS + 1);
    let raw = wire.exchange(format!("GET /api/v1/vmm.ping HTTP/1.1\r\n{many}\r\n"));
    assert_eq!(raw.status, 431, "{raw:?}");

    let mut wire = fixture.connect();
    let raw = wire.exchange(format!("GET /{long} HTTP/1.1\r\n\r\n"));
    assert!(matches!(raw.status, 414 | 431), "{raw:?}");

    let fits = "x".repeat(MAX_HEAD / 2);
    let mut wire = fixture.connect();
    let raw = wire.exchange(format!(
        "GET /api/v1/vmm.ping HTTP/1.1\r\nX-Long: {fits}\r\n\r\n"
    ));
    assert_eq!(raw.status, 200);
}

#[test]
fn body_beyond_the_limit_is_refused_to_a_client_that_sends_it_all() {
    let fixture = Fixture::new();
    let body = "x".repeat(4 * MAX_BODY);
    let mut wire = fixture.connect();
    wire.send(format!(
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let raw = wire.receive().unwrap();
    assert_eq!(raw.status, 413);
    assert_eq!(raw.header("Connection"), Some("close"));
    let messages: Vec<String> = serde_json::from_str(&raw.body).unwrap();
    assert_eq!(messages, ["the body is larger than 1048576 bytes"]);

    let mut wire = fixture.connect();
    wire.send("PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    wire.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    assert_eq!(wire.receive().unwrap().status, 413);

    let body = format!(
        r#"{{"payload": {{"kernel": "/k"}}}}{}"#,
        " ".repeat(MAX_BODY - 29)
    );
    assert_eq!(body.len(), MAX_BODY);
    let mut wire = fixture.connect();
    let raw = wire.exchange(format!(
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(raw.status, 204, "{raw:?}");
}

#[test]
fn what_is_not_http_is_refused() {
    let fixture = Fixture::new();
    for text in [
        "\u{1}\u{2}\u{3}\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /api/v1/vmm.ping HTTP/1.1\r\nno colon\r\n\r\n",
        "PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "PUT /api/v1/vm.boot HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    ] {
        let mut wire = fixture.connect();
        let raw = wire.exchange(text);
        assert!(matches!(raw.status, 400 | 505), "{text:?}: {raw:?}");
        assert!(wire.receive().is_none());
    }
    let mut wire = fixture.connect();
    wire.send("PUT /api/v1/vm.boot HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n");
    assert_eq!(wire.receive().unwrap().status, 400);
    assert_eq!(fixture.call(Method::Get, "vmm.ping").status, 200);
}

#[test]
fn client_that_has_nothing_more_to_say_gets_its_answer() {
    let fixture = Fixture::new();
    let mut wire = fixture.connect();
    wire.send(PING);
    wire.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.receive().unwrap().status, 200);
    assert!(wire.receive().is_none());
}

#[test]
fn client_that_stops_within_its_request_costs_nothing() {
    let fixture = Fixture::new();
    for text in [
        "",
        "PUT /api",
        "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        PING,
    ] {
        let mut wire = fixture.connect();
        wire.send(text);
        drop(wire);
    }
    let mut wire = fixture.connect();
    wire.send("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 10\r\n\r\n{");
    wire.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.receive().unwrap().status, 400);
    assert_eq!(fixture.call(Method::Get, "vmm.ping").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let fixture = Fixture::new();
    let mut wire = fixture.connect();
    let create = r#"{"payload": {"kernel": "/k"}}"#;
    wire.send(format!(
        "{PING}PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{create}\
         PUT /api/v1/vm.boot HTTP/1.1\r\n\r\nPUT /api/v1/vm.boot HTTP/1.1\r\n\r\n{PING}",
        create.len()
    ));
    let statuses = [0; 5].map(|_| wire.receive().unwrap().status);
    assert_eq!(statuses, [200, 204, 204, 405, 200]);
}

#[test]
fn connection_is_kept_for_further_requests() {
    let fixture = Fixture::new();
    let mut wire = fixture.connect();
    for _ in 0..100 {
        assert_eq!(wire.exchange(PING).status, 200);
    }
    let raw = wire.exchange("GET /api/v1/vmm.ping HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(raw.status, 200);
    assert!(wire.receive().is_none());
    let mut wire = fixture.connect();
    assert_eq!(
        wire.exchange("GET /api/v1/vmm.ping HTTP/1.0\r\n\r\n")
            .status,
        200
    );
    assert!(wire.receive().is_none());
}

#[test]
fn connection_that_is_idle_for_longest_makes_room_for_a_new_one() {
    let fixture = Fixture::new();
    let mut wires: Vec<_> = (0..MAX_CONNECTIONS).map(|_| fixture.connect()).collect();
    for wire in &mut wires {
        assert_eq!(wire.exchange(PING).status, 200);
    }
    // The first was used last.
    assert_eq!(wires[0].exchange(PING).status, 200);
    let mut extra: Vec<_> = (0..3).map(|_| fixture.connect()).collect();
    for wire in &mut extra {
        assert_eq!(wire.exchange(PING).status, 200);
    }
    for closed in &mut wires[1..4] {
        assert!(closed.receive().is_none());
    }
    for open in wires[4..].iter_mut().chain(&mut extra) {
        assert_eq!(open.exchange(PING).status, 200);
    }
    assert_eq!(wires[0].exchange(PING).status, 200);
}

#[test]
fn client_is_told_when_all_connections_are_in_use() {
    let fixture = Fixture::new();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| fixture.connect()).collect();
    for stream in &mut streams {
        let raw = stream.exchange("GET /api/v1/vm.events HTTP/1.1\r\n\r\n");
        assert_eq!(raw.status, 200);
    }
    let raw = fixture.connect().receive().unwrap();
    assert_eq!(raw.status, 503);
    let messages: Vec<String> = serde_json::from_str(&raw.body).unwrap();
    assert_eq!(
        messages,
        ["there are 64 connections already, all of them in use"]
    );
    // Those whose client has gone make room again.
    drop(streams);
    fixture.events.publish("vm", "paused", &[]);
    let ping = || fixture.client().call(Method::Get, "vmm.ping", None, &[]);
    while !ping().is_ok_and(|response| response.is_success()) {}
}
