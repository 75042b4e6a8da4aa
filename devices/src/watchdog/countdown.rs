//! The timer behind the registers.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events};
use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::platform::{Platform, PlatformEvent};
use crate::virtio::Handler;

/// Frequency of the PCI clock, of which a tick is a multiple.
const PCI_CLOCK: u64 = 33_000_000;

/// One of the two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    First,
    Second,
}

/// How it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mode {
    /// Ticks of 2^5 cycles of the PCI clock, about a microsecond, instead of 2^15, about a millisecond.
    pub(super) fast: bool,
    /// There is no first stage.
    pub(super) free_running: bool,
    /// The end of the second stage does nothing but that it can be read.
    pub(super) silent: bool,
}

/// What is saved of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    pub(super) stage: Stage,
    /// What is left of the stage.
    pub(super) left: Duration,
}

/// The end of the stage that is counted.
#[derive(Clone, Copy, Debug)]
enum End {
    At(Instant),
    /// The machine is paused.
    In(Duration),
}

/// The count, which the registers change and a thread waits for.
pub(super) struct Countdown {
    timer: TimerFd,
    /// Ticks of each stage.
    pub(super) preload: [u32; 2],
    pub(super) mode: Mode,
    running: Option<(Stage, End)>,
    paused: bool,
    /// A second stage came to its end, which is kept over resets of the machine.
    expired: Arc<AtomicBool>,
    platform: Arc<dyn Platform>,
}

impl Countdown {
    /// Does not count, and is paused.
    pub(super) fn new(
        preload: u32,
        expired: Arc<AtomicBool>,
        platform: Arc<dyn Platform>,
    ) -> io::Result<Self> {
        Ok(Self {
            timer: TimerFd::new().map_err(host_error)?,
            preload: [preload; 2],
            mode: Mode::default(),
            running: None,
            paused: true,
            expired,
            platform,
        })
    }

    /// Counts from the beginning.
    pub(super) fn start(&mut self) {
        let stage = if self.mode.free_running {
            Stage::Second
        } else {
            Stage::First
        };
        self.begin(stage, self.length(stage));
    }

    pub(super) fn stop(&mut self) {
        self.running = None;
        self.arm();
    }

    pub(super) fn pause(&mut self) {
        if let Some((_, end)) = &mut self.running
            && let End::At(at) = *end
        {
            *end = End::In(at.saturating_duration_since(Instant::now()));
        }
        self.paused = true;
        self.arm();
    }

    pub(super) fn resume(&mut self) {
        self.paused = false;
        if let Some((stage, End::In(left))) = self.running {
            self.begin(stage, left);
        }
    }

    /// What is counted now.
    pub(super) fn count(&self) -> Option<Count> {
        self.running.map(|(stage, end)| Count {
            stage,
            left: match end {
                End::At(at) => at.saturating_duration_since(Instant::now()),
                End::In(left) => left,
            },
        })
    }

    /// Goes on with `count`, in a machine that is paused.
    pub(super) fn set_count(&mut self, count: Option<Count>) {
        self.running = count.map(|Count { stage, left }| (stage, End::In(left)));
    }

    /// Whether a second stage came to its end since that was cleared.
    pub(super) fn expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    pub(super) fn set_expired(&self, expired: bool) {
        self.expired.store(expired, Ordering::Release);
    }

    fn length(&self, stage: Stage) -> Duration {
        let shift = if self.mode.fast { 5 } else { 15 };
        // 20 bits.
        let ticks = u64::from(self.preload[stage as usize]).max(1);
        Duration::from_nanos((ticks << shift) * 1000 / (PCI_CLOCK / 1_000_000))
    }

    fn begin(&mut self, stage: Stage, left: Duration) {
        let end = if self.paused {
            End::In(left)
        } else {
            End::At(Instant::now() + left)
        };
        self.running = Some((stage, end));
        self.arm();
    }

    /// Lets the timer end with the stage, or never. What it had counted is forgotten.
    fn arm(&mut self) {
        let result = match self.running {
            Some((_, End::At(at))) => {
                // No time at all would switch it off.
                let left = at.saturating_duration_since(Instant::now());
                self.timer.reset(left.max(Duration::from_nanos(1)), None)
            }
            _ => self.timer.clear(),
        };
        if let Err(error) = result {
            // A timer that is there takes any time.
            tracing::error!(%error, "cannot set the timer of the watchdog");
        }
    }

    /// The timer woke somebody: the stage has come to its end, unless the count was changed just now.
    fn wake(&mut self) {
        let Some((stage, End::At(at))) = self.running else {
            return;
        };
        if at > Instant::now() {
            self.arm();
            return;
        }
        match stage {
            Stage::First => self.begin(Stage::Second, self.length(Stage::Second)),
            Stage::Second => {
                self.stop();
                self.set_expired(true);
                if !self.mode.silent {
                    self.platform.raise(PlatformEvent::WatchdogExpired);
                }
            }
        }
    }
}

fn host_error(error: vmm_sys_util::errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// The countdown as the registers and the thread hold it. The lock is held for a few instructions.
pub(super) type SharedCountdown = Arc<Mutex<Countdown>>;

pub(super) fn lock(countdown: &SharedCountdown) -> MutexGuard<'_, Countdown> {
    countdown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the timer.
pub(super) struct Waiter(pub(super) SharedCountdown);

impl Handler for Waiter {
    fn init(&mut self, ops: &mut EventOps) {
        // The descriptor lives as long as the countdown does.
        ops.add(Events::new(&lock(&self.0).timer, EventSet::IN))
            .expect("a new epoll instance takes a timerfd");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // The timer is not read: setting it anew, or switching it off, takes its readiness away.
        lock(&self.0).wake();
    }

    fn drain(&mut self) {}
}
