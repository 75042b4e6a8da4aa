//! Metrics as text: OpenMetrics, or the older text format of Prometheus for those who ask for it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, LabelSetEncoder,
    NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::answer::{Refusal, with_type};
use crate::metrics::{
    BackendMetrics, BalloonMetrics, ConsoleMetrics, DiskMetrics, Metrics, NetMetrics, VsockMetrics,
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the latency's buckets, in seconds: a ping takes less than a millisecond, a boot some tens of them, the
/// removal of a device as long as the guest likes.
const LATENCY_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0,
];

/// How long requests took, by verb and status code.
#[derive(Clone, Debug)]
pub(super) struct Latency(Family<Call, Histogram>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Call {
    verb: &'static str,
    status: u16,
}

impl EncodeLabelSet for Call {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [
            ("verb", self.verb.to_owned()),
            ("status", self.status.to_string()),
        ]
        .encode(encoder)
    }
}

impl Latency {
    pub(super) fn new() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS);
        Self(Family::new_with_constructor(histogram))
    }

    pub(super) fn observe(&self, verb: &'static str, status: StatusCode, time: Duration) {
        let status = status.as_u16();
        let histogram = self.0.get_or_create(&Call { verb, status });
        histogram.observe(time.as_secs_f64());
    }
}

/// The response to a client that accepts what its `headers` say.
pub(super) fn respond(metrics: &Metrics, latency: &Latency, headers: &HeaderMap) -> Response {
    let plain = prefers_plain_text(headers);
    let mut registry = Registry::with_prefix("podvisor");
    registry.register_collector(Box::new(Snapshot(metrics.clone())));
    registry.register_with_unit(
        "api_request_duration",
        "Time from a request to its response",
        Unit::Seconds,
        latency.0.clone(),
    );
    let mut written = String::new();
    let result = if plain {
        prometheus_text::encode(&mut written, &registry)
    } else {
        text::encode(&mut written, &registry)
    };
    if result.is_err() {
        let message = "the metrics cannot be written as text";
        return Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    }
    let media_type = if plain {
        prometheus_text::CONTENT_TYPE
    } else {
        OPEN_METRICS
    };
    with_type(StatusCode::OK, media_type, Body::from(written))
}

/// Whether a client asks for plain text and not for OpenMetrics. Prometheus asks for both and prefers OpenMetrics.
fn prefers_plain_text(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let accepted: Vec<_> = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim())
        .collect();
    accepted.contains(&"text/plain") && !accepted.contains(&"application/openmetrics-text")
}

/// Metrics of one moment.
#[derive(Debug)]
struct Snapshot(Metrics);

type Labels = Vec<(&'static str, String)>;

fn counter<V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, V)>,
) -> fmt::Result {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
    for (labels, value) in samples {
        let mut sample = family.encode_family(&labels)?;
        sample.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
    }
    Ok(())
}

fn gauge<V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, V)>,
) -> fmt::Result {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    for (labels, value) in samples {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn by_id<'a, D, V>(
    devices: &'a BTreeMap<String, D>,
    value: impl Fn(&D) -> V + 'a,
) -> impl Iterator<Item = (Labels, V)> + 'a {
    let devices = devices.iter();
    devices.map(move |(id, device)| (vec![("id", id.clone())], value(device)))
}

fn by_cause<'a, D>(
    devices: &'a BTreeMap<String, D>,
    errors: impl Fn(&'a D) -> &'a BTreeMap<&'static str, u64> + 'a,
) -> impl Iterator<Item = (Labels, u64)> + 'a {
    by_label("cause", devices, errors)
}

fn by_label<'a, D>(
    label: &'static str,
    devices: &'a BTreeMap<String, D>,
    counts: impl Fn(&'a D) -> &'a BTreeMap<&'static str, u64> + 'a,
) -> impl Iterator<Item = (Labels, u64)> + 'a {
    devices.iter().flat_map(move |(id, device)| {
        let counts = counts(device).iter();
        counts.map(move |(&value, &count)| {
            (vec![("id", id.clone()), (label, value.to_owned())], count)
        })
    })
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.encode_process(encoder)?;
        encode_disks(encoder, &self.0.disks)?;
        encode_nets(encoder, &self.0.nets)?;
        encode_consoles(encoder, &self.0.consoles)?;
        encode_backends(encoder, &self.0.backends)?;
        encode_vsocks(encoder, &self.0.vsocks)?;
        let balloon = self.0.balloon.as_ref();
        balloon.map_or(Ok(()), |balloon| encode_balloon(encoder, balloon))
    }
}

