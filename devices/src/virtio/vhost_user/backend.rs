//! A backend, for whoever holds it: the device, and the owner of the guest's memory.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::Peer;
use super::error::BackendError;
use super::link::Link;
use super::metrics::VhostUserMetrics;
use super::table::{Described, Table};
use crate::memory::{GuestRam, MemoryFollower, Ram};
use crate::virtio::{ActiveQueue, Interrupt};

/// What rings can do if the backend can.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What a device needs of its backend.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Number of queues.
    pub queues: u16,
    /// Feature bits of the device that may be offered to the driver if the backend has them, beside those of rings.
    pub features: u64,
}

/// How long a backend may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To answer what it can answer at once: all messages of one step together.
    pub answer: Duration,
    /// To finish what it has taken from the rings, and hand them back.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(10),
            drain: Duration::from_secs(30),
        }
    }
}

/// A process that serves the rings of a device. Used by one device at a time.
///
/// The connection is made once and outlives the device, as machines come and go in one process. When it was lost, it is
/// made again for the next driver that starts.
pub struct Backend {
    peer: Arc<dyn Peer>,
    needs: Needs,
    timeouts: Timeouts,
    features: u64,
    metrics: Arc<VhostUserMetrics>,
    inner: Mutex<Inner>,
}

struct Inner {
    link: Link,
    /// Counts connections from 1 on.
    number: u64,
    /// The memory that the backend was told of; absent while no ring runs.
    table: Option<Table>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("peer", &self.peer.to_string())
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

impl Backend {
    /// Connects to `peer`, for a device that has `needs`.
    ///
    /// # Errors
    ///
    /// [`BackendError`] names the socket.
    pub fn connect(
        peer: Arc<dyn Peer>,
        needs: Needs,
        timeouts: Timeouts,
    ) -> Result<Self, BackendError> {
        let metrics = Arc::default();
        let link = connect(&peer, needs, 1 << VIRTIO_F_VERSION_1, timeouts, &metrics)?;
        Ok(Self {
            features: link.features() & (RING_FEATURES | needs.features),
            peer,
            needs,
            timeouts,
            metrics,
            inner: Mutex::new(Inner {
                link,
                number: 1,
                table: None,
            }),
        })
    }

