//! Operations by system calls that block, on threads of their own.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::{Completion, Operation};
use crate::host_cpus::HostCpus;
use crate::virtio::block::disk::Disk;

/// Threads of a device whose queues are few.
const THREADS: u16 = 16;

/// Bounds of the threads of one queue.
const QUEUE_THREADS: (u16, u16) = (2, 8);

/// What the threads of a pool are like.
#[derive(Clone, Debug)]
pub(crate) struct PoolSetup {
    /// Name of each thread.
    pub(crate) name: String,
    /// Most threads that are started; at least 1.
    pub(crate) threads: u16,
    /// CPUs of the host that they run on; none is where the host likes.
    pub(crate) cpus: Option<HostCpus>,
}

/// Most threads for a queue of a device that has so many `queues`.
pub(crate) fn threads_for(queues: u16) -> u16 {
    let (least, most) = QUEUE_THREADS;
    (THREADS / queues.max(1)).clamp(least, most)
}

/// An operation for a thread.
struct Job {
    token: u16,
    operation: Operation<'static>,
}

// SAFETY: the pieces in `operation` lead to memory that any thread may use, and stay valid until its end was taken: the
// promise made to `Pool::submit`.
#[allow(unsafe_code)]
unsafe impl Send for Job {}

/// The threads that carry out what one queue asks for, and what they have done. They are started when there is more to do
/// than those that are there can begin, and end with this.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    setup: PoolSetup,
    threads: Vec<JoinHandle<()>>,
    /// Prepared, and not handed over yet.
    prepared: Vec<Job>,
    /// Ended, and not taken yet.
    ended: VecDeque<Completion>,
    in_flight: usize,
}

struct Shared {
    disk: Arc<dyn Disk>,
    /// Written to when there is something in `State::ended` again.
    event: EventFd,
    state: Mutex<State>,
    /// There is something in `State::jobs`, or the end has come.
    work: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    ended: VecDeque<Completion>,
    /// Threads that wait for work.
    idle: usize,
    /// A thread panicked: what it held never ends.
    panicked: bool,
    stop: bool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads.len())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool without any thread yet, for up to `depth` operations on `disk` at a time, which writes to `event` when some
    /// have ended.
    pub(super) fn new(disk: Arc<dyn Disk>, depth: u16, event: EventFd, setup: PoolSetup) -> Self {
        let depth = usize::from(depth);
        Self {
            shared: Arc::new(Shared {
                disk,
                event,
                state: Mutex::new(State {
                    jobs: VecDeque::with_capacity(depth),
                    ended: VecDeque::with_capacity(depth),
                    idle: 0,
                    panicked: false,
                    stop: false,
                }),
                work: Condvar::new(),
            }),
            threads: Vec::with_capacity(setup.threads.into()),
            setup,
            prepared: Vec::with_capacity(depth),
            ended: VecDeque::with_capacity(depth),
            in_flight: 0,
        }
    }

    /// # Safety
    ///
    /// As for [`super::Engine::submit`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn submit(&mut self, token: u16, operation: Operation<'_>) {
        // SAFETY: the caller keeps the pieces and their list until the completion with this token was taken.
        let operation = unsafe { operation.outliving() };
        self.prepared.push(Job { token, operation });
    }

    /// Hands what was prepared to the threads.
    pub(super) fn kick(&mut self) {
        if self.prepared.is_empty() {
            return;
        }
        let count = self.prepared.len();
        let mut state = self.shared.state();
        state.jobs.extend(self.prepared.drain(..));
        let (waiting, idle) = (state.jobs.len(), state.idle);
        drop(state);
        self.in_flight += count;
        for _ in 0..waiting.min(idle) {
            self.shared.work.notify_one();
        }
        self.grow(waiting.saturating_sub(idle));
    }

    /// Starts up to `wanted` threads more. Where the host gives none at all, the calling thread does the work.
    fn grow(&mut self, wanted: usize) {
        let most = usize::from(self.setup.threads);
        for _ in 0..wanted.min(most - self.threads.len()) {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name(self.setup.name.clone());
            match thread.spawn(move || shared.serve()) {
                Ok(thread) => {
                    if let Some(cpus) = &self.setup.cpus {
                        // As the queue's own thread, which runs on them; they may have gone since.
                        let _ = cpus.keep(&thread);
                    }
                    self.threads.push(thread);
                }
                Err(_) => break,
            }
        }
        if self.threads.is_empty() {
            drop(self.shared.do_all(self.shared.state()));
        }
    }

    pub(super) fn next(&mut self) -> Option<Completion> {
        if self.ended.is_empty() && self.in_flight > 0 {
            let mut state = self.shared.state();
            assert!(
                !state.panicked,
                "a thread that carries out disk operations panicked"
            );
            std::mem::swap(&mut self.ended, &mut state.ended);
        }
        let completion = self.ended.pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }

    /// Number of operations that were handed over and not taken back.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stop = true;
        // There are some only if a panic brought the queue down.
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was told by its hook, and is passed on by whoever waits for operations.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What a thread does.
    fn serve(&self) {
        let watch = Watch(self);
        let mut state = self.state();
        loop {
            state = self.do_all(state);
            if state.stop {
                break;
            }
            state.idle += 1;
            state = self
                .work
                .wait_while(state, |state| state.jobs.is_empty() && !state.stop)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        drop(state);
        std::mem::forget(watch);
    }

    /// Carries out what there is, operation after operation.
    fn do_all<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while let Some(Job { token, operation }) = state.jobs.pop_front() {
            drop(state);
            let result = operation.carry_out(&*self.disk);
            let completion = Completion {
                token,
                result,
                ended: Some(Instant::now()),
            };
            state = self.state();
            let first = state.ended.is_empty();
            state.ended.push_back(completion);
            if first {
                self.wake();
            }
        }
        state
    }

    fn wake(&self) {
        // A full counter wakes as well.
        let _ = self.event.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells that a thread panicked, by being dropped: nobody shall wait for it.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.state().panicked = true;
        self.0.wake();
    }
}
