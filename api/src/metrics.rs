//! What is measured of a VMM and its machine, apart from how it is written down.

use std::collections::BTreeMap;
use std::time::Duration;

/// Everything as of one moment. All counters count since the machine was built.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The vCPUs of the machine, in their order; empty while none runs.
    pub vcpus: Vec<VcpuMetrics>,
    /// Memory.
    pub memory: MemoryMetrics,
    /// Disks by name.
    pub disks: BTreeMap<String, DiskMetrics>,
    /// Networks by name.
    pub nets: BTreeMap<String, NetMetrics>,
    /// Processes that serve devices, by the name of the device.
    pub backends: BTreeMap<String, BackendMetrics>,
    /// Sockets between host and guest by name.
    pub vsocks: BTreeMap<String, VsockMetrics>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonMetrics>,
    /// Consoles and groups of ports by name.
    pub consoles: BTreeMap<String, ConsoleMetrics>,
    /// CPU time of the whole process, its vCPUs included.
    pub process_cpu_time: Duration,
}

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuMetrics {
    /// Its number, from 0.
    pub index: u32,
    /// CPU time of its thread, in the guest and out of it.
    pub cpu_time: Duration,
    /// Exits to the VMM by kind, as in `mmio` or `io`.
    pub exits: BTreeMap<&'static str, u64>,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMetrics {
    /// What the guest has, with what was plugged in.
    pub guest: u64,
    /// What the process has in the host's memory.
    pub resident: u64,
    /// What a balloon took from the guest, as the guest says.
    pub balloon: u64,
}

/// One disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskMetrics {
    /// Requests that are not answered yet.
    pub in_flight: u64,
    /// Reads that succeeded.
    pub reads: u64,
    /// Bytes that those reads moved.
    pub read_bytes: u64,
    /// From the begin to the end of those reads, summed up.
    pub read_time: Duration,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes that those writes moved.
    pub write_bytes: u64,
    /// From the begin to the end of those writes, summed up.
    pub write_time: Duration,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// From the begin to the end of those flushes, summed up.
    pub flush_time: Duration,
    /// Discards that succeeded.
    pub discards: u64,
    /// Bytes that those discards named.
    pub discard_bytes: u64,
    /// From the begin to the end of those discards, summed up.
    pub discard_time: Duration,
    /// Requests to write zeros that succeeded.
    pub zero_writes: u64,
    /// Bytes that those requests named.
    pub zero_write_bytes: u64,
    /// From the begin to the end of those requests, summed up.
    pub zero_write_time: Duration,
    /// Errors of the host that the machine was to be stopped for.
    pub stops: u64,
    /// Requests that failed, by cause, as in `host_error`.
    pub errors: BTreeMap<&'static str, u64>,
}

/// One network. Received and sent are as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetMetrics {
    /// Packets given to the guest.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets taken from the guest.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Whether the guest's link is up.
    pub link_up: bool,
    /// Times that its link went down.
    pub link_downs: u64,
    /// Times that receiving waited, by cause, as in `no_buffers`.
    pub rx_waits: BTreeMap<&'static str, u64>,
    /// Times that sending waited, by cause, as in `no_room`.
    pub tx_waits: BTreeMap<&'static str, u64>,
    /// Commands of the guest, by what became of them, as in `done`.
    pub commands: BTreeMap<&'static str, u64>,
    /// Packets and buffers for receiving that did not make it, by cause, as in `too_long`.
    pub rx_errors: BTreeMap<&'static str, u64>,
    /// Packets from the guest that did not make it, by cause, as in `link_down`.
    pub tx_errors: BTreeMap<&'static str, u64>,
}

/// The process that serves a device by vhost-user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendMetrics {
    /// 1 while it is there, else 0.
    pub connected: u64,
    /// Connections that were made to it.
    pub connections: u64,
    /// How often it was lost.
    pub losses: u64,
    /// Rings that it could not go on with.
    pub broken_rings: u64,
}

/// A balloon. What the guest tells of itself is there as far as it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonMetrics {
    /// Bytes that it is to have.
    pub target: u64,
    /// Bytes that were given back to the host, by who gave them, as in `reported`.
    pub given_back: BTreeMap<&'static str, u64>,
    /// What went wrong, by cause, as in `host_error`.
    pub errors: BTreeMap<&'static str, u64>,
    /// The guest's memory in bytes, by kind, as in `free`.
    pub guest_memory: BTreeMap<&'static str, u64>,
    /// What happened in the guest, by kind, as in `major_faults`.
    pub guest_events: BTreeMap<&'static str, u64>,
    /// Bytes that the guest moved to and from its swap space, by direction: `in` and `out`.
    pub guest_swap: BTreeMap<&'static str, u64>,
}

/// Sockets between host and guest. Received and sent are as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VsockMetrics {
    /// Connections that exist now.
    pub connections: u64,
    /// Connections that were there, by who opened them: `host` or `guest`.
    pub opened: BTreeMap<&'static str, u64>,
    /// Connections that came to no good end, by cause, as in `refused`.
    pub failed: BTreeMap<&'static str, u64>,
    /// Packets given to the guest.
    pub rx_packets: u64,
    /// Bytes of payload in them.
    pub rx_bytes: u64,
    /// Packets taken from the guest.
    pub tx_packets: u64,
    /// Bytes of payload in them.
    pub tx_bytes: u64,
    /// Times that packets had to wait for the guest, by cause, as in `no_buffers`.
    pub waits: BTreeMap<&'static str, u64>,
    /// Packets and buffers of the guest that broke a rule, by cause, as in `malformed`.
    pub errors: BTreeMap<&'static str, u64>,
}

/// A console, or a group of ports. Received and sent are as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleMetrics {
    /// Bytes given to the guest.
    pub rx_bytes: u64,
    /// Bytes taken from the guest.
    pub tx_bytes: u64,
    /// How often the guest's bytes had to wait for the other end.
    pub tx_waits: u64,
    /// Messages and buffers that could not be used, by cause, as in `malformed`.
    pub errors: BTreeMap<&'static str, u64>,
}
