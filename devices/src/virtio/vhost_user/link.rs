//! One connection to a backend, from the first message to its loss.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::BackendError;
use super::metrics::VhostUserMetrics;
use super::watch::{Status, Watcher};
use super::{Peer, Timeouts};
use crate::virtio::{Interrupt, Worker};

/// What is made use of where the backend has it.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// A connection whose features are negotiated.
pub(super) struct Link {
    peer: Arc<dyn Peer>,
    status: Arc<Status>,
    frontend: Frontend,
    timeouts: Timeouts,
    /// What the backend offers.
    features: u64,
    protocol: VhostUserProtocolFeatures,
    /// How many regions of memory can come and go, if any can.
    slots: Option<u64>,
    ring_error: EventFd,
    calls: Vec<EventFd>,
    /// Ends with this.
    watcher: Option<Worker<Watcher>>,
}

impl Link {
    /// Negotiates with the backend at the other end of `stream` for a device with `queues` queues, which cannot be without
    /// the features `needed`.
    pub(super) fn new(
        peer: &Arc<dyn Peer>,
        stream: UnixStream,
        queues: u16,
        needed: u64,
        timeouts: Timeouts,
        metrics: &Arc<VhostUserMetrics>,
    ) -> Result<Self, BackendError> {
        let host = |source| BackendError::Watch {
            peer: peer.to_string(),
            source,
        };
        // Answers are waited for, and the time that this takes is watched.
        stream.set_nonblocking(false).map_err(host)?;
        let watched = stream.try_clone().map_err(host)?;
        let status = Status::new(Arc::clone(peer), Arc::clone(metrics), watched).map_err(host)?;
        let status = Arc::new(status);
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host);
        let ring_error = eventfd()?;
        let calls = (0..queues)
            .map(|_| eventfd())
            .collect::<Result<Vec<_>, _>>()?;
        let copies = calls.iter().map(|call| call.try_clone().map_err(host));
        let watcher = Watcher {
            status: Arc::clone(&status),
            ring_error: ring_error.try_clone().map_err(host)?,
            calls: copies.collect::<Result<_, _>>()?,
        };
        let watcher = Worker::spawn("vhost-user", watcher).map_err(host)?;
        let mut link = Self {
            peer: Arc::clone(peer),
            status,
            frontend: Frontend::from_stream(stream, queues.into()),
            timeouts,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            slots: None,
            ring_error,
            calls,
            watcher: Some(watcher),
        };
        link.negotiate(queues)?;
        let missing = needed & !link.features;
        if missing != 0 {
            return Err(link.unfit(format!("lacks features {missing:#x}")));
        }
        link.status.establish();
        Ok(link)
    }

    fn negotiate(&mut self, queues: u16) -> Result<(), BackendError> {
        let negotiated = self.call("negotiate", self.timeouts.answer, |frontend| {
            frontend.set_owner()?;
            let features = frontend.get_features()?;
            let mut protocol = VhostUserProtocolFeatures::empty();
            let (mut most, mut slots) = (None, None);
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
                protocol = frontend.get_protocol_features()? & PROTOCOL;
                frontend.set_protocol_features(protocol)?;
            }
            if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            if protocol.contains(VhostUserProtocolFeatures::MQ) {
                most = Some(frontend.get_queue_num()?);
            }
            if protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
                slots = Some(frontend.get_max_mem_slots()?);
            }
            Ok((features, protocol, most, slots))
        })?;
        let (features, protocol, most, slots) = negotiated;
        if let Some(most) = most.filter(|most| *most < queues.into()) {
            return Err(self.unfit(format!(
                "has {most} queues, expected at least {queues}: lower num_queues"
            )));
        }
        self.features = features;
        self.protocol = protocol;
        self.slots = slots;
        Ok(())
    }

    fn unfit(&self, problem: String) -> BackendError {
        BackendError::Unfit {
            peer: self.peer.to_string(),
            problem,
        }
    }

    /// What the backend offers, its own bit for the protocol included.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// How many regions of memory can come and go while rings run, if any can.
    pub(super) fn slots(&self) -> Option<u64> {
        self.slots
    }

    /// Whether each ring has to be enabled.
    pub(super) fn has_protocol(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// Whether the backend says that it has done what it was asked for.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.status.is_lost()
    }

    pub(super) fn lose(&self, reason: &str) {
        self.status.lose(reason);
    }

    pub(super) fn set_driver(&self, driver: Option<Arc<dyn Interrupt>>) {
        self.status.set_driver(driver);
    }

    /// What a backend writes for queue `index` if its interrupt is more than an eventfd.
    pub(super) fn call_eventfd(&self, index: u16) -> Option<EventFd> {
        self.calls
            .get(usize::from(index))
            .and_then(|call| call.try_clone().ok())
    }

    /// What a backend writes when a ring is broken.
    pub(super) fn ring_error(&self) -> Option<EventFd> {
        self.ring_error.try_clone().ok()
    }

    /// Has the backend do `what`, for which it has `timeout` in all. If it does not, it is lost.
    pub(super) fn call<T>(
        &mut self,
        what: &'static str,
        timeout: Duration,
        messages: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, BackendError> {
        let peer = || self.peer.to_string();
        if self.is_lost() {
            return Err(BackendError::Lost { peer: peer() });
        }
        self.status
            .begin(what, timeout)
            .map_err(|source| BackendError::Watch {
                peer: peer(),
                source,
            })?;
        let result = messages(&mut self.frontend);
        let expired = self.status.end();
        result.map_err(|source| {
            let peer = peer();
            if expired {
                return BackendError::Timeout {
                    peer,
                    what,
                    timeout,
                };
            }
            self.status.lose(&format!("it did not {what}: {source}"));
            BackendError::Protocol { peer, what, source }
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whose end of the connection is the last.
        self.watcher.take().map(Worker::stop);
    }
}