impl Snapshot {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let bytes = Some(Unit::Bytes);
        counter(
            encoder,
            (
                "process_cpu",
                "CPU time of the whole process, its vCPUs included.",
            ),
            Some(Unit::Seconds),
            [(Labels::new(), metrics.process_cpu_time.as_secs_f64())],
        )?;
        let memory = metrics.memory;
        for (name, help, value) in [
            ("memory_guest", "Memory that the guest has.", memory.guest),
            (
                "memory_resident",
                "Memory that the process has of the host.",
                memory.resident,
            ),
            (
                "memory_balloon",
                "Memory that a balloon took from the guest.",
                memory.balloon,
            ),
        ] {
            gauge(
                encoder,
                (name, help),
                bytes.clone(),
                [(Labels::new(), value)],
            )?;
        }
        let vcpu = |index: u32| ("vcpu", index.to_string());
        counter(
            encoder,
            ("vcpu_cpu", "CPU time of a vCPU's thread."),
            Some(Unit::Seconds),
            metrics
                .vcpus
                .iter()
                .map(|one| (vec![vcpu(one.index)], one.cpu_time.as_secs_f64())),
        )?;
        counter(
            encoder,
            ("vcpu_exits", "Exits of a vCPU to the VMM, by kind."),
            None,
            metrics.vcpus.iter().flat_map(|one| {
                let exits = one.exits.iter();
                exits.map(move |(&kind, &count)| {
                    (vec![vcpu(one.index), ("kind", kind.to_owned())], count)
                })
            }),
        )
    }
}

type Disks = BTreeMap<String, DiskMetrics>;

fn encode_disks(encoder: &mut DescriptorEncoder<'_>, disks: &Disks) -> fmt::Result {
    gauge(
        encoder,
        ("disk_in_flight", "Requests that are not answered yet."),
        Some(Unit::Other("requests".to_owned())),
        by_id(disks, |disk| disk.in_flight),
    )?;
    type Count = fn(&DiskMetrics) -> u64;
    let counts: [(&str, &str, Count); 6] = [
        ("disk_reads", "Reads that succeeded.", |disk| disk.reads),
        ("disk_writes", "Writes that succeeded.", |disk| disk.writes),
        ("disk_flushes", "Flushes that succeeded.", |disk| {
            disk.flushes
        }),
        ("disk_discards", "Discards that succeeded.", |disk| {
            disk.discards
        }),
        (
            "disk_zero_writes",
            "Requests to write zeros that succeeded.",
            |disk| disk.zero_writes,
        ),
        (
            "disk_stops",
            "Errors of the host that the VM was paused for.",
            |disk| disk.stops,
        ),
    ];
    for (name, help, value) in counts {
        counter(encoder, (name, help), None, by_id(disks, value))?;
    }
    let sizes: [(&str, &str, Count); 4] = [
        ("disk_read", "Bytes that reads moved.", |disk| {
            disk.read_bytes
        }),
        ("disk_written", "Bytes that writes moved.", |disk| {
            disk.write_bytes
        }),
        ("disk_discarded", "Bytes that discards named.", |disk| {
            disk.discard_bytes
        }),
        (
            "disk_zeroed",
            "Bytes that requests to write zeros named.",
            |disk| disk.zero_write_bytes,
        ),
    ];
    for (name, help, value) in sizes {
        counter(
            encoder,
            (name, help),
            Some(Unit::Bytes),
            by_id(disks, value),
        )?;
    }
    type Time = fn(&DiskMetrics) -> Duration;
    let times: [(&str, &str, Time); 5] = [
        ("disk_read_time", "Time that reads took.", |disk| {
            disk.read_time
        }),
        ("disk_write_time", "Time that writes took.", |disk| {
            disk.write_time
        }),
        ("disk_flush_time", "Time that flushes took.", |disk| {
            disk.flush_time
        }),
        ("disk_discard_time", "Time that discards took.", |disk| {
            disk.discard_time
        }),
        (
            "disk_zero_write_time",
            "Time that requests to write zeros took.",
            |disk| disk.zero_write_time,
        ),
    ];
    for (name, help, value) in times {
        let samples = by_id(disks, move |disk| value(disk).as_secs_f64());
        counter(encoder, (name, help), Some(Unit::Seconds), samples)?;
    }
    counter(
        encoder,
        ("disk_errors", "Requests that failed, by cause."),
        None,
        by_cause(disks, |disk| &disk.errors),
    )
}

