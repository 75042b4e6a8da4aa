//! What the host's KVM did, by its tracepoints: the same clock and the same events for every VMM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const TRACING: &str = "/sys/kernel/tracing";

/// Physical addresses where the kernel starts, before it maps itself high: firmware is below or above them.
const EARLY_KERNEL: &str = "guest_rip >= 0x1000000 && guest_rip < 0xc0000000";

/// Seconds of CLOCK_MONOTONIC at which things happened first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    /// A vCPU entered the guest.
    pub(crate) first_run: f64,
    /// The guest's kernel made an exit, which it does for CPUID in its first instructions.
    pub(crate) kernel: f64,
    /// The guest's first process wrote its mark.
    pub(crate) init: f64,
}

/// Buffers that keep the first events of a kind, and drop the rest at no cost.
pub(crate) struct Trace {
    entries: Instance,
    exits: Instance,
    marks: Instance,
}

impl Trace {
    pub(crate) fn new() -> Result<Self> {
        if !Path::new(TRACING).join("instances").exists() {
            let status = Command::new("mount")
                .args(["-t", "tracefs", "none", TRACING])
                .status()?;
            ensure!(status.success(), "cannot mount tracefs: this needs root");
        }
        Ok(Self {
            entries: Instance::new("entries", "kvm_entry", "")?,
            exits: Instance::new("exits", "kvm_exit", EARLY_KERNEL)?,
            marks: Instance::new("marks", "kvm_mmio", "gpa == 0xc0000000 && val == 123")?,
        })
    }

    /// Forgets everything.
    pub(crate) fn start(&self) -> Result<()> {
        self.all().try_for_each(Instance::clear)
    }

    /// When each thing happened first since [`Trace::start`].
    pub(crate) fn moments(&self) -> Result<Moments> {
        Ok(Moments {
            first_run: self.entries.first()?,
            kernel: self.exits.first()?,
            init: self.marks.first()?,
        })
    }

    /// Whether the guest's first process has written its mark.
    pub(crate) fn init_runs(&self) -> bool {
        self.marks.first().is_ok()
    }

    fn all(&self) -> impl Iterator<Item = &Instance> {
        [&self.entries, &self.exits, &self.marks].into_iter()
    }
}

/// One event of KVM in a ring buffer of its own.
struct Instance {
    dir: PathBuf,
    event: &'static str,
}

impl Instance {
    fn new(name: &str, event: &'static str, filter: &str) -> Result<Self> {
        let dir = Path::new(TRACING).join("instances").join(name);
        if !dir.exists() {
            fs::create_dir(&dir).context("cannot make a trace instance")?;
        }
        let instance = Self { dir, event };
        instance.write("trace_clock", "mono")?;
        instance.write("options/overwrite", "0")?;
        instance.write("buffer_size_kb", "64")?;
        let events = format!("events/kvm/{event}");
        instance.write(
            &format!("{events}/filter"),
            if filter.is_empty() { "0" } else { filter },
        )?;
        instance.write(&format!("{events}/enable"), "1")?;
        Ok(instance)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, text)
            .with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }

    fn clear(&self) -> Result<()> {
        self.write("trace", "")
    }

    /// The time of the oldest event: `comm-pid [cpu] flags seconds: event: ...`.
    fn first(&self) -> Result<f64> {
        let trace = fs::read_to_string(self.dir.join("trace"))?;
        trace
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (before, _) = line.split_once(&format!(": {}:", self.event))?;
                before.split_whitespace().last()?.parse().ok()
            })
            .min_by(f64::total_cmp)
            .with_context(|| format!("KVM traced no {} of this guest", self.event))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // An instance that is left behind is taken over by the next run.
        let _ = self.write(&format!("events/kvm/{}/enable", self.event), "0");
        let _ = fs::remove_dir(&self.dir);
    }
}
