//! Boots the same kernel and userland under Podvisor and its peers in turn, and compares.
//!
//! usage: boot [RUNS]   (from `./tests/run bench`, which enters the lab where it must)
//!
//! The spans are read from KVM's own tracepoints, so that no VMM has to help: the first entry into the guest, the first
//! exit of the kernel, the first process's write to an address without memory, and the end of the VMM's process. Memory is sampled
//! in runs of their own, whose guest idles for a while.

mod memory;
mod peers;
mod trace;

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use peers::{MEMORY, Payload, Peer};
use tests::report::{self, Figure, Row};
use trace::Trace;

const LIMIT: Duration = Duration::from_secs(120);
const SETTLE: u32 = 3;

const FIGURES: [Figure; 6] = [
    ("start to KVM_RUN", "ms"),
    ("start to kernel", "ms"),
    ("start to /init", "ms"),
    ("start to exit", "ms"),
    ("peak overhead", "KiB"),
    ("settled overhead", "KiB"),
];

fn main() -> Result<()> {
    // Cargo adds flags such as --bench.
    let runs = env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(5);
    let scratch = tempfile::tempdir()?;
    let payload = payload(scratch.path())?;
    let trace = Trace::new()?;
    let peers = peers::peers()?;
    let mut rows: Vec<_> = peers
        .iter()
        .map(|peer| Row::new(peer.name, &FIGURES))
        .collect();

    // In turn, so that a change of the machine's own speed meets all of them.
    for run in 0..=runs {
        for (peer, row) in peers.iter().zip(&mut rows) {
            let spans = boot(peer, &payload, &trace).with_context(|| peer.name)?;
            let memory = settle(peer, &payload, &trace).with_context(|| peer.name)?;
            eprintln!(
                "{run}/{runs} {:26} {spans:7.1?} ms {memory:7.0?} KiB",
                peer.name
            );
            // The first run fills caches.
            if run > 0 {
                row.push(spans.into_iter().chain(memory));
            }
        }
    }

    print!("{}", report::table(&FIGURES, &rows));
    let results = env::var_os("LAB_RESULTS").unwrap_or_else(|| "target".into());
    fs::create_dir_all(&results)?;
    let path = Path::new(&results).join("boot.json");
    fs::write(
        &path,
        serde_json::to_string_pretty(&report::json(&FIGURES, &rows, runs))?,
    )?;
    Ok(())
}

/// Milliseconds from the start of the process to the first KVM_RUN, the kernel, /init and the end of the process.
fn boot(peer: &Peer, payload: &Payload, trace: &Trace) -> Result<[f64; 4]> {
    trace.start()?;
    let before = now();
    let mut child = start(peer, payload, 0)?;
    wait(&mut child)?;
    let end = now();
    let moments = trace.moments()?;
    let spans = [moments.first_run, moments.kernel, moments.init, end];
    Ok(spans.map(|moment| (moment - before) * 1e3))
}

/// The most anonymous memory the VMM had for itself, and what it has while its guest idles, in KiB.
fn settle(peer: &Peer, payload: &Payload, trace: &Trace) -> Result<[f64; 2]> {
    trace.start()?;
    let mut child = start(peer, payload, SETTLE)?;
    let mut peak = 0;
    let sample = |child: &Child| memory::overhead(child.id(), MEMORY * 1024).unwrap_or(0);
    let until = Instant::now() + LIMIT;
    while !trace.init_runs() {
        ensure!(
            child.try_wait()?.is_none(),
            "the VMM ended before its guest's /init ran"
        );
        ensure!(
            Instant::now() < until,
            "the guest did not reach /init in {LIMIT:?}"
        );
        peak = peak.max(sample(&child));
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(u64::from(SETTLE) - 1));
    let settled = memory::overhead(child.id(), MEMORY * 1024)?;
    wait(&mut child)?;
    Ok([peak.max(settled) as f64, settled as f64])
}

fn start(peer: &Peer, payload: &Payload, settle: u32) -> Result<Child> {
    let log = File::create(payload.scratch.join("log"))?;
    peer.command(payload, settle)?
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the VMM")
}

fn wait(child: &mut Child) -> Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "the VMM ended with {status}");
            return Ok(());
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("the VMM did not end in {LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kernel and userland in memory, so that no VMM waits for a disk.
fn payload(scratch: &Path) -> Result<Payload> {
    let copy = |from: &Path, name: &str| -> Result<_> {
        let to = scratch.join(name);
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(to)
    };
    let init =
        env::var_os("BENCH_INIT").context("BENCH_INIT is not set; run: ./tests/run bench")?;
    let root = scratch.join("root");
    fs::create_dir_all(root.join("proc"))?;
    fs::copy(&init, root.join("init"))?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let initramfs = scratch.join("initramfs");
    let archive = File::create(&initramfs)?;
    let mut cpio = std::process::Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(archive)
        .spawn()
        .context("install cpio with: apt-get install cpio")?;
    let mut names = cpio.stdin.take().context("standard input is a pipe")?;
    std::io::Write::write_all(&mut names, b".\nproc\ninit\n")?;
    drop(names);
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(Payload {
        vmlinux: copy(&tests::assets::vmlinux()?, "vmlinux")?,
        bzimage: copy(&tests::assets::bzimage()?, "bzimage")?,
        initramfs,
        scratch: scratch.to_owned(),
    })
}

/// CLOCK_MONOTONIC in seconds, as the trace tells it.
fn now() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec that outlives the call.
    #[expect(unsafe_code)]
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
    }
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