type Nets = BTreeMap<String, NetMetrics>;

fn encode_nets(encoder: &mut DescriptorEncoder<'_>, nets: &Nets) -> fmt::Result {
    type Count = fn(&NetMetrics) -> u64;
    let counts: [(&str, &str, Option<Unit>, Count); 4] = [
        (
            "net_receive_packets",
            "Packets given to the guest.",
            None,
            |net| net.rx_packets,
        ),
        (
            "net_receive",
            "Bytes given to the guest.",
            Some(Unit::Bytes),
            |net| net.rx_bytes,
        ),
        (
            "net_transmit_packets",
            "Packets taken from the guest.",
            None,
            |net| net.tx_packets,
        ),
        (
            "net_transmit",
            "Bytes taken from the guest.",
            Some(Unit::Bytes),
            |net| net.tx_bytes,
        ),
    ];
    for (name, help, unit, value) in counts {
        counter(encoder, (name, help), unit, by_id(nets, value))?;
    }
    let up = by_id(nets, |net| u64::from(net.link_up));
    gauge(
        encoder,
        ("net_link_up", "Whether the guest's link is up: 1 or 0."),
        None,
        up,
    )?;
    counter(
        encoder,
        ("net_link_downs", "Times that the guest's link went down."),
        None,
        by_id(nets, |net| net.link_downs),
    )?;
    type Causes = fn(&NetMetrics) -> &BTreeMap<&'static str, u64>;
    let causes: [(&str, &str, Causes); 5] = [
        (
            "net_receive_errors",
            "Packets and buffers for receiving that were lost, by cause.",
            |net| &net.rx_errors,
        ),
        (
            "net_transmit_errors",
            "Packets from the guest that were lost, by cause.",
            |net| &net.tx_errors,
        ),
        (
            "net_receive_waits",
            "Times that receiving waited, by cause.",
            |net| &net.rx_waits,
        ),
        (
            "net_transmit_waits",
            "Times that sending waited, by cause.",
            |net| &net.tx_waits,
        ),
        (
            "net_commands",
            "Commands of the guest, by what became of them.",
            |net| &net.commands,
        ),
    ];
    for (name, help, value) in causes {
        counter(encoder, (name, help), None, by_cause(nets, value))?;
    }
    Ok(())
}

fn encode_backends(
    encoder: &mut DescriptorEncoder<'_>,
    backends: &BTreeMap<String, BackendMetrics>,
) -> fmt::Result {
    gauge(
        encoder,
        (
            "backend_connected",
            "Whether the process that serves the device is there.",
        ),
        None,
        by_id(backends, |backend| backend.connected),
    )?;
    type Count = fn(&BackendMetrics) -> u64;
    let counts: [(&str, &str, Count); 3] = [
        (
            "backend_connections",
            "Connections to the process that serves the device.",
            |backend| backend.connections,
        ),
        (
            "backend_losses",
            "How often the process that serves the device was lost.",
            |backend| backend.losses,
        ),
        (
            "backend_broken_rings",
            "Rings that the process could not go on with.",
            |backend| backend.broken_rings,
        ),
    ];
    for (name, help, value) in counts {
        counter(encoder, (name, help), None, by_id(backends, value))?;
    }
    Ok(())
}

