//! The thread that watches a connection: whether it still stands, and whether an answer comes in time.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_manager::{EventOps, Events};
use tracing::warn;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::Peer;
use super::metrics::{VhostUserMetrics, add};
use crate::throttle::Throttle;
use crate::virtio::{Handler, Interrupt};

/// A guest can crash its backend, have it started again, and crash it again.
static LOSSES: Throttle = Throttle::per_minute(10);
static BROKEN_RINGS: Throttle = Throttle::per_minute(10);

const SOCKET: u32 = 0;
const DEADLINE: u32 = 1;
const RING_ERROR: u32 = 2;
/// That of queue 0; those of the others follow.
const FIRST_CALL: u32 = 3;

/// What a connection's users and its thread share.
pub(super) struct Status {
    peer: Arc<dyn Peer>,
    metrics: Arc<VhostUserMetrics>,
    socket: UnixStream,
    /// Whether it is of use: what fails before that is an error of whoever connects, and no loss.
    established: AtomicBool,
    lost: AtomicBool,
    driver: Mutex<Option<Arc<dyn Interrupt>>>,
    deadline: Mutex<Deadline>,
}

struct Deadline {
    timer: TimerFd,
    /// What the backend is asked for now.
    awaited: Option<&'static str>,
    expired: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Status {
    pub(super) fn new(
        peer: Arc<dyn Peer>,
        metrics: Arc<VhostUserMetrics>,
        socket: UnixStream,
    ) -> std::io::Result<Self> {
        let timer = TimerFd::new().map_err(std::io::Error::from)?;
        Ok(Self {
            peer,
            metrics,
            socket,
            established: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            driver: Mutex::new(None),
            deadline: Mutex::new(Deadline {
                timer,
                awaited: None,
                expired: false,
            }),
        })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The backend fits the device.
    pub(super) fn establish(&self) {
        add(&self.metrics.connections, 1);
        self.metrics.connected.store(1, Ordering::Relaxed);
        self.established.store(true, Ordering::Release);
    }

    /// Gives the connection up. Whoever waits for an answer gets none.
    pub(super) fn lose(&self, reason: &str) {
        if self.lost.swap(true, Ordering::AcqRel) {
            return;
        }
        // Of a socket that is closed already nothing is left to be shut down.
        let _ = self.socket.shutdown(Shutdown::Both);
        if !self.established.load(Ordering::Acquire) {
            return;
        }
        add(&self.metrics.losses, 1);
        self.metrics.connected.store(0, Ordering::Relaxed);
        if let Some(suppressed) = LOSSES.allow() {
            warn!(backend = %self.peer, reason, suppressed, "vhost-user backend is lost");
        }
        self.peer.lost(reason);
        if let Some(driver) = self.driver() {
            driver.needs_reset();
        }
    }

    /// Sets who is told of what happens.
    pub(super) fn set_driver(&self, driver: Option<Arc<dyn Interrupt>>) {
        *lock(&self.driver) = driver;
    }

    fn driver(&self) -> Option<Arc<dyn Interrupt>> {
        lock(&self.driver).clone()
    }

    /// From now on the backend has `timeout` to do `what`.
    pub(super) fn begin(&self, what: &'static str, timeout: Duration) -> std::io::Result<()> {
        let mut deadline = lock(&self.deadline);
        deadline.awaited = Some(what);
        deadline.timer.reset(timeout, None).map_err(Into::into)
    }

    /// It has done it, or failed. Tells whether the time was over before.
    pub(super) fn end(&self) -> bool {
        let mut deadline = lock(&self.deadline);
        deadline.awaited = None;
        // A timer of this process can be set.
        let _ = deadline.timer.clear();
        deadline.expired
    }

    fn look_at_clock(&self) {
        let mut deadline = lock(&self.deadline);
        let Some(what) = deadline.awaited.take() else {
            return;
        };
        deadline.expired = true;
        // Which makes it not readable any more.
        let _ = deadline.timer.clear();
        drop(deadline);
        self.lose(&format!("it did not {what} in time"));
    }
}

/// What the thread has.
pub(super) struct Watcher {
    pub(super) status: Arc<Status>,
    /// Written by the backend when a ring is broken.
    pub(super) ring_error: EventFd,
    /// Written by the backend for queues whose interrupt is more than an eventfd.
    pub(super) calls: Vec<EventFd>,
}

impl Handler for Watcher {
    fn init(&mut self, ops: &mut EventOps) {
        const NEW: &str = "a new epoll instance takes a descriptor";
        // What can be read there is for who waits for an answer.
        let socket = Events::with_data(&self.status.socket, SOCKET, EventSet::READ_HANG_UP);
        ops.add(socket).expect(NEW);
        let deadline = lock(&self.status.deadline);
        ops.add(Events::with_data(&deadline.timer, DEADLINE, EventSet::IN))
            .expect(NEW);
        ops.add(Events::with_data(
            &self.ring_error,
            RING_ERROR,
            EventSet::IN,
        ))
        .expect(NEW);
        for (data, call) in (FIRST_CALL..).zip(&self.calls) {
            ops.add(Events::with_data(call, data, EventSet::IN))
                .expect(NEW);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SOCKET => {
                self.status.lose("it closed the connection");
                // It would be ready for ever.
                let _ = ops.remove(Events::empty(&self.status.socket));
            }
            DEADLINE => self.status.look_at_clock(),
            RING_ERROR => {
                let _ = self.ring_error.read();
                add(&self.status.metrics.broken_rings, 1);
                if let Some(suppressed) = BROKEN_RINGS.allow() {
                    warn!(backend = %self.status.peer, suppressed, "vhost-user backend cannot go on with a ring, the device needs a reset");
                }
                if let Some(driver) = self.status.driver() {
                    driver.needs_reset();
                }
            }
            call => {
                let index = call - FIRST_CALL;
                if let Some(call) = self.calls.get(index as usize) {
                    let _ = call.read();
                }
                if let Some(driver) = self.status.driver() {
                    driver.queue(index as u16);
                }
            }
        }
    }

    fn drain(&mut self) {
        // Nothing is in flight here.
    }
}
