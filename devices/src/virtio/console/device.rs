//! The device towards its transport.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use super::handler::{ConsoleHandler, Queues, Shared};
use super::metrics::ConsoleMetrics;
use super::port::{Client, INPUT_CAPACITY, Inlet, PortInput, PortLine};
use super::ports::{Port, Progress};
use super::spec::{
    COMMON_FEATURES, Config, F_MULTIPORT, F_SIZE, MAX_NAME_LEN, MAX_NAMED_PORTS, QUEUE_SIZE,
};
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;
use crate::virtio::device::read_fields;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-console";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// Log lines per minute that the driver can cause.
const LOG_LINES: u32 = 10;

/// What a console device cannot be made with.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The number of ports.
    #[error("{0} ports, expected 1 to {MAX_NAMED_PORTS}")]
    PortCount(usize),
    /// The name of a port.
    #[error("port name of {0} bytes, expected 1 to {MAX_NAME_LEN}")]
    Name(usize),
    /// An eventfd cannot be had.
    #[error("cannot create an eventfd")]
    Eventfd(#[source] io::Error),
}

/// A port that the guest finds by its name.
pub struct NamedPort {
    /// The name; in a Linux guest the port is `/dev/virtio-ports/NAME`.
    pub name: String,
    /// Its other end.
    pub line: Arc<dyn PortLine>,
}

/// The end of a port on the host, and its name. A console has none, and nobody may be there.
type End = (Option<String>, Option<Arc<dyn PortLine>>);

/// A console device (virtio 1.2, section 5.3).
pub struct Console {
    name: String,
    features: u64,
    queue_sizes: Vec<u16>,
    ports: Arc<[Port]>,
    /// How far each port is. With the worker while it runs.
    progress: Vec<Progress>,
    wake: Arc<EventFd>,
    metrics: Arc<ConsoleMetrics>,
    throttle: Arc<Throttle>,
    worker: Option<Worker<ConsoleHandler>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("name", &self.name)
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

impl Console {
    /// A device called `name` that is the guest's console, with `line` as its other end.
    ///
    /// # Errors
    ///
    /// An eventfd cannot be had.
    pub fn single(name: impl Into<String>, line: Arc<dyn PortLine>) -> Result<Self, ConsoleError> {
        let size = line.size().map_or(0, |_| 1 << F_SIZE);
        Self::new(name.into(), size, vec![(None, Some(line))], 2)
    }

    /// A device called `name` with one to [`MAX_NAMED_PORTS`] ports, which get the numbers from 1 on.
    ///
    /// # Errors
    ///
    /// [`ConsoleError`] names what is wrong with the ports.
    pub fn named(name: impl Into<String>, ports: Vec<NamedPort>) -> Result<Self, ConsoleError> {
        if ports.is_empty() || ports.len() > MAX_NAMED_PORTS {
            return Err(ConsoleError::PortCount(ports.len()));
        }
        if let Some(port) = ports
            .iter()
            .find(|port| port.name.is_empty() || port.name.len() > MAX_NAME_LEN)
        {
            return Err(ConsoleError::Name(port.name.len()));
        }
        // A driver that knows nothing of ports uses queues 0 and 1, and nobody is there.
        let mut all = vec![(None, None)];
        all.extend(
            ports
                .into_iter()
                .map(|port| (Some(port.name), Some(port.line))),
        );
        let queues = 2 * all.len() + 2;
        Self::new(name.into(), 1 << F_MULTIPORT, all, queues)
    }

    fn new(
        name: String,
        features: u64,
        ports: Vec<End>,
        queues: usize,
    ) -> Result<Self, ConsoleError> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ConsoleError::Eventfd)?;
        let wake = Arc::new(wake);
        let ports: Arc<[Port]> = ports
            .into_iter()
            .map(|(name, line)| Port {
                name,
                line,
                inlet: Arc::new(Inlet::new(Arc::clone(&wake))),
            })
            .collect();
        Ok(Self {
            name,
            features: COMMON_FEATURES | features,
            queue_sizes: vec![QUEUE_SIZE; queues],
            progress: fresh(&ports),
            ports,
            wake,
            metrics: Arc::default(),
            throttle: Arc::new(Throttle::per_minute(LOG_LINES)),
            worker: None,
        })
    }

    /// The receiving ends of the ports, in the order in which they were given.
    pub fn inputs(&self) -> Vec<PortInput> {
        let connected = self.ports.iter().filter(|port| port.line.is_some());
        connected.map(|port| PortInput::new(&port.inlet)).collect()
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<ConsoleMetrics> {
        Arc::clone(&self.metrics)
    }
}

