//! Keeps the queues of a device off its disk for a moment.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// A gate that every queue passes before it goes to the disk. It is open nearly always, which costs a queue one load of
/// an atomic for each request.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// What `State::closed` is, for those who only look.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    queues: Vec<Member>,
    next_id: u64,
}

/// A queue that runs.
#[derive(Debug)]
struct Member {
    id: u64,
    /// Wakes its worker.
    wake: EventFd,
    /// It has nothing on its way, and waits for the gate to open.
    waits: bool,
}

impl Gate {
    /// The pass of a queue whose worker `notify` wakes.
    ///
    /// # Errors
    ///
    /// The eventfd cannot be duplicated.
    pub(super) fn pass(self: &Arc<Self>, notify: &EventFd) -> io::Result<Pass> {
        let wake = notify.try_clone()?;
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        state.queues.push(Member {
            id,
            wake,
            waits: false,
        });
        Ok(Pass {
            gate: Arc::clone(self),
            id,
        })
    }

    /// Closes the gate and waits until no queue has anything on its way. Returns none, and the gate is open again, if that
    /// takes longer than `patience`. There is one caller at a time.
    pub(super) fn close(&self, patience: Duration) -> Option<Closed<'_>> {
        let mut state = self.state();
        self.set(&mut state, true);
        let closed = Closed(self);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| {
                state.queues.iter().any(|queue| !queue.waits)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let all_wait = state.queues.iter().all(|queue| queue.waits);
        // Opening takes the lock.
        drop(state);
        all_wait.then_some(closed)
    }

    /// Whether queues must not go to the disk.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Wakes the worker of each queue.
    pub(super) fn wake(&self) {
        for queue in &self.state().queues {
            // A full counter wakes as well.
            let _ = queue.wake.write(1);
        }
    }

    fn set(&self, state: &mut State, closed: bool) {
        state.closed = closed;
        self.closed.store(closed, Ordering::Release);
        for queue in &state.queues {
            // Those that wait at the gate go on by themselves; others have held work back. A full counter wakes as well.
            if !queue.waits {
                let _ = queue.wake.write(1);
            }
        }
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A closed gate, which opens when this is dropped.
#[derive(Debug)]
pub(super) struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.set(&mut self.0.state(), false);
    }
}

/// What a queue shows at the gate, as long as it runs.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    id: u64,
}

impl Pass {
    /// Whether the queue has to finish what is on its way, and then [`Pass::wait`].
    pub(super) fn is_refused(&self) -> bool {
        self.gate.is_closed()
    }

    /// Waits, with nothing on its way, until the gate is open.
    pub(super) fn wait(&self) {
        let mut state = self.gate.state();
        self.set_waits(&mut state, true);
        let mut state = self
            .gate
            .changed
            .wait_while(state, |state| state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        self.set_waits(&mut state, false);
    }

    fn set_waits(&self, state: &mut State, waits: bool) {
        for queue in &mut state.queues {
            if queue.id == self.id {
                queue.waits = waits;
            }
        }
        self.gate.changed.notify_all();
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.queues.retain(|queue| queue.id != self.id);
        self.gate.changed.notify_all();
    }
}
