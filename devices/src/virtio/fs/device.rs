//! The device towards its transport.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use zerocopy::IntoBytes;

use super::spec::{self, Config, TAG_LEN};
use crate::state::{Persist, Section, StateError};
use crate::virtio::device::read_fields;
use crate::virtio::vhost_user::{Backend, Needs, Rings, VhostUserMetrics};
use crate::virtio::{Activation, ActiveQueue, StartError, VirtioDevice};

/// Kind of the saved state.
const KIND: &str = "virtio-fs";

/// Newest version of the saved state.
const VERSION: u16 = 1;

/// The most queues for requests: vhost-user numbers queues with 8 bits, and one is not for requests.
pub const MAX_REQUEST_QUEUES: u16 = 255;

/// What a file system device cannot be made with.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is empty, too long for the driver, or has a NUL byte in it.
    #[error("tag is {0:?}, expected 1 to {TAG_LEN} bytes without NUL")]
    Tag(String),
    /// The number of queues cannot be.
    #[error("there are {0} queues for requests, expected 1 to {MAX_REQUEST_QUEUES}")]
    Queues(u16),
    /// The size of the queues cannot be.
    #[error("queues have size {0}, expected a power of two up to 32768")]
    QueueSize(u16),
}

/// What a device is like.
#[derive(Clone, Debug)]
pub struct FsSetup {
    /// Name of its thread and in logs, as in `virtio-_fs0`.
    pub name: String,
    /// What the guest mounts it by: 1 to 36 bytes.
    pub tag: String,
    /// Number of queues for requests.
    pub request_queues: u16,
    /// Descriptors per queue.
    pub queue_size: u16,
}

/// What a device with `request_queues` queues for requests needs of its backend.
pub fn needs(request_queues: u16) -> Needs {
    Needs {
        queues: request_queues.saturating_add(spec::FIRST_REQUEST),
        features: 0,
    }
}

/// A file system device (virtio 1.2, 5.11).
pub struct Fs {
    name: String,
    config: Config,
    queue_sizes: Vec<u16>,
    rings: Rings,
}

impl fmt::Debug for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("backend", self.rings.backend())
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// A device whose queues `backend` serves, which was connected for what it [`needs`].
    ///
    /// # Errors
    ///
    /// [`FsError`] names what cannot be.
    pub fn new(setup: FsSetup, backend: Arc<Backend>) -> Result<Self, FsError> {
        let FsSetup {
            name,
            tag,
            request_queues,
            queue_size,
        } = setup;
        let mut padded = [0; TAG_LEN];
        let bytes = tag.as_bytes();
        if bytes.is_empty() || bytes.len() > TAG_LEN || bytes.contains(&0) {
            return Err(FsError::Tag(tag));
        }
        padded[..bytes.len()].copy_from_slice(bytes);
        if !(1..=MAX_REQUEST_QUEUES).contains(&request_queues) {
            return Err(FsError::Queues(request_queues));
        }
        if !queue_size.is_power_of_two() {
            return Err(FsError::QueueSize(queue_size));
        }
        Ok(Self {
            name,
            config: Config {
                tag: padded,
                num_request_queues: u32::from(request_queues).into(),
            },
            queue_sizes: vec![queue_size; usize::from(needs(request_queues).queues)],
            rings: Rings::new(backend),
        })
    }

    /// The backend, which is told of changes of the guest's memory.
    pub fn backend(&self) -> Arc<Backend> {
        Arc::clone(self.rings.backend())
    }

    /// The counters, which live on after the device.
    pub fn metrics(&self) -> Arc<VhostUserMetrics> {
        self.rings.backend().metrics()
    }
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u16 {
        VIRTIO_ID_FS as u16
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.rings.backend().features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.config.as_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // All fields are read-only for the driver (5.11.4).
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        for index in [spec::HIPRIO, spec::FIRST_REQUEST] {
            if activation.queues.iter().all(|queue| queue.index != index) {
                return Err(StartError::QueueMissing(index));
            }
        }
        self.rings.start(activation)
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.rings.stop()
    }

    fn reset(&mut self) {
        self.rings.reset();
    }

    fn interrupt_moved(&mut self, index: u16) {
        self.rings.interrupt_moved(index);
    }
}

/// What is saved. What the backend knows of the driver, such as open files, is not part of it: a driver that is restored
/// is told that the device needs a reset.
#[derive(Serialize, Deserialize)]
struct State {
    tag: Vec<u8>,
    request_queues: u32,
}

impl Persist for Fs {
    fn save(&self) -> Section {
        let Self {
            config: Config {
                tag,
                num_request_queues,
            },
            // Configuration, the same in the device that is restored into; the transport has the queues.
            name: _,
            queue_sizes: _,
            // Stopped, its queues handed back.
            rings: _,
        } = self;
        let state = State {
            tag: tag.to_vec(),
            request_queues: num_request_queues.get(),
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            tag,
            request_queues,
        } = section.decode(KIND, VERSION)?;
        let field = |field, value: String, expected: String| {
            Err(StateError::Field {
                kind: KIND,
                field,
                value,
                expected,
            })
        };
        // The driver has read both, and does not read them again.
        if tag != self.config.tag {
            let [value, expected] =
                [&tag[..], &self.config.tag].map(|tag| String::from_utf8_lossy(tag).into_owned());
            return field("tag", value, expected);
        }
        let here = self.config.num_request_queues.get();
        if request_queues != here {
            return field(
                "request_queues",
                request_queues.to_string(),
                here.to_string(),
            );
        }
        self.rings.restored();
        Ok(())
    }
}