fn fresh(ports: &[Port]) -> Vec<Progress> {
    ports.iter().map(|_| Progress::default()).collect()
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_CONSOLE as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let console = self.ports.first().and_then(|port| port.line.as_ref());
        let size = console.and_then(|line| line.size()).unwrap_or_default();
        let config = Config {
            cols: size.columns.into(),
            rows: size.rows.into(),
            // At most MAX_NAMED_PORTS and port 0.
            max_nr_ports: (self.ports.len() as u32).into(),
            emerg_wr: 0.into(),
        };
        read_fields(config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The only field that a driver writes belongs to a feature that is not offered (5.3.4).
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues,
            features,
            interrupt,
        } = activation;
        let shared = Shared {
            name: self.name.clone(),
            memory,
            interrupt,
            metrics: Arc::clone(&self.metrics),
            throttle: Arc::clone(&self.throttle),
        };
        let mut progress = std::mem::take(&mut self.progress);
        if progress.len() != self.ports.len() {
            // A start before this one failed, and took it along.
            progress = fresh(&self.ports);
        }
        let handler = ConsoleHandler::new(
            shared,
            features,
            Arc::clone(&self.ports),
            progress,
            Queues::new(queues, self.ports.len()),
            Arc::clone(&self.wake),
        );
        // What happened on the host's side meanwhile is looked at. A full counter is a wake-up call too.
        let _ = self.wake.write(1);
        let worker = Worker::spawn(&self.name, handler).map_err(|source| StartError::Resource {
            what: "a worker thread",
            source,
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let (queues, progress) = worker.stop().into_parts();
        self.progress = progress;
        queues
    }

    fn reset(&mut self) {
        // The next driver opens its ports itself.
        self.progress = fresh(&self.ports);
        for port in &*self.ports {
            port.inlet.set_open(false);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    ports: Vec<PortState>,
}

#[derive(Serialize, Deserialize)]
struct PortState {
    /// Bytes of the next chain of the guest that were taken already.
    taken: u64,
    /// The driver is still to be told of the port, and of its name.
    add: bool,
    tell_name: bool,
    /// The driver has taken the port.
    ready: bool,
    /// The driver knows of a client.
    client: bool,
    /// The guest has the port open.
    open: bool,
    /// Bytes for the guest.
    input: Vec<u8>,
}

impl Persist for Console {
    fn save(&self) -> Section {
        let Self {
            ports,
            progress,
            // Configuration, the same in the device that is restored into.
            name: _,
            features: _,
            queue_sizes: _,
            // Of this host.
            wake: _,
            metrics: _,
            throttle: _,
            // Stopped, its queues handed back.
            worker: _,
        } = self;
        let ports = ports.iter().zip(progress).map(|(port, progress)| {
            let Progress {
                taken,
                add,
                tell_name,
                ready,
                told,
            } = *progress;
            let (input, open) = port.inlet.save();
            PortState {
                taken,
                add,
                tell_name,
                ready,
                client: told.present,
                open,
                input,
            }
        });
        let state = State {
            ports: ports.collect(),
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State { ports } = section.decode(KIND, VERSION)?;
        if ports.len() != self.ports.len() {
            return Err(StateError::Field {
                kind: KIND,
                field: "ports",
                value: ports.len().to_string(),
                expected: self.ports.len().to_string(),
            });
        }
        if let Some(port) = ports.iter().find(|port| port.input.len() > INPUT_CAPACITY) {
            return Err(StateError::Field {
                kind: KIND,
                field: "input",
                value: format!("{} bytes", port.input.len()),
                expected: format!("at most {INPUT_CAPACITY} bytes"),
            });
        }
        self.progress.clear();
        for (port, saved) in self.ports.iter().zip(ports) {
            let PortState {
                taken,
                add,
                tell_name,
                ready,
                client,
                open,
                input,
            } = saved;
            port.inlet.restore(&input, open);
            self.progress.push(Progress {
                taken,
                add,
                tell_name,
                ready,
                // Nobody who is here now.
                told: Client {
                    session: u64::MAX,
                    present: client,
                },
            });
        }
        Ok(())
    }
}
