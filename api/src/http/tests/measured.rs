//! `/metrics` and `vm.events`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::metrics::{
    BackendMetrics, BalloonMetrics, ConsoleMetrics, DiskMetrics, MemoryMetrics, NetMetrics,
    VcpuMetrics, VsockMetrics,
};

fn metrics() -> Metrics {
    Metrics {
        vcpus: vec![VcpuMetrics {
            index: 0,
            cpu_time: Duration::from_millis(1500),
            exits: BTreeMap::from([("io", 7), ("mmio", 3)]),
        }],
        memory: MemoryMetrics {
            guest: 512 << 20,
            resident: 100 << 20,
            balloon: 32 << 20,
        },
        disks: BTreeMap::from([(
            "_disk0".to_owned(),
            DiskMetrics {
                in_flight: 1,
                reads: 10,
                read_bytes: 40960,
                read_time: Duration::from_micros(2500),
                writes: 2,
                write_bytes: 8192,
                write_time: Duration::from_millis(3),
                flushes: 1,
                flush_time: Duration::from_millis(4),
                discards: 3,
                discard_bytes: 12288,
                discard_time: Duration::from_millis(5),
                zero_writes: 4,
                zero_write_bytes: 16384,
                zero_write_time: Duration::from_millis(6),
                stops: 1,
                errors: BTreeMap::from([("host_error", 1)]),
            },
        )]),
        nets: BTreeMap::from([(
            "n\"1".to_owned(),
            NetMetrics {
                rx_packets: 5,
                rx_bytes: 500,
                tx_packets: 6,
                tx_bytes: 600,
                link_up: true,
                link_downs: 3,
                rx_waits: BTreeMap::from([("no_buffers", 4)]),
                tx_waits: BTreeMap::from([("rate_limit", 5)]),
                commands: BTreeMap::from([("done", 6)]),
                rx_errors: BTreeMap::from([("too_long", 2)]),
                tx_errors: BTreeMap::from([("link_down", 1)]),
            },
        )]),
        backends: BTreeMap::from([(
            "_fs0".to_owned(),
            BackendMetrics {
                connected: 1,
                connections: 3,
                losses: 2,
                broken_rings: 4,
            },
        )]),
        balloon: Some(BalloonMetrics {
            target: 64 << 20,
            given_back: BTreeMap::from([("inflated", 32 << 20), ("reported", 4096)]),
            errors: BTreeMap::from([("host_error", 1)]),
            guest_memory: BTreeMap::from([("free", 200 << 20), ("total", 480 << 20)]),
            guest_events: BTreeMap::from([("major_faults", 3)]),
            guest_swap: BTreeMap::from([("in", 4096)]),
        }),
        vsocks: BTreeMap::from([(
            "_vsock2".to_owned(),
            VsockMetrics {
                connections: 2,
                opened: BTreeMap::from([("guest", 3), ("host", 4)]),
                failed: BTreeMap::from([("refused", 1)]),
                rx_packets: 7,
                rx_bytes: 700,
                tx_packets: 8,
                tx_bytes: 800,
                waits: BTreeMap::from([("no_buffers", 9)]),
                errors: BTreeMap::from([("malformed", 10)]),
            },
        )]),
        consoles: BTreeMap::from([(
            "_console2".to_owned(),
            ConsoleMetrics {
                rx_bytes: 7,
                tx_bytes: 700,
                tx_waits: 1,
                errors: BTreeMap::from([("malformed", 3)]),
            },
        )]),
        process_cpu_time: Duration::from_secs(2),
    }
}

fn scrape(fixture: &Fixture, accept: &str) -> Raw {
    let mut wire = fixture.connect();
    wire.exchange(format!("GET /metrics HTTP/1.1\r\n{accept}\r\n"))
}

/// Without the latencies, which are never the same.
fn stable(text: &str) -> String {
    let lines = text.lines();
    let lines = lines.filter(|line| !line.starts_with("podvisor_api_request_duration_seconds_"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn metrics_are_open_metrics() {
    let fixture = Fixture::with_metrics(metrics());
    fixture.call(Method::Put, "vm.boot");
    let raw = scrape(&fixture, "");
    assert_eq!(raw.status, 200);
    assert_eq!(
        raw.header("Content-Type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(raw.body.ends_with("# EOF\n"));
    insta::assert_snapshot!(stable(&raw.body));
    let calls = r#"podvisor_api_request_duration_seconds_count{verb="vm.boot",status="404"} 1"#;
    assert!(raw.body.lines().any(|line| line == calls), "{}", raw.body);
}

#[test]
fn metrics_are_plain_text_for_those_who_ask_for_it() {
    let fixture = Fixture::with_metrics(metrics());
    let raw = scrape(&fixture, "Accept: text/plain;version=0.0.4\r\n");
    assert_eq!(
        raw.header("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(!raw.body.contains("# EOF"));
    assert!(
        raw.body
            .contains("# TYPE podvisor_disk_reads_total counter\n")
    );
    // What Prometheus asks for.
    let both = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n";
    assert!(scrape(&fixture, both).body.ends_with("# EOF\n"));
    assert!(
        scrape(&fixture, "Accept: */*\r\n")
            .body
            .ends_with("# EOF\n")
    );
}

#[test]
fn any_number_of_listeners_sees_the_events_in_their_order() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let mut streams: Vec<_> = (0..10).map(|_| client.events().unwrap()).collect();
    fixture.events.publish("vm", "booting", &[]);
    fixture.events.publish(
        "vm",
        "device-added",
        &[("id", "_disk0"), ("text", "two\nlines")],
    );
    for stream in &mut streams {
        let first = stream.next().unwrap().unwrap();
        assert_eq!(
            (first.source.as_ref(), first.event.as_ref()),
            ("vm", "booting")
        );
        assert_eq!(first.properties, None);
        let second = stream.next().unwrap().unwrap();
        assert!(second.timestamp >= first.timestamp);
        let properties = second.properties.unwrap();
        assert_eq!(properties["id"], "_disk0");
        assert_eq!(properties["text"], "two\nlines");
    }
    drop(fixture.server);
    for stream in &mut streams {
        assert!(stream.next().is_none());
    }
}

#[test]
fn event_is_one_line_of_json() {
    let fixture = Fixture::new();
    let mut wire = fixture.connect();
    let raw = wire.exchange("GET /api/v1/vm.events HTTP/1.1\r\n\r\n");
    assert_eq!(raw.header("Content-Type"), Some("text/event-stream"));
    fixture.events.publish("vm", "paused", &[]);
    fixture.server.stop();
    let mut text = String::new();
    wire.0.read_to_string(&mut text).unwrap();
    let data: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("data: "))
        .collect();
    assert_eq!(data.len(), 1, "{text}");
    assert!(data[0].ends_with(r#""source":"vm","event":"paused","properties":null}"#));
}
