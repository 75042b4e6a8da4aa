//! What the VMM answers, for a person.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use api::config::{ByteSize, ConsoleOutputMode, DiskConfig, NetConfig};
use api::event::Event;
use api::request::{Counters, PciDeviceInfo, PingInfo, VmInfo};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

pub(super) fn ping(ping: &PingInfo) -> String {
    format!("{}, process {}", ping.build_version, ping.pid)
}

pub(super) fn device(device: &PciDeviceInfo) -> String {
    format!("{} {}", device.id, device.bdf)
}

/// A line: when, since the start of the VMM, what it happened to, what happened, and more about it.
pub(super) fn event(event: &Event) -> String {
    let time = event.timestamp;
    let mut line = format!(
        "{:>5}.{:06} {} {}",
        time.as_secs(),
        time.subsec_micros(),
        event.source,
        event.event
    );
    for (name, value) in event.properties.iter().flatten() {
        // There is no error to be had from a String.
        let _ = write!(line, " {name}={value}");
    }
    line
}

/// The line of JSON that it came as.
pub(super) fn json(event: &Event) -> String {
    // Events consist of strings and numbers, which JSON can always say.
    serde_json::to_string(event).unwrap_or_default()
}

pub(super) fn counters(counters: &Counters) -> String {
    let mut table = table();
    table.set_header(["id", "counter", "value"]);
    for (id, of_device) in counters {
        for (name, value) in of_device {
            table.add_row([id.as_str(), name, &value.to_string()]);
        }
    }
    if let Some(values) = table.column_mut(2) {
        values.set_cell_alignment(CellAlignment::Right);
    }
    lines(&table)
}

pub(super) fn info(info: &VmInfo) -> String {
    let config = &info.config;
    let mut facts = table();
    facts.add_row(["state", &info.state.to_string()]);
    let (vcpus, most) = (config.cpus.boot_vcpus, config.cpus.max_vcpus);
    facts.add_row(["cpus", &at_most(&vcpus, (most > vcpus).then_some(&most))]);
    let memory = ByteSize(info.memory_actual_size);
    let hotplug = config.memory.hotplug_size.filter(|size| size.bytes() > 0);
    let most =
        hotplug.map(|size| ByteSize(config.memory.size.bytes().saturating_add(size.bytes())));
    facts.add_row(["memory", &at_most(&memory, most.as_ref())]);
    let payload = &config.payload;
    match &payload.boot_disk {
        Some(boot_disk) => facts.add_row(["boot disk", boot_disk]),
        None => facts.add_row(["kernel", &backing(payload.kernel.as_deref())]),
    };
    if let Some(initramfs) = &payload.initramfs {
        facts.add_row(["initramfs", &initramfs.display().to_string()]);
    }
    if let Some(cmdline) = &payload.cmdline {
        facts.add_row(["cmdline", cmdline]);
    }
    let line = &config.serial;
    let serial = line_end(line.mode, &line.file, &line.socket);
    facts.add_row(["serial", &serial]);
    let line = &config.console;
    if line.mode != ConsoleOutputMode::Off {
        let console = line_end(line.mode, &line.file, &line.socket);
        facts.add_row(["console", &console]);
    }
    for port in line.ports.iter().flatten() {
        let end = line_end(port.mode, &port.file, &port.socket);
        facts.add_row(["port", &format!("{} {end}", port.name)]);
    }
    format!("{}\n\n{}", lines(&facts), devices(info))
}

fn devices(info: &VmInfo) -> String {
    let mut table = table();
    table.set_header(["id", "device", "bdf", "backed by"]);
    let config = &info.config;
    let bdf = |id: &str| {
        let node = info.device_tree.as_ref().and_then(|tree| tree.get(id));
        let bdf = node.and_then(|node| node.pci_bdf.as_deref());
        bdf.unwrap_or("-").to_owned()
    };
    let mut add = |id: &Option<String>, kind: &str, backed_by: &str| {
        let id = id.as_deref().unwrap_or("-");
        table.add_row([id, kind, &bdf(id), backed_by]);
    };
    for config in &config.disks {
        add(&config.id, "disk", &disk(config));
    }
    for config in &config.net {
        add(&config.id, "net", &net(config));
    }
    let rng = &config.rng;
    add(&rng.id, "rng", &rng.src.display().to_string());
    let console = &config.console;
    if console.mode != ConsoleOutputMode::Off {
        let end = line_end(console.mode, &console.file, &console.socket);
        add(&console.id, "console", &end);
    }
    lines(&table)
}

fn disk(config: &DiskConfig) -> String {
    let mut text = backing(config.path.as_deref());
    if config.readonly {
        text.push_str(", read-only");
    }
    text
}

fn net(config: &NetConfig) -> String {
    let mut text = match &config.tap {
        Some(tap) => format!("tap {tap}"),
        None => "tap".to_owned(),
    };
    if let Some(mac) = config.mac {
        // There is no error to be had from a String.
        let _ = write!(text, ", mac {mac}");
    }
    text
}

/// The other end of a serial port, a console or a port.
fn line_end(mode: ConsoleOutputMode, file: &Option<PathBuf>, socket: &Option<PathBuf>) -> String {
    let path = match mode {
        ConsoleOutputMode::File | ConsoleOutputMode::Pty => file,
        ConsoleOutputMode::Socket => socket,
        _ => &None,
    };
    let mode = format!("{mode:?}").to_lowercase();
    match path {
        Some(path) => format!("{mode} {}", path.display()),
        None => mode,
    }
}

/// The file, or what stands for it where there is no path.
fn backing(path: Option<&Path>) -> String {
    path.map_or("a passed descriptor".to_owned(), |path| {
        path.display().to_string()
    })
}

fn at_most<T: ToString>(value: &T, most: Option<&T>) -> String {
    match most {
        None => value.to_string(),
        Some(most) => format!("{}, at most {}", value.to_string(), most.to_string()),
    }
}

/// A table without lines. Nothing is wrapped: a path in two pieces can be neither copied nor searched for.
fn table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// The lines of a table, from their first character to their last.
fn lines(table: &Table) -> String {
    let lines: Vec<_> = table
        .lines()
        .map(|line| {
            line.strip_prefix(' ')
                .unwrap_or(&line)
                .trim_end()
                .to_owned()
        })
        .collect();
    lines.join("\n")
}
