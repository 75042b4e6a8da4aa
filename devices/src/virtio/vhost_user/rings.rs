//! A device's part: its queues, at the backend or here.

use std::io;
use std::sync::Arc;

use tracing::warn;

use super::backend::Backend;
use crate::memory::GuestRam;
use crate::throttle::Throttle;
use crate::virtio::{Activation, ActiveQueue, Interrupt, StartError};

static FAILURES: Throttle = Throttle::per_minute(10);

/// No connection has this number.
const OF_ANOTHER_PROCESS: u64 = 0;

/// The queues of a device that a backend serves.
pub struct Rings {
    backend: Arc<Backend>,
    running: Option<Running>,
    /// The connection that knows the driver: what it was told, what it has open. Forgotten by a reset.
    session: Option<u64>,
}

struct Running {
    memory: GuestRam,
    queues: Vec<ActiveQueue>,
    interrupt: Arc<dyn Interrupt>,
}

impl Rings {
    /// Queues that `backend` will serve.
    pub fn new(backend: Arc<Backend>) -> Self {
        Self {
            backend,
            running: None,
            session: None,
        }
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Gives the queues to the backend, as [`VirtioDevice::start`](crate::virtio::VirtioDevice::start) does. A driver whose
    /// backend was lost has to reset the device first.
    ///
    /// # Errors
    ///
    /// [`StartError`], whose source names the backend's socket.
    pub fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues,
            features,
            interrupt,
        } = activation;
        let session = self
            .backend
            .begin(self.session, &memory, &queues, features, &interrupt)
            .map_err(|error| StartError::Resource {
                what: "a backend for the queues",
                source: io::Error::other(chain(&error)),
            })?;
        self.session = Some(session);
        self.running = Some(Running {
            memory,
            queues,
            interrupt,
        });
        Ok(())
    }

    /// Takes the queues back, as [`VirtioDevice::stop`](crate::virtio::VirtioDevice::stop) does. Those of a backend that is
    /// lost are as they were when it got them.
    pub fn stop(&mut self) -> Vec<ActiveQueue> {
        let Some(Running {
            memory, mut queues, ..
        }) = self.running.take()
        else {
            return Vec::new();
        };
        if let Err(error) = self.backend.end(&memory, &mut queues)
            && let Some(suppressed) = FAILURES.allow()
        {
            warn!(error = chain(&error), suppressed, "rings are lost");
        }
        queues
    }

    /// The driver reset the device: it knows of nothing that it did before.
    pub fn reset(&mut self) {
        self.session = None;
    }

    /// The state comes from another process, whose backend knew the driver. This one does not, and the driver has to start
    /// anew.
    pub fn restored(&mut self) {
        self.session = Some(OF_ANOTHER_PROCESS);
    }

    /// The driver chose another interrupt for queue `index`.
    pub fn interrupt_moved(&mut self, index: u16) {
        if let Some(running) = &self.running
            && running.queues.iter().any(|active| active.index == index)
        {
            self.backend.move_interrupt(index, &*running.interrupt);
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
