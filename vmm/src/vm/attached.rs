//! Devices of a machine by their names: where each is, and what it counts.

mod balloon;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::metrics::{
    BackendMetrics, BalloonMetrics, ConsoleMetrics, DiskMetrics, NetMetrics, VsockMetrics,
};
use api::request::{Counters, DeviceNode};
use devices::memory::MemoryFollower;
use devices::virtio::balloon::{Balloon, BalloonHandle, BalloonMetrics as BalloonCounters};
use devices::virtio::block::{
    Block, BlockLimits, BlockMetrics, BlockResizer, BlockWatch, StopCause,
};
use devices::virtio::console::{Console, ConsoleMetrics as ConsoleCounters};
use devices::virtio::fs::Fs;
use devices::virtio::net::{Net, NetHandle, NetMetrics as NetCounters, PortState, Tap};
use devices::virtio::vhost_user::{Backend, VhostUserMetrics};
use devices::virtio::vsock::{Vsock, VsockMetrics as VsockCounters};

use super::transport::Place;

/// What kind of device it is, and how its owner reaches it.
pub(super) enum Kind {
    Disk {
        metrics: Arc<BlockMetrics>,
        resizer: BlockResizer,
        limits: BlockLimits,
        watch: Arc<BlockWatch>,
    },
    Console(Arc<ConsoleCounters>),
    Net {
        metrics: Arc<NetCounters>,
        handle: NetHandle,
    },
    Vsock(Arc<VsockCounters>),
    /// Served by another process.
    VhostUser(Arc<Backend>),
    Balloon {
        metrics: Arc<BalloonCounters>,
        handle: BalloonHandle,
    },
    /// A part of every machine, or of its memory.
    Fixed,
}

impl Kind {
    pub(super) fn disk(device: &Block) -> Self {
        Self::Disk {
            metrics: device.metrics(),
            resizer: device.resizer(),
            limits: device.limits(),
            watch: device.watch(),
        }
    }

    pub(super) fn net(device: &Net<Tap>) -> Self {
        Self::Net {
            metrics: device.metrics(),
            handle: device.handle(),
        }
    }

    pub(super) fn fs(device: &Fs) -> Self {
        Self::VhostUser(device.backend())
    }

    /// Who has to know of changes of memory.
    pub(super) fn follower(&self) -> Option<Arc<dyn MemoryFollower>> {
        match self {
            Self::VhostUser(backend) => Some(Arc::clone(backend) as Arc<dyn MemoryFollower>),
            _ => None,
        }
    }

    pub(super) fn console(device: &Console) -> Self {
        Self::Console(device.metrics())
    }

    pub(super) fn vsock(device: &Vsock) -> Self {
        Self::Vsock(device.metrics())
    }

    pub(super) fn balloon(device: &Balloon) -> Self {
        Self::Balloon {
            metrics: device.metrics(),
            handle: device.handle(),
        }
    }
}

/// A device of a machine.
pub(super) struct Attached {
    pub(super) place: Place,
    pub(super) kind: Kind,
}

/// The devices of a machine by name.
#[derive(Default)]
pub(super) struct AttachedDevices(BTreeMap<String, Attached>);

impl AttachedDevices {
    pub(super) fn insert(&mut self, id: &str, device: Attached) {
        self.0.insert(id.to_owned(), device);
    }

    pub(super) fn get(&self, id: &str) -> Option<&Attached> {
        self.0.get(id)
    }

