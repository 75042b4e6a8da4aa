//! A device without a life of its own, and the host's side of notifications.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use crate::state::{Persist, Section, StateError};
use crate::virtio::{
    Activation, ActiveQueue, Doorbell, Interrupt, Notify, StartError, VirtioDevice,
};

pub(in crate::virtio::transport) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << 5;
/// A device ID that is neither block nor net.
pub(in crate::virtio::transport) const DEVICE_ID: u16 = 42;

/// What became of the device, for the test to look at.
#[derive(Default)]
pub(in crate::virtio::transport) struct Log {
    pub(in crate::virtio::transport) starts: u32,
    pub(in crate::virtio::transport) stops: u32,
    pub(in crate::virtio::transport) resets: u32,
    pub(in crate::virtio::transport) features: u64,
    pub(in crate::virtio::transport) fail_start: bool,
    /// Queues whose interrupt moved while the device ran.
    pub(in crate::virtio::transport) moved: Vec<u16>,
    pub(in crate::virtio::transport) queues: Vec<ActiveQueue>,
    pub(in crate::virtio::transport) interrupt: Option<Arc<dyn Interrupt>>,
}

impl Log {
    /// How often the device was started and stopped.
    pub(in crate::virtio::transport) fn runs(&self) -> (u32, u32) {
        (self.starts, self.stops)
    }
}

/// A device that keeps its queues, and does nothing with them.
pub(in crate::virtio::transport) struct Idle {
    log: Arc<Mutex<Log>>,
    config: [u8; 8],
}

pub(in crate::virtio::transport) fn idle() -> Idle {
    Idle {
        log: Arc::default(),
        config: [1, 2, 3, 4, 5, 6, 7, 8],
    }
}

impl Idle {
    pub(in crate::virtio::transport) fn log(&self) -> Arc<Mutex<Log>> {
        Arc::clone(&self.log)
    }
}

impl VirtioDevice for Idle {
    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn name(&self) -> &str {
        "idle"
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (value, target) in self.config.iter().skip(offset as usize).zip(data) {
            *target = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (value, new) in self.config.iter_mut().skip(offset as usize).zip(data) {
            *value = *new;
        }
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let mut log = self.log.lock().unwrap();
        if log.fail_start {
            return Err(StartError::QueueMissing(1));
        }
        assert!(log.interrupt.is_none(), "started twice");
        log.starts += 1;
        log.features = activation.features;
        log.queues = activation.queues;
        log.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let mut log = self.log.lock().unwrap();
        if log.interrupt.take().is_none() {
            return Vec::new();
        }
        log.stops += 1;
        std::mem::take(&mut log.queues)
    }

    fn reset(&mut self) {
        let mut log = self.log.lock().unwrap();
        assert!(log.interrupt.is_none(), "reset while running");
        log.resets += 1;
    }

    fn interrupt_moved(&mut self, index: u16) {
        let mut log = self.log.lock().unwrap();
        assert!(log.interrupt.is_some(), "moved while it does not run");
        log.moved.push(index);
    }
}

#[derive(Serialize, Deserialize)]
struct IdleState {
    config: [u8; 8],
}

impl Persist for Idle {
    fn save(&self) -> Section {
        let Self { log: _, config } = self;
        Section::new("idle", 1, &IdleState { config: *config })
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let IdleState { config } = section.decode("idle", 1)?;
        self.config = config;
        Ok(())
    }
}

/// Doorbells, and the descriptors they signal.
#[derive(Default)]
pub(in crate::virtio::transport) struct Bindings(Mutex<BTreeMap<Doorbell, i32>>);

impl Bindings {
    pub(in crate::virtio::transport) fn doorbells(&self) -> Vec<Doorbell> {
        self.0.lock().unwrap().keys().copied().collect()
    }
}

impl Notify for Bindings {
    fn bind(&self, doorbell: Doorbell, eventfd: &EventFd) -> io::Result<()> {
        let before = self.0.lock().unwrap().insert(doorbell, eventfd.as_raw_fd());
        assert_eq!(before, None);
        Ok(())
    }

    fn unbind(&self, doorbell: Doorbell, eventfd: &EventFd) -> io::Result<()> {
        let before = self.0.lock().unwrap().remove(&doorbell);
        assert_eq!(before, Some(eventfd.as_raw_fd()));
        Ok(())
    }
}
