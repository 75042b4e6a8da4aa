//! Where the registers are in BAR 0, and the capabilities that tell the driver (virtio 1.2, 4.1.4).

use std::ops::Range;

use crate::pci::{BarKind, Capability, ConfigSpace, PBA_ENTRY_BITS, TABLE_ENTRY_LEN};

/// The only BAR.
pub(super) const BAR: u8 = 0;
/// Bytes between the notification registers of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// Length of the common configuration without the fields of features that are not offered.
pub(super) const COMMON_LEN: u64 = 0x38;

const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;

/// Types of virtio capabilities.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

const VENDOR_CAPABILITY: u8 = 0x09;
const MSIX_CAPABILITY: u8 = 0x11;

/// A group of registers in BAR 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

/// The ranges of BAR 0, each from a page of its own.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    notify: Range<u64>,
    table: Range<u64>,
    pending: Range<u64>,
}

/// Where the capabilities are in configuration space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities {
    /// Offset of the MSI-X control word.
    pub(super) msix_control: u16,
    /// Offset of the bar field of the configuration access capability.
    pub(super) window: u16,
}

impl Layout {
    pub(super) fn new(queues: u16, vectors: u16) -> Self {
        let region = |start: u64, len: u64| start..start + len;
        let notify = region(
            NOTIFY,
            u64::from(NOTIFY_MULTIPLIER) * u64::from(queues.max(1)),
        );
        let table = region(
            notify.end.next_multiple_of(PAGE),
            TABLE_ENTRY_LEN * u64::from(vectors),
        );
        let pending = region(
            table.end.next_multiple_of(PAGE),
            8 * u64::from(vectors).div_ceil(PBA_ENTRY_BITS),
        );
        Self {
            notify,
            table,
            pending,
        }
    }

    /// Length of the BAR in bytes.
    pub(super) fn len(&self) -> u64 {
        self.pending.end.next_multiple_of(PAGE).next_power_of_two()
    }

    /// The region that an access lies wholly in, and its offset there.
    pub(super) fn find(&self, offset: u64, len: usize) -> Option<(Region, u64)> {
        let end = offset.checked_add(len as u64)?;
        let regions = [
            (Region::Common, COMMON..COMMON + COMMON_LEN),
            (Region::Isr, ISR..ISR + 1),
            (Region::Device, DEVICE..DEVICE + PAGE),
            (Region::Notify, self.notify.clone()),
            (Region::MsixTable, self.table.clone()),
            (Region::MsixPending, self.pending.clone()),
        ];
        regions
            .into_iter()
            .find(|(_, range)| range.start <= offset && end <= range.end)
            .map(|(region, range)| (region, offset - range.start))
    }

    /// Offset of the notification register of queue `index` in the BAR.
    pub(super) fn notify_offset(&self, index: u16) -> u64 {
        self.notify.start + u64::from(NOTIFY_MULTIPLIER) * u64::from(index)
    }

    /// Adds the BAR and all capabilities to `config`.
    pub(super) fn describe(&self, config: &mut ConfigSpace, msix_control: u16) -> Capabilities {
        config.add_bar(BAR, BarKind::Memory64, self.len());
        let mut msix = [0; 10];
        msix[..2].copy_from_slice(&msix_control.to_le_bytes());
        msix[2..6].copy_from_slice(&(self.table.start as u32 | u32::from(BAR)).to_le_bytes());
        msix[6..].copy_from_slice(&(self.pending.start as u32 | u32::from(BAR)).to_le_bytes());
        let msix = config.add_capability(Capability {
            id: MSIX_CAPABILITY,
            body: &msix,
            writable: &[],
        });
        let mut add = |kind: u8, range: Range<u64>, extra: &[u8], writable: &[u8]| {
            let mut body = [0; 18];
            let len = 14 + extra.len();
            body[0] = 2 + len as u8;
            body[1] = kind;
            body[2] = BAR;
            body[6..10].copy_from_slice(&(range.start as u32).to_le_bytes());
            body[10..14].copy_from_slice(&((range.end - range.start) as u32).to_le_bytes());
            body[14..len].copy_from_slice(extra);
            config.add_capability(Capability {
                id: VENDOR_CAPABILITY,
                body: &body[..len],
                writable,
            })
        };
        add(COMMON_CFG, COMMON..COMMON + COMMON_LEN, &[], &[]);
        add(
            NOTIFY_CFG,
            self.notify.clone(),
            &NOTIFY_MULTIPLIER.to_le_bytes(),
            &[],
        );
        add(ISR_CFG, ISR..ISR + 1, &[], &[]);
        add(DEVICE_CFG, DEVICE..DEVICE + PAGE, &[], &[]);
        // The driver writes bar, offset and length; the data field is not memory.
        let window = [
            0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        let window = add(PCI_CFG, 0..0, &[0; 4], &window);
        Capabilities {
            msix_control: msix + 2,
            window: window + 4,
        }
    }
}
