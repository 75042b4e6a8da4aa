//! Metrics as text: OpenMetrics, or the older text format of Prometheus for those who ask for it.

mod devices;

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
        devices::disks(encoder, &self.0.disks)?;
        devices::nets(encoder, &self.0.nets)?;
        devices::consoles(encoder, &self.0.consoles)?;
        devices::backends(encoder, &self.0.backends)?;
        devices::vsocks(encoder, &self.0.vsocks)?;
        let balloon = self.0.balloon.as_ref();
        balloon.map_or(Ok(()), |balloon| devices::balloon(encoder, balloon))
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