    /// The name of the device at `place`.
    pub(super) fn at(&self, place: Place) -> Option<&str> {
        let mut devices = self.0.iter();
        let found = devices.find(|(_, device)| device.place == place);
        found.map(|(id, _)| id.as_str())
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Attached> {
        self.0.remove(id)
    }

    pub(super) fn tree(&self) -> BTreeMap<String, DeviceNode> {
        let node = |(id, device): (&String, &Attached)| {
            let node = DeviceNode {
                id: id.clone(),
                pci_bdf: device.place.bdf(),
                engine: match &device.kind {
                    Kind::Disk { watch, .. } => watch.engine().map(|engine| engine.to_string()),
                    Kind::Net { .. }
                    | Kind::Vsock(_)
                    | Kind::VhostUser(_)
                    | Kind::Console(_)
                    | Kind::Balloon { .. }
                    | Kind::Fixed => None,
                },
                ..DeviceNode::default()
            };
            (id.clone(), node)
        };
        self.0.iter().map(node).collect()
    }

    /// The counters with the names that Cloud Hypervisor's clients know, and ours.
    pub(super) fn counters(&self) -> Counters {
        let counters = |(id, device): (&String, &Attached)| {
            let counters = match &device.kind {
                Kind::Disk { metrics, .. } => disk_counters(metrics),
                Kind::Net { metrics, .. } => net_counters(metrics),
                Kind::Vsock(metrics) => vsock_counters(metrics),
                Kind::Console(metrics) => console_counters(metrics),
                Kind::VhostUser(backend) => vhost_user_counters(&backend.metrics()),
                Kind::Balloon { metrics, handle } => balloon::counters(metrics, handle),
                Kind::Fixed => return None,
            };
            Some((id.clone(), counters))
        };
        self.0.iter().filter_map(counters).collect()
    }

    /// The balloon's owner's side, if there is a balloon.
    pub(super) fn balloon(&self) -> Option<&BalloonHandle> {
        self.0.values().find_map(|device| match &device.kind {
            Kind::Balloon { handle, .. } => Some(handle),
            _ => None,
        })
    }

    pub(super) fn balloon_metrics(&self) -> Option<BalloonMetrics> {
        self.0.values().find_map(|device| match &device.kind {
            Kind::Balloon { metrics, handle } => Some(balloon::metrics(metrics, handle)),
            _ => None,
        })
    }

    pub(super) fn disks(&self) -> BTreeMap<String, DiskMetrics> {
        let metrics = |(id, device): (&String, &Attached)| match &device.kind {
            Kind::Disk { metrics, .. } => Some((id.clone(), disk_metrics(metrics))),
            _ => None,
        };
        self.0.iter().filter_map(metrics).collect()
    }

    pub(super) fn consoles(&self) -> BTreeMap<String, ConsoleMetrics> {
        let metrics = |(id, device): (&String, &Attached)| match &device.kind {
            Kind::Console(metrics) => Some((id.clone(), console_metrics(metrics))),
            _ => None,
        };
        self.0.iter().filter_map(metrics).collect()
    }

    pub(super) fn backends(&self) -> BTreeMap<String, BackendMetrics> {
        let metrics = |(id, device): (&String, &Attached)| match &device.kind {
            Kind::VhostUser(backend) => Some((id.clone(), backend_metrics(&backend.metrics()))),
            _ => None,
        };
        self.0.iter().filter_map(metrics).collect()
    }

    /// The state of the host's interface of each network.
    pub(super) fn ports(&self) -> impl Iterator<Item = (&str, PortState)> {
        self.0.iter().filter_map(|(id, device)| match &device.kind {
            Kind::Net { handle, .. } => Some((id.as_str(), handle.port())),
            _ => None,
        })
    }

    /// The limits of all disks.
    pub(super) fn disk_limits(&self) -> impl Iterator<Item = &BlockLimits> {
        self.0.values().filter_map(|device| match &device.kind {
            Kind::Disk { limits, .. } => Some(limits),
            _ => None,
        })
    }

    /// Takes what disks wait for the machine to be stopped for, with their names.
    pub(super) fn take_stop_causes(&self) -> Vec<(String, StopCause)> {
        let causes = self.0.iter().filter_map(|(id, device)| match &device.kind {
            Kind::Disk { watch, .. } => Some((id.clone(), watch.take_stop_cause()?)),
            _ => None,
        });
        causes.collect()
    }

    pub(super) fn vsocks(&self) -> BTreeMap<String, VsockMetrics> {
        let metrics = |(id, device): (&String, &Attached)| match &device.kind {
            Kind::Vsock(metrics) => Some((id.clone(), vsock_metrics(metrics))),
            _ => None,
        };
        self.0.iter().filter_map(metrics).collect()
    }

    pub(super) fn nets(&self) -> BTreeMap<String, NetMetrics> {
        let metrics = |(id, device): (&String, &Attached)| match &device.kind {
            Kind::Net { metrics, handle } => Some((id.clone(), net_metrics(metrics, handle))),
            _ => None,
        };
        self.0.iter().filter_map(metrics).collect()
    }
}

fn console_counters(metrics: &ConsoleCounters) -> BTreeMap<String, u64> {
    named([
        ("rx_bytes", &metrics.rx_bytes),
        ("tx_bytes", &metrics.tx_bytes),
        ("tx_waits", &metrics.tx_waits),
        ("control_messages", &metrics.control_messages),
        ("refused_messages", &metrics.refused_messages),
        ("malformed", &metrics.malformed),
    ])
}

fn console_metrics(metrics: &ConsoleCounters) -> ConsoleMetrics {
    ConsoleMetrics {
        rx_bytes: get(&metrics.rx_bytes),
        tx_bytes: get(&metrics.tx_bytes),
        tx_waits: get(&metrics.tx_waits),
        errors: causes([
            ("refused", &metrics.refused_messages),
            ("malformed", &metrics.malformed),
            ("broken_ring", &metrics.broken_rings),
        ]),
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn named<const N: usize>(counters: [(&str, &AtomicU64); N]) -> BTreeMap<String, u64> {
    let value = |(name, counter): (&str, &AtomicU64)| (name.to_owned(), get(counter));
    counters.into_iter().map(value).collect()
}

fn causes<const N: usize>(
    counters: [(&'static str, &AtomicU64); N],
) -> BTreeMap<&'static str, u64> {
    counters.map(|(name, counter)| (name, get(counter))).into()
}

fn disk_counters(metrics: &BlockMetrics) -> BTreeMap<String, u64> {
    named([
        ("read_bytes", &metrics.read_bytes),
        ("write_bytes", &metrics.write_bytes),
        ("read_ops", &metrics.reads),
        ("write_ops", &metrics.writes),
        ("flush_ops", &metrics.flushes),
        ("discard_bytes", &metrics.discard_bytes),
        ("discard_ops", &metrics.discards),
        ("write_zeroes_bytes", &metrics.zero_write_bytes),
        ("write_zeroes_ops", &metrics.zero_writes),
        ("in_flight", &metrics.in_flight),
        ("host_errors", &metrics.host_errors),
        ("refused", &metrics.refused),
        ("stops", &metrics.stops),
    ])
}

fn net_counters(metrics: &NetCounters) -> BTreeMap<String, u64> {
    named([
        ("rx_bytes", &metrics.rx_bytes),
        ("rx_frames", &metrics.rx_packets),
        ("tx_bytes", &metrics.tx_bytes),
        ("tx_frames", &metrics.tx_packets),
        ("rx_too_long", &metrics.rx_too_long),
        ("rx_filtered", &metrics.rx_filtered),
        ("rx_link_down", &metrics.rx_link_down),
        ("rx_host_errors", &metrics.rx_errors),
        ("rx_malformed", &metrics.rx_malformed),
        ("rx_no_buffers", &metrics.rx_starved),
        ("rx_held_back", &metrics.rx_held_back),
        ("tx_malformed", &metrics.tx_malformed),
        ("tx_too_long", &metrics.tx_too_long),
        ("tx_refused", &metrics.tx_refused),
        ("tx_link_down", &metrics.tx_link_down),
        ("tx_no_room", &metrics.tx_blocked),
        ("tx_held_back", &metrics.tx_held_back),
        ("link_downs", &metrics.link_downs),
        ("commands", &metrics.control_commands),
        ("refused_commands", &metrics.control_refused),
        ("malformed_commands", &metrics.control_malformed),
    ])
}

fn vhost_user_counters(metrics: &VhostUserMetrics) -> BTreeMap<String, u64> {
    named([
        ("connected", &metrics.connected),
        ("connections", &metrics.connections),
        ("losses", &metrics.losses),
        ("broken_rings", &metrics.broken_rings),
    ])
}

fn vsock_counters(metrics: &VsockCounters) -> BTreeMap<String, u64> {
    named([
        ("connections", &metrics.connections),
        ("host_connections", &metrics.host_connections),
        ("guest_connections", &metrics.guest_connections),
        ("refused_connections", &metrics.refused_connections),
        ("guest_resets", &metrics.guest_resets),
        ("host_resets", &metrics.host_resets),
        ("violations", &metrics.tx_violations),
        ("malformed", &metrics.tx_malformed),
        ("rx_bytes", &metrics.rx_bytes),
        ("rx_packets", &metrics.rx_packets),
        ("tx_bytes", &metrics.tx_bytes),
        ("tx_packets", &metrics.tx_packets),
    ])
}

fn disk_metrics(metrics: &BlockMetrics) -> DiskMetrics {
    let time = |nanoseconds: &AtomicU64| Duration::from_nanos(get(nanoseconds));
    DiskMetrics {
        in_flight: get(&metrics.in_flight),
        reads: get(&metrics.reads),
        read_bytes: get(&metrics.read_bytes),
        read_time: time(&metrics.read_nanoseconds),
        writes: get(&metrics.writes),
        write_bytes: get(&metrics.write_bytes),
        write_time: time(&metrics.write_nanoseconds),
        flushes: get(&metrics.flushes),
        flush_time: time(&metrics.flush_nanoseconds),
        discards: get(&metrics.discards),
        discard_bytes: get(&metrics.discard_bytes),
        discard_time: time(&metrics.discard_nanoseconds),
        zero_writes: get(&metrics.zero_writes),
        zero_write_bytes: get(&metrics.zero_write_bytes),
        zero_write_time: time(&metrics.zero_write_nanoseconds),
        stops: get(&metrics.stops),
        errors: causes([
            ("unsupported", &metrics.unsupported),
            ("refused", &metrics.refused),
            ("host_error", &metrics.host_errors),
            ("malformed", &metrics.malformed),
            ("broken_ring", &metrics.broken_rings),
        ]),
    }
}

fn backend_metrics(metrics: &VhostUserMetrics) -> BackendMetrics {
    BackendMetrics {
        connected: get(&metrics.connected),
        connections: get(&metrics.connections),
        losses: get(&metrics.losses),
        broken_rings: get(&metrics.broken_rings),
    }
}

fn net_metrics(metrics: &NetCounters, handle: &NetHandle) -> NetMetrics {
    NetMetrics {
        rx_packets: get(&metrics.rx_packets),
        rx_bytes: get(&metrics.rx_bytes),
        tx_packets: get(&metrics.tx_packets),
        tx_bytes: get(&metrics.tx_bytes),
        link_up: handle.is_link_up(),
        link_downs: get(&metrics.link_downs),
        rx_waits: causes([
            ("no_buffers", &metrics.rx_starved),
            ("rate_limit", &metrics.rx_held_back),
        ]),
        tx_waits: causes([
            ("no_room", &metrics.tx_blocked),
            ("rate_limit", &metrics.tx_held_back),
        ]),
        commands: causes([
            ("done", &metrics.control_commands),
            ("refused", &metrics.control_refused),
            ("malformed", &metrics.control_malformed),
        ]),
        rx_errors: causes([
            ("too_long", &metrics.rx_too_long),
            ("filtered", &metrics.rx_filtered),
            ("link_down", &metrics.rx_link_down),
            ("host_error", &metrics.rx_errors),
            ("malformed", &metrics.rx_malformed),
        ]),
        tx_errors: causes([
            ("malformed", &metrics.tx_malformed),
            ("too_long", &metrics.tx_too_long),
            ("refused", &metrics.tx_refused),
            ("link_down", &metrics.tx_link_down),
        ]),
    }
}

fn vsock_metrics(metrics: &VsockCounters) -> VsockMetrics {
    VsockMetrics {
        connections: get(&metrics.connections),
        opened: causes([
            ("host", &metrics.host_connections),
            ("guest", &metrics.guest_connections),
        ]),
        failed: causes([
            ("refused", &metrics.refused_connections),
            ("guest_reset", &metrics.guest_resets),
            ("host_reset", &metrics.host_resets),
        ]),
        rx_packets: get(&metrics.rx_packets),
        rx_bytes: get(&metrics.rx_bytes),
        tx_packets: get(&metrics.tx_packets),
        tx_bytes: get(&metrics.tx_bytes),
        waits: causes([
            ("no_buffers", &metrics.rx_starved),
            ("no_answers", &metrics.tx_blocked),
        ]),
        errors: causes([
            ("malformed_buffer", &metrics.rx_malformed),
            ("malformed_packet", &metrics.tx_malformed),
            ("unknown_connection", &metrics.tx_unknown),
            ("violation", &metrics.tx_violations),
            ("broken_ring", &metrics.broken_rings),
        ]),
    }
}
