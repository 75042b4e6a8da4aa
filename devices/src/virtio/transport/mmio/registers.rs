//! The control registers (virtio 1.2, 4.2.2).

use super::super::core::{Isr, QueueRegisters, Ring, Signals, TransportCore};

/// `virt`.
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout; 1 is the legacy one.
const VERSION: u32 = 2;
/// No vendor is told apart by its number; this is the one that PCI devices of virtio have.
const VENDOR: u32 = 0x1af4;
/// Length and address of a shared memory region that does not exist (virtio 1.2, 4.2.2.1).
const NO_REGION: u32 = u32::MAX;

const MAGIC_VALUE: u64 = 0x000;
const VERSION_NUMBER: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
/// Also bound to eventfds, one for each value.
pub(super) const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_LEN_HIGH: u64 = 0x0b4;
const SHM_BASE_LOW: u64 = 0x0b8;
const SHM_BASE_HIGH: u64 = 0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;

/// Registers that only select what others show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Selectors {
    pub(super) device_features: u32,
    pub(super) driver_features: u32,
    pub(super) queue: u32,
}

impl Selectors {
    /// The queue, if there can be one of that number.
    fn queue(&self) -> Option<u16> {
        u16::try_from(self.queue).ok()
    }
}

/// The register at `offset`, unless it is one for writing, or none. None has a side effect on reading.
pub(super) fn read(
    core: &TransportCore,
    signals: &Signals,
    selectors: &Selectors,
    offset: u64,
) -> Option<u32> {
    let queue = selectors.queue().and_then(|index| core.queue(index));
    Some(match offset {
        MAGIC_VALUE => MAGIC,
        VERSION_NUMBER => VERSION,
        DEVICE_ID => core.device().device_id().into(),
        VENDOR_ID => VENDOR,
        DEVICE_FEATURES => core.device_features(selectors.device_features),
        // A queue that does not exist has size 0, and is never ready.
        QUEUE_NUM_MAX => queue.map_or(0, QueueRegisters::max_size).into(),
        QUEUE_READY => queue.is_some_and(QueueRegisters::enabled).into(),
        INTERRUPT_STATUS => signals.isr().bits().into(),
        STATUS => core.status().bits().into(),
        SHM_LEN_LOW | SHM_LEN_HIGH | SHM_BASE_LOW | SHM_BASE_HIGH => NO_REGION,
        CONFIG_GENERATION => signals.generation(),
        _ => return None,
    })
}

/// Takes a write of the driver. What is no register for writing ignores it.
pub(super) fn write(
    core: &mut TransportCore,
    signals: &Signals,
    selectors: &mut Selectors,
    offset: u64,
    value: u32,
) {
    match offset {
        DEVICE_FEATURES_SEL => selectors.device_features = value,
        DRIVER_FEATURES => core.set_driver_features(selectors.driver_features, value),
        DRIVER_FEATURES_SEL => selectors.driver_features = value,
        QUEUE_SEL => selectors.queue = value,
        QUEUE_NOTIFY => {
            if let Ok(index) = u16::try_from(value) {
                core.notify(index);
            }
        }
        INTERRUPT_ACK => signals.acknowledge(Isr::from_bits_truncate(value as u8)),
        STATUS => write_status(core, selectors, value),
        _ => write_queue(core, selectors, offset, value),
    }
}

fn write_status(core: &mut TransportCore, selectors: &mut Selectors, value: u32) {
    match (value, value as u8) {
        (0, _) => {
            core.set_status(0);
            *selectors = Selectors::default();
        }
        // Bits beyond the status alone are no reset.
        (_, 0) => {}
        (_, status) => core.set_status(status),
    }
}

/// Takes a write to a register of the selected queue.
fn write_queue(core: &mut TransportCore, selectors: &Selectors, offset: u64, value: u32) {
    let Some(index) = selectors.queue() else {
        return;
    };
    if offset == QUEUE_READY && value == 0 {
        core.disable_queue(index);
        return;
    }
    let Some(queue) = core.queue_mut(index) else {
        return;
    };
    let (low, high) = (0xffff_ffff, 0xffff_ffff << 32);
    let mut set = |ring, kept: u64, value: u64| {
        queue.set_address(ring, queue.address(ring) & kept | value);
    };
    let value64 = u64::from(value);
    match offset {
        // A size that is too large for the register is too large for the queue, and is found when it is built.
        QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(u16::MAX)),
        QUEUE_READY if value == 1 => queue.enable(),
        QUEUE_DESC_LOW => set(Ring::Descriptors, high, value64),
        QUEUE_DESC_HIGH => set(Ring::Descriptors, low, value64 << 32),
        QUEUE_DRIVER_LOW => set(Ring::Available, high, value64),
        QUEUE_DRIVER_HIGH => set(Ring::Available, low, value64 << 32),
        QUEUE_DEVICE_LOW => set(Ring::Used, high, value64),
        QUEUE_DEVICE_HIGH => set(Ring::Used, low, value64 << 32),
        _ => {}
    }
}
