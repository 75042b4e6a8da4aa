//! The device towards its transport.

use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::IntoBytes;

use super::handler::{Shared, VsockHandler};
use super::host::{Connector, Host};
use super::metrics::VsockMetrics;
use super::rx::Rx;
use super::spec::{self, Config};
use super::tx::Tx;
use crate::state::{Persist, Section, StateError};
use crate::virtio::device::read_fields;
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice, Worker};

/// Kind of the saved state.
const KIND: &str = "virtio-vsock";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// The largest size of each queue.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// How long a program on the host may take to say where to, and the guest to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << spec::VIRTIO_VSOCK_F_STREAM;

/// What a vsock device cannot be made with.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The address is not one of a guest.
    #[error("cid is {0}, expected 3 to 4294967294")]
    Cid(u32),
    /// The listening socket cannot be polled.
    #[error("cannot make the listening socket non-blocking")]
    Listener(#[source] io::Error),
}

/// The socket device (virtio 1.2, section 5.10), its other side Unix sockets of the host.
pub struct Vsock {
    name: String,
    guest_cid: u32,
    listener: Arc<UnixListener>,
    connector: Arc<dyn Connector>,
    timeout: Duration,
    metrics: Arc<VsockMetrics>,
    worker: Option<Worker<VsockHandler>>,
    /// The host's side during a pause.
    parked: Option<Host>,
    announces_reset: bool,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("name", &self.name)
            .field("guest_cid", &self.guest_cid)
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Vsock {
    /// Makes a device called `name` for the guest with the address `guest_cid`. Programs on the host connect to `listener`;
    /// those that the guest connects to are found by `connector`.
    ///
    /// # Errors
    ///
    /// [`VsockError`] names what cannot be.
    pub fn new(
        name: impl Into<String>,
        guest_cid: u32,
        listener: Arc<UnixListener>,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, VsockError> {
        if !spec::GUEST_CIDS.contains(&guest_cid) {
            return Err(VsockError::Cid(guest_cid));
        }
        listener
            .set_nonblocking(true)
            .map_err(VsockError::Listener)?;
        Ok(Self {
            name: name.into(),
            guest_cid,
            listener,
            connector,
            timeout: TIMEOUT,
            metrics: Arc::default(),
            worker: None,
            parked: None,
            announces_reset: false,
        })
    }

    /// Sets how long a program on the host may take to say where to, and the guest to accept a connection and to answer its
    /// end; 10 seconds otherwise.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The host's side as the last pause left it, or a new one.
    fn host(&mut self) -> io::Result<Host> {
        if let Some(mut host) = self.parked.take() {
            host.resume();
            return Ok(host);
        }
        Host::new(
            Arc::clone(&self.listener),
            Arc::clone(&self.connector),
            self.timeout,
            Arc::clone(&self.metrics),
        )
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_VSOCK as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            guest_cid: u64::from(self.guest_cid).into(),
        };
        read_fields(config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The only field is read-only for the driver (5.10.4).
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation {
            memory,
            queues,
            features: _,
            interrupt,
        } = activation;
        let (mut rx, mut tx, mut event) = (None, None, None);
        for active in queues {
            match active.index {
                spec::RX => rx = Some(active),
                spec::TX => tx = Some(active),
                spec::EVENT => event = Some(active),
                _ => {}
            }
        }
        let rx = rx.ok_or(StartError::QueueMissing(spec::RX))?;
        let tx = tx.ok_or(StartError::QueueMissing(spec::TX))?;
        let resource = |what| move |source| StartError::Resource { what, source };
        let host = self
            .host()
            .map_err(resource("an epoll instance and a timer"))?;
        let shared = Shared {
            name: self.name.clone(),
            guest_cid: self.guest_cid,
            memory,
            interrupt,
            metrics: Arc::clone(&self.metrics),
        };
        let handler = VsockHandler::new(
            shared,
            host,
            Rx::new(rx),
            Tx::new(tx),
            event,
            self.announces_reset,
        );
        let worker = Worker::spawn(&self.name, handler).map_err(resource("a worker thread"))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        let (host, queues, announces_reset) = worker.stop().into_parts();
        self.parked = Some(host);
        self.announces_reset = announces_reset;
        queues
    }

    fn reset(&mut self) {
        // The next driver knows of no connections.
        self.parked = None;
        self.announces_reset = false;
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    guest_cid: u32,
}

impl Persist for Vsock {
    fn save(&self) -> Section {
        let Self {
            guest_cid,
            // Configuration, the same in the device that is restored into.
            name: _,
            timeout: _,
            // Of this host. Connections do not survive, which the driver is told when it runs again.
            listener: _,
            connector: _,
            metrics: _,
            parked: _,
            announces_reset: _,
            // Stopped, its queues handed back.
            worker: _,
        } = self;
        let state = State {
            guest_cid: *guest_cid,
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State { guest_cid } = section.decode(KIND, VERSION)?;
        if !spec::GUEST_CIDS.contains(&guest_cid) {
            return Err(StateError::Field {
                kind: KIND,
                field: "guest_cid",
                value: guest_cid.to_string(),
                expected: "3 to 4294967294".to_owned(),
            });
        }
        self.guest_cid = guest_cid;
        self.announces_reset = true;
        Ok(())
    }
}