fn encode_balloon(encoder: &mut DescriptorEncoder<'_>, balloon: &BalloonMetrics) -> fmt::Result {
    fn labelled<'a>(
        label: &'static str,
        values: &'a BTreeMap<&'static str, u64>,
    ) -> impl Iterator<Item = (Labels, u64)> + 'a {
        let values = values.iter();
        values.map(move |(&name, &value)| (vec![(label, name.to_owned())], value))
    }
    gauge(
        encoder,
        ("balloon_target", "Memory that the balloon is to have."),
        Some(Unit::Bytes),
        [(Labels::new(), balloon.target)],
    )?;
    counter(
        encoder,
        (
            "balloon_given_back",
            "Memory of the guest that was given back to the host, by cause.",
        ),
        Some(Unit::Bytes),
        labelled("cause", &balloon.given_back),
    )?;
    counter(
        encoder,
        (
            "balloon_errors",
            "Requests of the guest to the balloon that failed, by cause.",
        ),
        None,
        labelled("cause", &balloon.errors),
    )?;
    gauge(
        encoder,
        (
            "balloon_guest_memory",
            "Memory as the guest tells of it, by kind.",
        ),
        Some(Unit::Bytes),
        labelled("kind", &balloon.guest_memory),
    )?;
    counter(
        encoder,
        (
            "balloon_guest_events",
            "What the guest tells that it had to do about its memory, by kind.",
        ),
        None,
        labelled("kind", &balloon.guest_events),
    )?;
    counter(
        encoder,
        (
            "balloon_guest_swap",
            "Bytes that the guest tells that it swapped, by direction.",
        ),
        Some(Unit::Bytes),
        labelled("direction", &balloon.guest_swap),
    )
}

type Vsocks = BTreeMap<String, VsockMetrics>;

fn encode_vsocks(encoder: &mut DescriptorEncoder<'_>, vsocks: &Vsocks) -> fmt::Result {
    gauge(
        encoder,
        ("vsock_open", "Connections that exist now."),
        Some(Unit::Other("connections".to_owned())),
        by_id(vsocks, |vsock| vsock.connections),
    )?;
    type Count = fn(&VsockMetrics) -> u64;
    let counts: [(&str, &str, Option<Unit>, Count); 4] = [
        (
            "vsock_receive_packets",
            "Packets given to the guest.",
            None,
            |vsock| vsock.rx_packets,
        ),
        (
            "vsock_receive",
            "Bytes of payload given to the guest.",
            Some(Unit::Bytes),
            |vsock| vsock.rx_bytes,
        ),
        (
            "vsock_transmit_packets",
            "Packets taken from the guest.",
            None,
            |vsock| vsock.tx_packets,
        ),
        (
            "vsock_transmit",
            "Bytes of payload taken from the guest.",
            Some(Unit::Bytes),
            |vsock| vsock.tx_bytes,
        ),
    ];
    for (name, help, unit, value) in counts {
        counter(encoder, (name, help), unit, by_id(vsocks, value))?;
    }
    counter(
        encoder,
        (
            "vsock_connections",
            "Connections that were there, by who opened them.",
        ),
        None,
        by_label("opener", vsocks, |vsock| &vsock.opened),
    )?;
    type Causes = fn(&VsockMetrics) -> &BTreeMap<&'static str, u64>;
    let causes: [(&str, &str, Causes); 3] = [
        (
            "vsock_failed_connections",
            "Connections that came to no good end, by cause.",
            |vsock| &vsock.failed,
        ),
        (
            "vsock_waits",
            "Times that packets had to wait for the guest, by cause.",
            |vsock| &vsock.waits,
        ),
        (
            "vsock_errors",
            "Packets and buffers of the guest that broke a rule, by cause.",
            |vsock| &vsock.errors,
        ),
    ];
    for (name, help, value) in causes {
        counter(encoder, (name, help), None, by_cause(vsocks, value))?;
    }
    Ok(())
}

type Consoles = BTreeMap<String, ConsoleMetrics>;

fn encode_consoles(encoder: &mut DescriptorEncoder<'_>, consoles: &Consoles) -> fmt::Result {
    type Count = fn(&ConsoleMetrics) -> u64;
    let counts: [(&str, &str, Option<Unit>, Count); 3] = [
        (
            "console_receive",
            "Bytes given to the guest.",
            Some(Unit::Bytes),
            |console| console.rx_bytes,
        ),
        (
            "console_transmit",
            "Bytes taken from the guest.",
            Some(Unit::Bytes),
            |console| console.tx_bytes,
        ),
        (
            "console_transmit_waits",
            "How often the guest's bytes had to wait for the other end.",
            None,
            |console| console.tx_waits,
        ),
    ];
    for (name, help, unit, value) in counts {
        counter(encoder, (name, help), unit, by_id(consoles, value))?;
    }
    counter(
        encoder,
        (
            "console_errors",
            "Messages and buffers that could not be used, by cause.",
        ),
        None,
        by_cause(consoles, |console| &console.errors),
    )
}
