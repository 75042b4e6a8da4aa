//! What is measured of a vCPU.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Exits to the VMM by kind. Written by the vCPU's thread alone.
#[derive(Debug, Default)]
pub(super) struct ExitCounters {
    /// A port was read or written.
    pub(super) io: AtomicU64,
    /// An address without RAM was read or written.
    pub(super) mmio: AtomicU64,
    /// The thread was kicked.
    pub(super) interrupted: AtomicU64,
    /// Everything else.
    pub(super) other: AtomicU64,
}

impl ExitCounters {
    pub(super) fn count(counter: &AtomicU64) {
        // One writer: no read-modify-write is needed.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(super) fn by_kind(&self) -> BTreeMap<&'static str, u64> {
        let Self {
            io,
            mmio,
            interrupted,
            other,
        } = self;
        [
            ("io", io),
            ("mmio", mmio),
            ("interrupted", interrupted),
            ("other", other),
        ]
        .map(|(kind, counter)| (kind, counter.load(Ordering::Relaxed)))
        .into()
    }
}

/// CPU time of `thread`, which was not joined; none after its end.
pub(super) fn cpu_time(thread: &JoinHandle<()>) -> Duration {
    if thread.is_finished() {
        return Duration::ZERO;
    }
    let mut clock = MaybeUninit::<libc::clockid_t>::uninit();
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the thread was not joined, so its handle is valid, and both places are large enough. The clock of a thread
    // that ended meanwhile is refused by the second call.
    #[expect(unsafe_code)]
    unsafe {
        if libc::pthread_getcpuclockid(thread.as_pthread_t(), clock.as_mut_ptr()) != 0
            || libc::clock_gettime(clock.assume_init(), time.as_mut_ptr()) != 0
        {
            return Duration::ZERO;
        }
        let time = time.assume_init();
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
    }
}
