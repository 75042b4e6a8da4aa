//! The contract between a virtio device and its transport.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::state::Persist;

/// Why a device did not start. The transport sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A queue that the device cannot work without was not enabled by the driver.
    #[error("queue {0} was not enabled")]
    QueueMissing(u16),
    /// A host resource for the worker could not be had.
    #[error("cannot get {what}")]
    Resource {
        /// The resource: a thread, an eventfd, an io_uring.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// How a device tells its driver that something happened. Called from any thread; neither blocks nor allocates.
pub trait Interrupt: Send + Sync {
    /// Used buffers are in queue `index` (virtio 1.2, 2.3). Whether the driver wants to know was asked of the queue.
    fn queue(&self, index: u16);

    /// An eventfd whose writing does what [`Interrupt::queue`] does for `index`, until the driver chooses another interrupt
    /// for that queue ([`VirtioDevice::interrupt_moved`]): for a queue that another process serves. `None` where it takes
    /// more than an eventfd, or where none can be had.
    fn queue_eventfd(&self, _index: u16) -> Option<EventFd> {
        None
    }

    /// The configuration space changed: bumps its generation and notifies the driver.
    fn config_changed(&self);

    /// The device met something it cannot go on from, such as a broken ring: sets DEVICE_NEEDS_RESET and notifies.
    fn needs_reset(&self);
}

/// Writes by which the guest notifies one queue. Addresses are guest physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doorbell {
    /// Any write at this address.
    Any(u64),
    /// The 32-bit writes of `value` at `address`.
    Value {
        /// Where.
        address: u64,
        /// What.
        value: u32,
    },
}

/// Connects the guest's notification writes to eventfds without an exit (ioeventfd).
pub trait Notify: Send + Sync {
    /// Lets `doorbell` signal `eventfd`.
    ///
    /// # Errors
    ///
    /// The host refused; writes then arrive as register writes, and the transport signals the eventfd itself.
    fn bind(&self, doorbell: Doorbell, eventfd: &EventFd) -> io::Result<()>;

    /// Undoes a [`Notify::bind`] with the same arguments.
    ///
    /// # Errors
    ///
    /// There was no such binding.
    fn unbind(&self, doorbell: Doorbell, eventfd: &EventFd) -> io::Result<()>;
}

/// A queue in the hands of a device.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue's index in the device.
    pub index: u16,
    /// The ring as the driver configured it; its addresses were checked to be in memory.
    pub queue: Queue,
    /// Readable when the driver notified the queue. It is readable once right after a start, so that work which was
    /// there before is found.
    pub notify: EventFd,
}

/// What a device needs to run.
pub struct Activation {
    /// Guest memory.
    pub memory: GuestRam,
    /// The enabled queues in ascending order of index; a queue the driver did not enable is absent.
    pub queues: Vec<ActiveQueue>,
    /// Feature bits accepted by the driver, a subset of those offered.
    pub features: u64,
    /// The way to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A virtio device: what stays the same whether it is found over PCI or MMIO.
pub trait VirtioDevice: Persist + Send {
    /// Device ID (virtio 1.2, section 5).
    fn device_id(&self) -> u16;

    /// A short name for threads and logs, such as `virtio-_disk0`.
    fn name(&self) -> &str;

    /// Feature bits offered, VIRTIO_F_VERSION_1 and the ring features included; does not change while the device lives.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration space; bytes beyond its end stay as they are.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space; a field that is read-only ignores it.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready (DRIVER_OK), or the machine resumes: takes the queues and works on them.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing runs then, and the queues are gone.
    fn start(&mut self, activation: Activation) -> Result<(), StartError>;

    /// Stops all work and hands the queues back, in-flight requests drained and in the used ring. Returns an empty list
    /// if the device does not run.
    fn stop(&mut self) -> Vec<ActiveQueue>;

    /// The driver reset the device, which was stopped before: forgets what that driver had set.
    fn reset(&mut self);

    /// The driver chose another interrupt for queue `index` while the device runs. Only of interest to a device that uses
    /// [`Interrupt::queue_eventfd`].
    fn interrupt_moved(&mut self, _index: u16) {}
}

/// Reads device configuration space that consists of `fields`, as [`VirtioDevice::read_config`] does.
pub(crate) fn read_fields(fields: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| fields.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}
