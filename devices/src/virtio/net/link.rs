//! The link: what the driver is told of the host's interface, and of the owner's wish.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};
use vmm_sys_util::eventfd::EventFd;

use super::metrics::{NetMetrics, add};
use crate::throttle::Throttle;
use crate::virtio::Interrupt;

/// A driver that resets its device meets an interface that is gone again and again.
static CHANGES: Throttle = Throttle::per_minute(30);

/// The state of the host's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortState {
    /// Packets go both ways, as far as is known.
    Up,
    /// The interface is set down, and may come up.
    Down,
    /// The interface is gone for good.
    Gone,
}

impl PortState {
    const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Gone];

    fn load(place: &AtomicU8) -> Self {
        let value = place.load(Ordering::Acquire);
        // Only states are stored.
        Self::ALL
            .into_iter()
            .find(|state| *state as u8 == value)
            .unwrap_or(Self::Gone)
    }

    fn store(self, place: &AtomicU8) {
        place.store(self as u8, Ordering::Release);
    }
}

/// Told that the host's interface changed its state, which [`NetHandle::port`](super::NetHandle::port) tells.
pub trait LinkObserver: Send + Sync {
    /// Called on any thread, with a lock of the device held: an implementation neither blocks nor calls the device.
    fn link_changed(&self);
}

/// Whether the link is up, shared by the workers, which notice, the configuration space, which tells, and the handles of
/// the device's owner.
pub(super) struct Link {
    name: String,
    /// What the worker of each pair met last.
    ports: Box<[AtomicU8]>,
    /// The owner wants the link up.
    plugged: AtomicBool,
    /// The driver shall announce itself, and has not said yet that it did.
    announce: AtomicBool,
    metrics: Arc<NetMetrics>,
    listener: Mutex<Listener>,
}

/// Who is to be told.
#[derive(Default)]
struct Listener {
    /// The way to the driver while the device runs.
    running: Option<Running>,
    /// There was a change while the device did not run.
    untold: bool,
    observer: Option<Arc<dyn LinkObserver>>,
}

/// A device that runs.
pub(super) struct Running {
    /// The way to the driver; absent if it did not accept VIRTIO_NET_F_STATUS.
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
    /// It accepted VIRTIO_NET_F_GUEST_ANNOUNCE.
    pub(super) announces: bool,
    /// Wake the workers.
    pub(super) wakes: Vec<EventFd>,
}

