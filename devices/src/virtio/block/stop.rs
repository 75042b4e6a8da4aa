//! Errors of the host that stop the machine in place of reaching the driver.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::EngineKind;
use super::slot::Work;
use crate::platform::{Platform, PlatformEvent};

/// Which errors that the host reports for writes, discards and zeroing stop the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopOnWrite {
    /// None.
    #[default]
    Never,
    /// Those that tell of a lack of space: ENOSPC and EDQUOT.
    NoSpace,
    /// All.
    Any,
}

/// Which errors that the host reports stop the machine. Others reach the driver as VIRTIO_BLK_S_IOERR.
///
/// A flush that fails always reaches the driver: the host has forgotten by then what it could not make durable, and would
/// let a second flush succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopOn {
    /// Errors of reads.
    pub reads: bool,
    /// Errors of writes, discards and zeroing.
    pub writes: StopOnWrite,
}

impl StopOn {
    fn includes(self, work: Work, error: &io::Error) -> bool {
        match work {
            Work::Read { .. } => self.reads,
            Work::Flush => false,
            Work::Write { .. } | Work::Discard | Work::WriteZeroes => match self.writes {
                StopOnWrite::Never => false,
                StopOnWrite::NoSpace => {
                    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
                }
                StopOnWrite::Any => true,
            },
        }
    }
}

/// Why a device waits for the machine to stop, and to go on again.
#[derive(Debug)]
pub struct StopCause {
    /// What failed, as in `write` or `write-zeroes`.
    pub operation: &'static str,
    /// What the host said.
    pub error: io::Error,
}

/// What can be seen of a block device from outside, whatever it does at that time.
#[derive(Debug, Default)]
pub struct BlockWatch(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    engine: Option<EngineKind>,
    cause: Option<StopCause>,
}

impl BlockWatch {
    /// How transfers are carried out; none before the first start. If queues differ, it is that of the last one.
    pub fn engine(&self) -> Option<EngineKind> {
        self.seen().engine
    }

    /// Takes why the device waits for the machine to stop: the first error since it was asked last.
    pub fn take_stop_cause(&self) -> Option<StopCause> {
        self.seen().cause.take()
    }

    /// Notes the engine in use, and tells whether it is another one.
    pub(super) fn note_engine(&self, engine: EngineKind) -> bool {
        self.seen().engine.replace(engine) != Some(engine)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides what stops the machine, and says so.
#[derive(Clone)]
pub(super) struct Stopper {
    pub(super) on: StopOn,
    pub(super) platform: Arc<dyn Platform>,
    pub(super) watch: Arc<BlockWatch>,
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stopper").field(&self.on).finish()
    }
}

impl Stopper {
    /// Whether `work`, which failed with `error`, waits for the machine to go on. Its owner is told to stop it then, and not
    /// waited for.
    pub(super) fn stops(&self, work: Work, error: &io::Error) -> bool {
        if !self.on.includes(work, error) {
            return false;
        }
        self.watch.seen().cause.get_or_insert_with(|| StopCause {
            operation: work.name(),
            error: match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => error.kind().into(),
            },
        });
        self.platform.raise(PlatformEvent::DiskStopped);
        true
    }
}
