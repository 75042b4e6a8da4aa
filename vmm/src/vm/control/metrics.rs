//! What is measured of the process and of the machine in it.

use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

use api::metrics::Metrics;

use super::{Control, Slot};

impl Control {
    /// Everything as of now.
    pub(super) fn metrics(&self) -> Metrics {
        let mut metrics = Metrics {
            process_cpu_time: cpu_time(),
            ..Metrics::default()
        };
        metrics.memory.resident = resident().unwrap_or_default();
        if let Slot::Live(live) = &self.slot {
            live.machine().measure(&mut metrics);
        }
        metrics
    }
}

/// CPU time of the process.
fn cpu_time() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the clock exists on every Linux, and `time` is a place for one timespec, whose all-zero form is valid.
    #[expect(unsafe_code)]
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr());
        time.assume_init()
    };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Bytes of the process in the host's memory (proc(5), statm); none without /proc.
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: the call has no conditions.
    #[expect(unsafe_code)]
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page_size).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_used_time() {
        assert!(resident().unwrap() > 100_000);
        assert!(cpu_time() > Duration::ZERO);
    }
}