    /// The features that the driver is offered, VIRTIO_F_VERSION_1 among them. They stay what they were at the first connection.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The counters.
    pub fn metrics(&self) -> Arc<VhostUserMetrics> {
        Arc::clone(&self.metrics)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the rings to the backend, and the number of the connection that they are served by. `session` is the one that
    /// has served this driver until now, if any did: there is none other then that could go on.
    pub(super) fn begin(
        &self,
        session: Option<u64>,
        memory: &GuestRam,
        queues: &[ActiveQueue],
        features: u64,
        interrupt: &Arc<dyn Interrupt>,
    ) -> Result<u64, BackendError> {
        let mut inner = self.inner();
        if session.is_some_and(|session| session != inner.number || inner.link.is_lost()) {
            return Err(BackendError::Lost {
                peer: self.peer.to_string(),
            });
        }
        if inner.link.is_lost() {
            self.connect_again(&mut inner)?;
        }
        // Under the lock, so that no change of memory is missed.
        let memory = memory.memory();
        let regions = Described::new(&memory)?;
        let link = &mut inner.link;
        if !regions.fits(link.slots()) {
            return Err(BackendError::Unfit {
                peer: self.peer.to_string(),
                problem: "takes fewer regions of memory than the guest has".to_owned(),
            });
        }
        let rings = queues
            .iter()
            .map(|queue| Ring::new(&memory, queue, link, &**interrupt))
            .collect::<Result<Vec<_>, _>>()?;
        let protocol = link.has_protocol();
        let mut acked = features;
        if protocol {
            acked |= VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        }
        let ring_error = link.ring_error();
        link.set_driver(Some(Arc::clone(interrupt)));
        let begun = link.call("take the rings", self.timeouts.answer, |frontend| {
            frontend.set_features(acked)?;
            regions.announce(frontend)?;
            for ring in &rings {
                let index = ring.index;
                frontend.set_vring_num(index, ring.config.queue_size)?;
                frontend.set_vring_base(index, ring.base)?;
                frontend.set_vring_addr(index, &ring.config)?;
                if let Some(eventfd) = &ring_error {
                    frontend.set_vring_err(index, eventfd)?;
                }
                frontend.set_vring_call(index, &ring.call)?;
                frontend.set_vring_kick(index, ring.kick)?;
            }
            if protocol {
                for ring in &rings {
                    frontend.set_vring_enable(ring.index, true)?;
                }
            }
            Ok(())
        });
        if let Err(error) = begun {
            link.set_driver(None);
            return Err(error);
        }
        inner.table = Some(regions.table());
        Ok(inner.number)
    }

    /// Takes the rings back, when the backend has finished what it took from them.
    pub(super) fn end(
        &self,
        memory: &GuestRam,
        queues: &mut [ActiveQueue],
    ) -> Result<(), BackendError> {
        let mut inner = self.inner();
        inner.table = None;
        let bases = inner
            .link
            .call("give the rings back", self.timeouts.drain, |frontend| {
                queues
                    .iter()
                    .map(|active| frontend.get_vring_base(active.index.into()))
                    .collect::<Result<Vec<_>, _>>()
            });
        inner.link.set_driver(None);
        let memory = memory.memory();
        for (active, base) in queues.iter_mut().zip(bases?) {
            // Indexes wrap at 16 bits; whatever it says, only itself is told of it again.
            active.queue.set_next_avail(base as u16);
            if let Ok(used) = active
                .queue
                .used_idx(&*memory, std::sync::atomic::Ordering::Acquire)
            {
                active.queue.set_next_used(used.0);
            }
        }
        Ok(())
    }

    /// Queue `index`, which runs, has another interrupt now.
    pub(super) fn move_interrupt(&self, index: u16, interrupt: &dyn Interrupt) {
        let mut inner = self.inner();
        let link = &mut inner.link;
        let Some(call) = call_eventfd(index, link, interrupt) else {
            return;
        };
        // A failure is the loss of the backend, which is told.
        let _ = link.call("take an interrupt", self.timeouts.answer, |frontend| {
            frontend.set_vring_call(index.into(), &call)
        });
    }

    fn connect_again(&self, inner: &mut Inner) -> Result<(), BackendError> {
        // The driver may take all that it was offered.
        let link = connect(
            &self.peer,
            self.needs,
            self.features,
            self.timeouts,
            &self.metrics,
        )?;
        inner.link = link;
        inner.number += 1;
        inner.table = None;
        self.peer.found();
        Ok(())
    }
}

fn connect(
    peer: &Arc<dyn Peer>,
    needs: Needs,
    needed: u64,
    timeouts: Timeouts,
    metrics: &Arc<VhostUserMetrics>,
) -> Result<Link, BackendError> {
    let stream = peer.connect().map_err(|source| BackendError::Connect {
        peer: peer.to_string(),
        source,
    })?;
    Link::new(peer, stream, needs.queues, needed, timeouts, metrics)
}

/// A ring as the backend is told of it.
struct Ring<'a> {
    index: usize,
    base: u16,
    config: VringConfigData,
    kick: &'a EventFd,
    call: EventFd,
}

impl<'a> Ring<'a> {
    fn new(
        memory: &Ram,
        active: &'a ActiveQueue,
        link: &Link,
        interrupt: &dyn Interrupt,
    ) -> Result<Self, BackendError> {
        let queue = &active.queue;
        let size = usize::from(queue.size());
        let fault = || BackendError::Ring {
            queue: active.index,
        };
        // The backend knows a ring by the address of its first byte here, and takes the others to follow it.
        let address = |address: u64, len: usize| {
            let slice = memory.get_slice(GuestAddress(address), len);
            let slice = slice.map_err(|_| fault())?;
            Ok(slice.ptr_guard().as_ptr() as u64)
        };
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: address(queue.desc_table(), 16 * size)?,
            avail_ring_addr: address(queue.avail_ring(), 6 + 2 * size)?,
            used_ring_addr: address(queue.used_ring(), 6 + 8 * size)?,
            log_addr: None,
        };
        Ok(Self {
            index: active.index.into(),
            base: queue.next_avail(),
            config,
            kick: &active.notify,
            call: call_eventfd(active.index, link, interrupt).ok_or_else(fault)?,
        })
    }
}

/// The eventfd that a backend writes for queue `index`: that of its interrupt, or one that the connection's thread
/// passes on.
fn call_eventfd(index: u16, link: &Link, interrupt: &dyn Interrupt) -> Option<EventFd> {
    interrupt
        .queue_eventfd(index)
        .or_else(|| link.call_eventfd(index))
}

impl MemoryFollower for Backend {
    /// Tells the backend, before the guest uses what is new. A backend that does not take it is lost: it could not serve
    /// what the guest has it do there.
    fn memory_changed(&self, memory: &Ram) {
        let mut inner = self.inner();
        let Some(before) = inner.table.take() else {
            return;
        };
        let link = &mut inner.link;
        let regions = match Described::new(memory) {
            Ok(regions) if regions.fits(link.slots()) => regions,
            Ok(_) => return link.lose("it takes no more regions of memory"),
            Err(error) => return link.lose(&error.to_string()),
        };
        let (slots, acknowledges) = (link.slots().is_some(), link.acknowledges());
        let told = link.call(
            "take the guest's memory",
            self.timeouts.answer,
            |frontend| {
                regions.announce_change(&before, slots, frontend)?;
                if !acknowledges {
                    // An answer to anything tells that what came before was done.
                    frontend.get_features()?;
                }
                Ok(())
            },
        );
        if told.is_ok() {
            inner.table = Some(regions.table());
        }
    }
}
