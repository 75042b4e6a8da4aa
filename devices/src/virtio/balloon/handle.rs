//! The owner's side of a balloon, and what it shares with the driver's.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::spec::{PAGE_SIZE, Statistics};
use crate::virtio::Interrupt;

/// What a balloon cannot be made with, or be asked for.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// The size cannot be.
    #[error("size is {0}, expected a multiple of {PAGE_SIZE}, below 16 TiB")]
    Size(u64),
    /// An eventfd cannot be had.
    #[error("cannot get an eventfd")]
    EventFd(#[source] io::Error),
}

/// The owner's side of a balloon: how large it is to be, how large it is, and what the guest tells of its memory. Clones are
/// the same device. Works from any thread, whether the device runs, is paused or has no driver, and never waits for the
/// guest.
#[derive(Clone, Debug)]
pub struct BalloonHandle(pub(super) Arc<Shared>);

impl BalloonHandle {
    /// Asks for a balloon of `size` bytes. The driver is told and does it in its own time, as far as it can; until then
    /// [`BalloonHandle::actual`] differs from [`BalloonHandle::target`]. A paused machine is told when it resumes.
    ///
    /// # Errors
    ///
    /// [`BalloonError::Size`]; what was asked for before stands.
    pub fn resize(&self, size: u64) -> Result<(), BalloonError> {
        let pages = to_pages(size)?;
        let mut driver = self.0.driver();
        if self.0.target.swap(pages, Ordering::AcqRel) == pages {
            return Ok(());
        }
        match &driver.interrupt {
            Some(interrupt) => interrupt.config_changed(),
            None => driver.untold = true,
        }
        Ok(())
    }

    /// Bytes that the balloon is to have.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// Bytes that the balloon has. That is what the driver says, which may say anything.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// What the driver told of its guest last. Where it is not asked for that in an interval, it is asked for it now, and
    /// the answer is found by the next call.
    pub fn statistics(&self) -> Statistics {
        if self.0.on_demand {
            // A full counter is readable all the same.
            let _ = self.0.ask.write(1);
        }
        *self.0.statistics()
    }
}

/// The pages of `size` bytes.
pub(super) fn to_pages(size: u64) -> Result<u32, BalloonError> {
    if !size.is_multiple_of(PAGE_SIZE) {
        return Err(BalloonError::Size(size));
    }
    u32::try_from(size / PAGE_SIZE).map_err(|_| BalloonError::Size(size))
}

/// What the worker, the registers and the owner see. Each lock is held for a few instructions.
#[derive(Debug)]
pub(super) struct Shared {
    /// Pages that the balloon is to have.
    pub(super) target: AtomicU32,
    /// Pages that the driver says it has.
    pub(super) actual: AtomicU32,
    /// What the driver says that its free pages are filled with.
    pub(super) poison: AtomicU32,
    /// Statistics are asked for when the owner wants them.
    pub(super) on_demand: bool,
    /// The owner wants statistics.
    pub(super) ask: EventFd,
    pub(super) statistics: Mutex<Statistics>,
    pub(super) driver: Mutex<Driver>,
}

/// The way to the driver.
#[derive(Default)]
pub(super) struct Driver {
    /// There while the device runs.
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
    /// The size asked for changed while the device did not run.
    pub(super) untold: bool,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("running", &self.interrupt.is_some())
            .field("untold", &self.untold)
            .finish()
    }
}

impl Shared {
    pub(super) fn new(pages: u32, on_demand: bool) -> Result<Self, BalloonError> {
        Ok(Self {
            target: AtomicU32::new(pages),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            on_demand,
            ask: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BalloonError::EventFd)?,
            statistics: Mutex::default(),
            driver: Mutex::default(),
        })
    }

    pub(super) fn statistics(&self) -> MutexGuard<'_, Statistics> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device runs, and this is the way to its driver, which is told what it may have missed.
    pub(super) fn connect(&self, interrupt: Arc<dyn Interrupt>) {
        let mut driver = self.driver();
        if std::mem::take(&mut driver.untold) {
            interrupt.config_changed();
        }
        driver.interrupt = Some(interrupt);
    }

    /// The device does not run any more.
    pub(super) fn disconnect(&self) {
        self.driver().interrupt = None;
    }
}
