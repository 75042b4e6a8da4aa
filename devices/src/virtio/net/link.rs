//! The link: what the driver is told of the port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use super::metrics::{NetMetrics, add};
use crate::throttle::Throttle;
use crate::virtio::Interrupt;

/// A driver that resets its device meets an interface that is gone again and again.
static CHANGES: Throttle = Throttle::per_minute(30);

/// Whether the link is up, shared by the worker, which notices, and the configuration space, which tells.
#[derive(Debug)]
pub(super) struct Link(AtomicBool);

impl Link {
    pub(super) fn new(up: bool) -> Self {
        Self(AtomicBool::new(up))
    }

    pub(super) fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sets the link up or down, and tells whether that changed it.
    pub(super) fn set(&self, up: bool) -> bool {
        self.0.swap(up, Ordering::AcqRel) != up
    }

    /// The `status` field of the configuration space (virtio 1.2, 5.1.4).
    pub(super) fn status(&self) -> u16 {
        if self.is_up() {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        }
    }
}

/// The state of the host's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortState {
    /// Packets go both ways, as far as is known.
    Up,
    /// The interface is set down, and may come up.
    Down,
    /// The interface is gone for good.
    Gone,
}

/// The state of the host's interface as a worker last met it.
pub(super) struct Port {
    state: PortState,
    link: Arc<Link>,
    metrics: Arc<NetMetrics>,
    /// Told of changes; absent if the driver did not accept VIRTIO_NET_F_STATUS.
    listener: Option<Arc<dyn Interrupt>>,
    name: String,
}

impl Port {
    /// Takes the link as it is. A link that is down comes up when the interface turns out to be writable.
    pub(super) fn new(
        name: &str,
        attached: bool,
        link: Arc<Link>,
        metrics: Arc<NetMetrics>,
        listener: Option<Arc<dyn Interrupt>>,
    ) -> Self {
        let mut port = Self {
            state: if link.is_up() {
                PortState::Up
            } else {
                PortState::Down
            },
            link,
            metrics,
            listener,
            name: name.to_owned(),
        };
        if !attached {
            port.set(PortState::Gone);
        }
        port
    }

    pub(super) fn state(&self) -> PortState {
        self.state
    }

    /// Takes note of what was met, and tells the driver if its link changed.
    pub(super) fn set(&mut self, state: PortState) {
        if self.state == state || self.state == PortState::Gone {
            return;
        }
        self.state = state;
        if let Some(suppressed) = CHANGES.allow() {
            self.log(suppressed);
        }
        let up = state == PortState::Up;
        if !self.link.set(up) {
            return;
        }
        if !up {
            add(&self.metrics.link_downs, 1);
        }
        if let Some(listener) = &self.listener {
            listener.config_changed();
        }
    }

    fn log(&self, suppressed: u64) {
        let device = &self.name;
        match self.state {
            PortState::Up => tracing::info!(device, suppressed, "network interface is up again"),
            PortState::Down => tracing::warn!(device, suppressed, "network interface is down"),
            PortState::Gone => tracing::warn!(
                device,
                suppressed,
                "network interface is gone, its link stays down"
            ),
        }
    }
}