impl Link {
    /// The link of a device with `ports`, for each of which is told whether it is there.
    pub(super) fn new(
        name: &str,
        ports: impl Iterator<Item = bool>,
        plugged: bool,
        metrics: Arc<NetMetrics>,
        observer: Option<Arc<dyn LinkObserver>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            ports: ports
                .map(|attached| {
                    let state = if attached {
                        PortState::Up
                    } else {
                        PortState::Gone
                    };
                    AtomicU8::new(state as u8)
                })
                .collect(),
            plugged: AtomicBool::new(plugged),
            announce: AtomicBool::new(false),
            metrics,
            listener: Mutex::new(Listener {
                observer,
                ..Listener::default()
            }),
        }
    }

    /// Whether packets get through, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        self.is_plugged() && self.port() == PortState::Up
    }

    /// The host's interface, as the pair that met the worst of it did.
    pub(super) fn port(&self) -> PortState {
        let states = self.ports.iter().map(PortState::load);
        states.max().unwrap_or(PortState::Gone)
    }

    /// Whether the owner wants the link up.
    pub(super) fn is_plugged(&self) -> bool {
        self.plugged.load(Ordering::Acquire)
    }

    /// The `status` field of the configuration space (virtio 1.2, 5.1.4).
    pub(super) fn status(&self) -> u16 {
        let mut status = 0;
        if self.is_up() {
            status |= VIRTIO_NET_S_LINK_UP;
        }
        if self.announce.load(Ordering::Acquire) {
            status |= VIRTIO_NET_S_ANNOUNCE;
        }
        status as u16
    }

    /// The device runs: the driver is told of changes, and of one that was before.
    pub(super) fn begin(&self, running: Running) {
        let mut listener = self.listener();
        if !running.announces {
            self.announce.store(false, Ordering::Release);
        }
        let untold = std::mem::take(&mut listener.untold);
        if let Some(interrupt) = running.interrupt.as_ref().filter(|_| untold) {
            interrupt.config_changed();
        }
        listener.running = Some(running);
    }

    /// The device does not run any more.
    pub(super) fn end(&self) {
        self.listener().running = None;
    }

    /// The driver begins afresh, and reads what there is.
    pub(super) fn reset(&self) {
        self.listener().untold = false;
        self.announce.store(false, Ordering::Release);
    }

    /// Plugs the cable in or pulls it. What the workers do from their next packet on follows it.
    pub(super) fn plug(&self, plugged: bool) {
        let mut listener = self.listener();
        self.change(&mut listener, || {
            self.plugged.store(plugged, Ordering::Release);
        });
        wake_all(&listener);
    }

    /// Has the workers look at their queues.
    pub(super) fn wake(&self) {
        wake_all(&self.listener());
    }

    /// Asks the driver to announce itself (virtio 1.2, 5.1.6.5.4): now if the device runs, else when it does. Tells whether
    /// there is no driver, or one that can.
    pub(super) fn announce(&self) -> bool {
        let mut listener = self.listener();
        if listener
            .running
            .as_ref()
            .is_some_and(|running| !running.announces)
        {
            return false;
        }
        self.announce.store(true, Ordering::Release);
        tell(&mut listener);
        true
    }

    /// Whether the driver has still to announce itself.
    pub(super) fn announces(&self) -> bool {
        self.announce.load(Ordering::Acquire)
    }

    /// The driver has announced itself.
    pub(super) fn announced(&self) {
        self.announce.store(false, Ordering::Release);
    }

    /// Whether the driver has still to be told of a change.
    pub(super) fn is_untold(&self) -> bool {
        self.listener().untold
    }

    /// Takes saved state. A link that was down comes up when the interface turns out to be writable.
    pub(super) fn restore(&self, plugged: bool, port_up: bool, announce: bool, untold: bool) {
        let mut listener = self.listener();
        listener.untold = untold;
        self.plugged.store(plugged, Ordering::Release);
        self.announce.store(announce, Ordering::Release);
        let state = if port_up {
            PortState::Up
        } else {
            PortState::Down
        };
        // Only the first pair is sure to be used, and to look.
        if let Some(first) = self.ports.first() {
            state.store(first);
        }
    }

    /// Forgets what the pairs from `first` on met: they are not used, and would not notice that it changed.
    pub(super) fn forget(&self, first: u16) {
        let mut listener = self.listener();
        self.change(&mut listener, || {
            for place in self.ports.iter().skip(first.into()) {
                if PortState::load(place) == PortState::Down {
                    PortState::Up.store(place);
                }
            }
        });
    }

    fn set_port(&self, index: u16, state: PortState) {
        let Some(place) = self.ports.get(usize::from(index)) else {
            return;
        };
        let mut listener = self.listener();
        let before = PortState::load(place);
        if before == state || before == PortState::Gone {
            return;
        }
        self.change(&mut listener, || state.store(place));
    }

    /// Makes a change, and tells those whom it concerns.
    fn change(&self, listener: &mut Listener, change: impl FnOnce()) {
        let before = (self.is_up(), self.port());
        change();
        let after = (self.is_up(), self.port());
        if before.1 != after.1 {
            if let Some(suppressed) = CHANGES.allow() {
                self.log(after.1, suppressed);
            }
            if let Some(observer) = &listener.observer {
                observer.link_changed();
            }
        }
        if before.0 == after.0 {
            return;
        }
        if before.0 {
            add(&self.metrics.link_downs, 1);
        }
        tell(listener);
    }

    fn log(&self, state: PortState, suppressed: u64) {
        let device = &self.name;
        match state {
            PortState::Up => tracing::info!(device, suppressed, "network interface is up again"),
            PortState::Down => tracing::warn!(device, suppressed, "network interface is down"),
            PortState::Gone => tracing::warn!(
                device,
                suppressed,
                "network interface is gone, its link stays down"
            ),
        }
    }

    fn listener(&self) -> MutexGuard<'_, Listener> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake_all(listener: &Listener) {
    for wake in listener.running.iter().flat_map(|running| &running.wakes) {
        // A full counter wakes as well.
        let _ = wake.write(1);
    }
}

/// Tells the driver that the configuration space changed.
fn tell(listener: &mut Listener) {
    match &listener.running {
        Some(running) => {
            if let Some(interrupt) = &running.interrupt {
                interrupt.config_changed();
            }
        }
        None => listener.untold = true,
    }
}

/// The state of the host's interface as the worker of one pair meets it.
pub(super) struct Port {
    index: u16,
    link: Arc<Link>,
}

impl Port {
    /// Takes the port of pair `index` as it is.
    pub(super) fn new(index: u16, attached: bool, link: Arc<Link>) -> Self {
        let port = Self { index, link };
        if !attached {
            port.set(PortState::Gone);
        }
        port
    }

    pub(super) fn state(&self) -> PortState {
        self.link
            .ports
            .get(usize::from(self.index))
            .map_or(PortState::Gone, PortState::load)
    }

    /// Takes note of what was met, and tells the driver if its link changed. What is gone stays so.
    pub(super) fn set(&self, state: PortState) {
        if self.state() != state {
            self.link.set_port(self.index, state);
        }
    }

    /// Whether the owner of the device wants packets to go through.
    pub(super) fn is_plugged(&self) -> bool {
        self.link.is_plugged()
    }
}
