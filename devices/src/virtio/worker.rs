//! Device worker threads.
//!
//! A worker owns its handler, and the handler owns queues and host resources. Stopping the worker gives the handler back,
//! so that no lock is needed on the path of a request.

use std::io;
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::host_cpus::HostCpus;

/// What a worker thread runs.
pub trait Handler: Send + 'static {
    /// Adds the descriptors to wait for, when the thread starts.
    fn init(&mut self, ops: &mut EventOps);

    /// Handles one readiness event. An error return does not exist: the handler answers the guest with an error status,
    /// or marks the device as needing reset.
    fn process(&mut self, events: Events, ops: &mut EventOps);

    /// The last call on the thread: completes what is in flight. No further [`Handler::process`] follows.
    fn drain(&mut self);
}

/// A running worker thread.
#[derive(Debug)]
pub struct Worker<H> {
    stop: EventFd,
    thread: JoinHandle<H>,
}

impl<H: Handler> Worker<H> {
    /// Runs `handler` on a new thread. The kernel shows the first 15 bytes of `name`.
    ///
    /// # Errors
    ///
    /// The thread, its eventfd or its epoll instance could not be had.
    pub fn spawn(name: &str, handler: H) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut events =
            EventManager::new().map_err(|error| io::Error::other(error.to_string()))?;
        let id = events.add_subscriber(Subscriber {
            handler,
            stop: stop.try_clone()?,
            running: true,
        });
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                loop {
                    // An interrupted wait is tried again; epoll_wait has no other failure with valid arguments.
                    let _ = events.run();
                    let running = events.subscriber_mut(id).is_ok_and(|worker| worker.running);
                    if !running {
                        break;
                    }
                }
                let mut worker = events
                    .remove_subscriber(id)
                    .expect("the subscriber added above is still there");
                worker.handler.drain();
                worker.handler
            })?;
        Ok(Self { stop, thread })
    }

    /// Keeps the thread on some CPUs of the host.
    ///
    /// # Errors
    ///
    /// The host refused: none of them can be used any more.
    pub fn keep_on(&self, cpus: &HostCpus) -> io::Result<()> {
        cpus.keep(&self.thread)
    }

    /// Ends the thread after what it is doing, and gives its handler back.
    pub fn stop(self) -> H {
        // The counter of this eventfd is written once: it cannot be full.
        let _ = self.stop.write(1);
        match self.thread.join() {
            Ok(handler) => handler,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

struct Subscriber<H> {
    handler: H,
    stop: EventFd,
    running: bool,
}

impl<H: Handler> MutEventSubscriber for Subscriber<H> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        use std::os::fd::AsRawFd;
        if events.fd() == self.stop.as_raw_fd() {
            self.running = false;
        } else if self.running {
            self.handler.process(events, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.stop, EventSet::IN))
            .expect("a new epoll instance takes a new eventfd");
        self.handler.init(ops);
    }
}
