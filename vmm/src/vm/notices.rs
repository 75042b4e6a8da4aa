//! What reaches the machine's owner from its vCPUs and devices.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use devices::platform::{Platform, PlatformEvent};
use devices::virtio::net::LinkObserver;
use kvm_bindings::kvm_debug_exit_arch;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::vcpu::{End, Watch};

/// A set of events, and an eventfd that is readable while there are any.
pub struct Notices {
    raised: AtomicU32,
    end: Mutex<Option<End>>,
    /// At most one for each vCPU, which runs no further before it was taken.
    stops: Mutex<Vec<Stopped>>,
    wake: EventFd,
}

/// What happened since the last look.
#[derive(Debug, Default)]
pub struct Happened {
    /// The guest wants a reset.
    pub reset: bool,
    /// The guest wants to be turned off.
    pub power_off: bool,
    /// The guest's kernel panicked.
    pub panicked: bool,
    /// The guest's kernel panicked and starts a crash kernel.
    pub crash_loaded: bool,
    /// The guest gave up a PCI function, a vCPU or memory.
    pub ejected: bool,
    /// An interface of the host that is a network of the guest's changed its state.
    pub link: bool,
    /// A disk waits for the machine to be stopped.
    pub disk_stopped: bool,
    /// The guest did not reload its watchdog in time.
    pub watchdog_expired: bool,
    /// A vCPU ended; the first one, if there were several.
    pub end: Option<End>,
    /// vCPUs that stopped for a debugger, in their order.
    pub stops: Vec<Stopped>,
}

/// A vCPU that is out of the guest for a debugger.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// Its number.
    pub vcpu: u32,
    /// Where it is, and why.
    pub at: kvm_debug_exit_arch,
}

impl Notices {
    /// Without any event.
    ///
    /// # Errors
    ///
    /// The host gives no eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            raised: AtomicU32::new(0),
            end: Mutex::new(None),
            stops: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The eventfd, to wait for.
    pub fn eventfd(&self) -> &EventFd {
        &self.wake
    }

    /// Takes everything that happened.
    pub fn take(&self) -> Happened {
        // Emptied first: what is raised from here on makes it readable again.
        let _ = self.wake.read();
        let raised = self.raised.swap(0, Ordering::AcqRel);
        let has = |event| raised & bit(event) != 0;
        Happened {
            reset: has(PlatformEvent::Reset),
            power_off: has(PlatformEvent::PowerOff),
            panicked: has(PlatformEvent::Panicked),
            crash_loaded: has(PlatformEvent::CrashLoaded),
            ejected: has(PlatformEvent::Ejected),
            link: raised & LINK != 0,
            disk_stopped: has(PlatformEvent::DiskStopped),
            watchdog_expired: has(PlatformEvent::WatchdogExpired),
            end: self
                .end
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
            stops: self.take_stops(),
        }
    }

    /// Takes the stops of vCPUs alone.
    pub(super) fn take_stops(&self) -> Vec<Stopped> {
        std::mem::take(&mut *self.stops.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn raise_bit(&self, bit: u32) {
        if self.raised.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        // A full counter is readable all the same.
        let _ = self.wake.write(1);
    }
}

const fn bit(event: PlatformEvent) -> u32 {
    match event {
        PlatformEvent::Reset => 1,
        PlatformEvent::PowerOff => 2,
        PlatformEvent::Panicked => 4,
        PlatformEvent::CrashLoaded => 8,
        PlatformEvent::Ejected => 16,
        PlatformEvent::DiskStopped => 32,
        PlatformEvent::WatchdogExpired => 64,
    }
}

/// Beside the bits of [`PlatformEvent`]s.
const LINK: u32 = 1 << 31;

impl Platform for Notices {
    fn raise(&self, event: PlatformEvent) {
        self.raise_bit(bit(event));
    }
}

impl LinkObserver for Notices {
    fn link_changed(&self) {
        self.raise_bit(LINK);
    }
}

impl Watch for Notices {
    fn ended(&self, _vcpu: u32, end: End) {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(end);
        self.wake();
    }

    fn stopped(&self, vcpu: u32, at: kvm_debug_exit_arch) {
        self.stops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Stopped { vcpu, at });
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_taken_once_however_often_it_was_raised() {
        let notices = Notices::new().unwrap();
        for _ in 0..1000 {
            notices.raise(PlatformEvent::Reset);
        }
        notices.raise(PlatformEvent::Panicked);
        let happened = notices.take();
        assert!(happened.reset && happened.panicked && !happened.power_off);
        assert!(!notices.take().reset);
    }

    #[test]
    fn first_vcpu_to_end_is_the_one_reported() {
        let notices = Notices::new().unwrap();
        notices.ended(0, End::PowerOff);
        notices.ended(1, End::Reset);
        assert!(matches!(notices.take().end, Some(End::PowerOff)));
        assert!(notices.take().end.is_none());
    }

    #[test]
    fn event_raised_after_a_look_wakes_again() {
        let notices = Notices::new().unwrap();
        notices.raise(PlatformEvent::PowerOff);
        notices.take();
        assert!(notices.eventfd().read().is_err());
        notices.raise(PlatformEvent::PowerOff);
        assert_eq!(notices.eventfd().read().unwrap(), 1);
    }
}
