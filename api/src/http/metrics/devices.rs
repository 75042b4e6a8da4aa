//! The families of each kind of device.

use super::*;

type Disks = BTreeMap<String, DiskMetrics>;

pub(super) fn disks(encoder: &mut DescriptorEncoder<'_>, disks: &Disks) -> fmt::Result {
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

pub(super) fn nets(encoder: &mut DescriptorEncoder<'_>, nets: &Nets) -> fmt::Result {
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

pub(super) fn backends(
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

pub(super) fn balloon(
    encoder: &mut DescriptorEncoder<'_>,
    balloon: &BalloonMetrics,
) -> fmt::Result {
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

pub(super) fn vsocks(encoder: &mut DescriptorEncoder<'_>, vsocks: &Vsocks) -> fmt::Result {
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

pub(super) fn consoles(encoder: &mut DescriptorEncoder<'_>, consoles: &Consoles) -> fmt::Result {
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
