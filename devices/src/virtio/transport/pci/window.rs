//! What configuration space holds beside plain bytes: the MSI-X control word, and the window through which a driver
//! without mapped BARs reaches registers (virtio 1.2, 4.1.4.9).

use super::VirtioPci;
use super::layout::BAR;

/// Offsets from the bar field of the capability.
const OFFSET: u16 = 4;
const LENGTH: u16 = 8;
const DATA: u16 = 12;
const DATA_LEN: u16 = 4;

impl VirtioPci {
    /// Passes the guest's bits of the control word on to MSI-X, and shows what became of them.
    pub(super) fn write_msix_control(&mut self, offset: u16, data: &[u8]) {
        let at = self.capabilities.msix_control;
        let mut control = self.msix.control().to_le_bytes();
        let mut touched = false;
        for (byte, new) in (offset..).zip(data) {
            if let Some(own) = byte
                .checked_sub(at)
                .and_then(|index| control.get_mut(usize::from(index)))
            {
                *own = *new;
                touched = true;
            }
        }
        if touched {
            self.msix.set_control(u16::from_le_bytes(control));
        }
    }

    /// Shows the parts of a read that are not plain bytes.
    pub(super) fn read_window(&self, offset: u16, data: &mut [u8]) {
        overlay(
            offset,
            data,
            self.capabilities.msix_control,
            &self.msix.control().to_le_bytes(),
        );
        let field = self.capabilities.window + DATA;
        let overlaps =
            offset < field + DATA_LEN && usize::from(field) < usize::from(offset) + data.len();
        if overlaps && let Some((target, len)) = self.window() {
            // Bytes beyond the length are not defined; an empty bus reads as ones.
            let mut bytes = [0xff; DATA_LEN as usize];
            self.read_registers(target, &mut bytes[..len]);
            overlay(offset, data, field, &bytes);
        }
    }

    /// Carries a write to the data field out.
    pub(super) fn write_window(&mut self, offset: u16, data: &[u8]) {
        if offset != self.capabilities.window + DATA {
            return;
        }
        if let Some((target, len)) = self.window()
            && let Some(data) = data.get(..len)
        {
            self.write_registers(target, data);
        }
    }

    /// Offset in the BAR and length that the driver chose, if a driver may choose them.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.capabilities.window;
        let bar = self.config.word(at) as u8;
        let target = self.config.dword(at + OFFSET);
        let len = self.config.dword(at + LENGTH);
        let valid = bar == BAR && matches!(len, 1 | 2 | 4) && target.is_multiple_of(len);
        valid.then_some((u64::from(target), len as usize))
    }
}

/// Puts those of `bytes`, which are at `at`, into `data`, which is at `offset`, that lie there.
fn overlay(offset: u16, data: &mut [u8], at: u16, bytes: &[u8]) {
    for (byte, value) in (at..).zip(bytes) {
        let index = byte.checked_sub(offset).map(usize::from);
        if let Some(target) = index.and_then(|index| data.get_mut(index)) {
            *target = *value;
        }
    }
}
