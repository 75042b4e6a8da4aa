//! What a balloon counts, and what its guest tells.

use std::collections::BTreeMap;

use api::metrics::BalloonMetrics;
use devices::virtio::balloon::{
    BalloonHandle, BalloonMetrics as BalloonCounters, Statistic, Statistics,
};

use super::{causes, named};

/// What a guest tells of its memory in bytes, of its swap space in bytes, and of what happened to it.
const GUEST_MEMORY: [(&str, Statistic); 4] = [
    ("free", Statistic::Free),
    ("total", Statistic::Total),
    ("available", Statistic::Available),
    ("caches", Statistic::Caches),
];
const GUEST_SWAP: [(&str, Statistic); 2] = [("in", Statistic::SwapIn), ("out", Statistic::SwapOut)];
const GUEST_EVENTS: [(&str, Statistic); 10] = [
    ("major_faults", Statistic::MajorFaults),
    ("minor_faults", Statistic::MinorFaults),
    ("hugetlb_allocations", Statistic::HugePageAllocations),
    ("hugetlb_failures", Statistic::HugePageFailures),
    ("oom_kill", Statistic::OomKills),
    ("alloc_stall", Statistic::AllocationStalls),
    ("async_scan", Statistic::AsyncScans),
    ("direct_scan", Statistic::DirectScans),
    ("async_reclaim", Statistic::AsyncReclaims),
    ("direct_reclaim", Statistic::DirectReclaims),
];

fn told<const N: usize>(
    statistics: &Statistics,
    names: [(&'static str, Statistic); N],
) -> BTreeMap<&'static str, u64> {
    let values = names.into_iter();
    values
        .filter_map(|(name, statistic)| Some((name, statistics.get(statistic)?)))
        .collect()
}

/// What is counted, with the names that Firecracker gives to what the guest tells.
pub(super) fn counters(metrics: &BalloonCounters, handle: &BalloonHandle) -> BTreeMap<String, u64> {
    let mut counters = named([
        ("inflated_bytes", &metrics.inflated_bytes),
        ("deflated_bytes", &metrics.deflated_bytes),
        ("reported_bytes", &metrics.reported_bytes),
        ("refused_bytes", &metrics.refused_bytes),
        ("host_errors", &metrics.host_errors),
        ("malformed", &metrics.malformed),
    ]);
    counters.insert("target_bytes".to_owned(), handle.target());
    counters.insert("actual_bytes".to_owned(), handle.actual());
    let statistics = handle.statistics();
    let memory = told(&statistics, GUEST_MEMORY);
    counters.extend(memory.into_iter().map(|(name, value)| match name {
        "caches" => ("disk_caches".to_owned(), value),
        _ => (format!("{name}_memory"), value),
    }));
    let swap = told(&statistics, GUEST_SWAP).into_iter();
    counters.extend(swap.map(|(name, value)| (format!("swap_{name}"), value)));
    let events = told(&statistics, GUEST_EVENTS).into_iter();
    counters.extend(events.map(|(name, value)| (name.to_owned(), value)));
    counters
}

pub(super) fn metrics(metrics: &BalloonCounters, handle: &BalloonHandle) -> BalloonMetrics {
    let statistics = handle.statistics();
    BalloonMetrics {
        target: handle.target(),
        given_back: causes([
            ("inflated", &metrics.inflated_bytes),
            ("reported", &metrics.reported_bytes),
        ]),
        errors: causes([
            ("host_error", &metrics.host_errors),
            ("malformed", &metrics.malformed),
            ("broken_ring", &metrics.broken_rings),
        ]),
        guest_memory: told(&statistics, GUEST_MEMORY),
        guest_events: told(&statistics, GUEST_EVENTS),
        guest_swap: told(&statistics, GUEST_SWAP),
    }
}
