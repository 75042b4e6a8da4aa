//! Times the calls of the API through the life of one VM, under Podvisor and, where `CLOUD_HYPERVISOR` names its binary,
//! under Cloud Hypervisor in the same run: one client, one body, one kernel.
//!
//! usage: lifecycle [RUNS]   (from `./tests/run bench`, which enters the lab where it must)

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::client::Client;
use serde_json::{Value, json};
use tests::assets;
use tests::report::{self, Figure, Row};

const LIMIT: Duration = Duration::from_secs(60);

const FIGURES: [Figure; 10] = [
    ("start to API", "ms"),
    ("vm.create", "ms"),
    ("vm.boot", "ms"),
    ("vm.info", "ms"),
    ("vm.pause", "ms"),
    ("vm.resume", "ms"),
    ("vm.add-disk", "ms"),
    ("vm.reboot", "ms"),
    ("vm.shutdown", "ms"),
    ("vmm.shutdown to exit", "ms"),
];

struct Peer {
    name: &'static str,
    binary: PathBuf,
}

fn main() -> Result<()> {
    // Cargo adds flags such as --bench.
    let runs = env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(5);
    let mut peers = vec![Peer {
        name: "podvisor",
        binary: assets::podvisor()?,
    }];
    if let Some(binary) = env::var_os("CLOUD_HYPERVISOR") {
        peers.push(Peer {
            name: "cloud-hypervisor",
            binary: binary.into(),
        });
    }
    let mut rows: Vec<_> = peers
        .iter()
        .map(|peer| Row::new(peer.name, &FIGURES))
        .collect();
    for run in 0..=runs {
        for (peer, row) in peers.iter().zip(&mut rows) {
            let times = life(peer).with_context(|| peer.name)?;
            eprintln!("{run}/{runs} {:20} {times:7.2?} ms", peer.name);
            // The first run fills caches.
            if run > 0 {
                row.push(times);
            }
        }
    }
    print!("{}", report::table(&FIGURES, &rows));
    let results = env::var_os("LAB_RESULTS").unwrap_or_else(|| "target".into());
    fs::create_dir_all(&results)?;
    let json = report::json(&FIGURES, &rows, runs);
    fs::write(
        Path::new(&results).join("lifecycle.json"),
        serde_json::to_string_pretty(&json)?,
    )?;
    Ok(())
}

/// One VM from the start of its VMM to the end, in the order of [`FIGURES`].
fn life(peer: &Peer) -> Result<[f64; FIGURES.len()]> {
    let scratch = tempfile::tempdir()?;
    let disk = scratch.path().join("disk");
    fs::File::create(&disk)?.set_len(1 << 20)?;
    let socket = scratch.path().join("api");
    let started = Instant::now();
    let mut child = Command::new(&peer.binary)
        .arg("--api-socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(scratch.path().join("log"))?)
        .spawn()
        .with_context(|| format!("cannot start {}", peer.binary.display()))?;
    let result = calls(&Client::new(socket), &disk, started, &mut child);
    if result.is_err() {
        // Nothing is left to do for one that has ended.
        let _ = child.kill();
        let _ = child.wait();
        eprintln!("{}", fs::read_to_string(scratch.path().join("log"))?);
    }
    result
}

fn calls(
    client: &Client,
    disk: &Path,
    started: Instant,
    child: &mut Child,
) -> Result<[f64; FIGURES.len()]> {
    while client.ping().is_err() {
        ensure!(started.elapsed() < LIMIT, "the API does not answer");
        thread::sleep(Duration::from_micros(200));
    }
    let answered = millis(started);
    let put = |verb: &str, body: Option<Value>| -> Result<f64> {
        let begun = Instant::now();
        match body {
            Some(body) => drop(client.put_with(verb, &body, &[]).context(verb.to_owned())?),
            None => client.put(verb).context(verb.to_owned())?,
        }
        Ok(millis(begun))
    };
    let machine = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 128 << 20},
        "payload": {
            "kernel": assets::vmlinux()?,
            "initramfs": assets::initramfs()?,
            "cmdline": "console=ttyS0 quiet panic=-1",
        },
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    });
    let create = put("vm.create", Some(machine))?;
    let boot = put("vm.boot", None)?;
    let begun = Instant::now();
    client.info()?;
    let info = millis(begun);
    let pause = put("vm.pause", None)?;
    let resume = put("vm.resume", None)?;
    let add = put("vm.add-disk", Some(json!({"path": disk, "id": "added"})))?;
    let reboot = put("vm.reboot", None)?;
    let shutdown = put("vm.shutdown", None)?;
    let begun = Instant::now();
    client.put("vmm.shutdown")?;
    while child.try_wait()?.is_none() {
        if begun.elapsed() > LIMIT {
            bail!("the VMM did not end");
        }
        thread::sleep(Duration::from_micros(200));
    }
    let end = millis(begun);
    Ok([
        answered, create, boot, info, pause, resume, add, reboot, shutdown, end,
    ])
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
