//! The common configuration registers (virtio 1.2, 4.1.4.3).

use super::super::core::{Ring, TransportCore};
use super::interrupt::Vectors;
use super::layout::COMMON_LEN;

/// Registers that only select what others show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Selectors {
    pub(super) device_feature: u32,
    pub(super) driver_feature: u32,
    pub(super) queue: u16,
}

/// The registers as bytes. None has a side effect on reading.
pub(super) fn read(
    core: &TransportCore,
    vectors: &Vectors,
    generation: u32,
    selectors: &Selectors,
) -> [u8; COMMON_LEN as usize] {
    let mut bytes = [0; COMMON_LEN as usize];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x00, &selectors.device_feature.to_le_bytes());
    put(
        0x04,
        &core.device_features(selectors.device_feature).to_le_bytes(),
    );
    put(0x08, &selectors.driver_feature.to_le_bytes());
    put(
        0x0c,
        &core.driver_features(selectors.driver_feature).to_le_bytes(),
    );
    put(0x10, &vectors.config().to_le_bytes());
    put(0x12, &core.queue_count().to_le_bytes());
    put(0x14, &[core.status().bits()]);
    put(0x15, &[generation as u8]);
    put(0x16, &selectors.queue.to_le_bytes());
    put(0x1a, &vectors.queue(selectors.queue).to_le_bytes());
    // A queue that does not exist has size 0.
    if let Some(queue) = core.queue(selectors.queue) {
        put(0x18, &queue.size().to_le_bytes());
        put(0x1c, &u16::from(queue.enabled()).to_le_bytes());
        put(0x1e, &selectors.queue.to_le_bytes());
        put(0x20, &queue.address(Ring::Descriptors).to_le_bytes());
        put(0x28, &queue.address(Ring::Available).to_le_bytes());
        put(0x30, &queue.address(Ring::Used).to_le_bytes());
    }
    bytes
}

/// Takes a write of the driver, which accesses each register at its own width, and a 64-bit one also by halves (virtio
/// 1.2, 4.1.3.1). Other writes are lost.
pub(super) fn write(
    core: &mut TransportCore,
    vectors: &Vectors,
    selectors: &mut Selectors,
    offset: u64,
    data: &[u8],
) {
    match (offset, data) {
        (0x00, &[a, b, c, d]) => selectors.device_feature = u32::from_le_bytes([a, b, c, d]),
        (0x08, &[a, b, c, d]) => selectors.driver_feature = u32::from_le_bytes([a, b, c, d]),
        (0x0c, &[a, b, c, d]) => {
            core.set_driver_features(selectors.driver_feature, u32::from_le_bytes([a, b, c, d]));
        }
        (0x10, &[a, b]) => vectors.set_config(u16::from_le_bytes([a, b])),
        (0x14, &[status]) => {
            core.set_status(status);
            if status == 0 {
                vectors.reset();
                *selectors = Selectors::default();
            }
        }
        (0x16, &[a, b]) => selectors.queue = u16::from_le_bytes([a, b]),
        (0x1a, &[a, b]) => {
            vectors.set_queue(selectors.queue, u16::from_le_bytes([a, b]));
            core.interrupt_moved(selectors.queue);
        }
        (0x18, &[a, b]) => {
            if let Some(queue) = core.queue_mut(selectors.queue) {
                queue.set_size(u16::from_le_bytes([a, b]));
            }
        }
        (0x1c, &[a, b]) => {
            // Writing 0 is not for drivers: a queue is disabled by a reset only.
            if let Some(queue) = core.queue_mut(selectors.queue)
                && u16::from_le_bytes([a, b]) == 1
            {
                queue.enable();
            }
        }
        (0x20..0x38, _) => write_address(core, selectors.queue, offset - 0x20, data),
        _ => {}
    }
}

/// Writes one of the three 64-bit addresses, whole or one half.
fn write_address(core: &mut TransportCore, queue: u16, offset: u64, data: &[u8]) {
    let ring = match offset / 8 {
        0 => Ring::Descriptors,
        1 => Ring::Available,
        _ => Ring::Used,
    };
    let Some(queue) = core.queue_mut(queue) else {
        return;
    };
    let old = queue.address(ring);
    let address = match (offset % 8, data.len()) {
        (0, 8) => value(data),
        (0, 4) => old & !0xffff_ffff | value(data),
        (4, 4) => old & 0xffff_ffff | value(data) << 32,
        _ => return,
    };
    queue.set_address(ring, address);
}

/// Up to 8 little-endian bytes.
fn value(data: &[u8]) -> u64 {
    data.iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
