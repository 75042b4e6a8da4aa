//! MSI-X: the vector table, the pending bits, and the capability's control word (PCI Local Bus 3.0, 6.8.2).

use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Msi, MsiMessage};
use crate::state::StateError;
use crate::throttle::Throttle;

/// Length of a table entry in bytes: message address, message data, vector control.
pub const TABLE_ENTRY_LEN: u64 = 16;
/// Pending bits in one entry of the pending bit array, which is 8 bytes.
pub const PBA_ENTRY_BITS: u64 = 64;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

static REFUSED_VECTORS: Throttle = Throttle::per_minute(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

impl Entry {
    /// As after a reset.
    const MASKED: Self = Self {
        address: 0,
        data: 0,
        control: VECTOR_MASKED,
    };

    fn dword(&self, index: u64) -> u32 {
        match index {
            0 => self.address as u32,
            1 => (self.address >> 32) as u32,
            2 => self.data,
            _ => self.control,
        }
    }

    fn set_dword(&mut self, index: u64, value: u32) {
        match index {
            0 => self.address = self.address & !0xffff_ffff | u64::from(value),
            1 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.control = value & VECTOR_MASKED,
        }
    }
}

/// The MSI-X vectors of a function.
///
/// A vector is connected while MSI-X is enabled and neither the function nor the vector is masked. While it is not, the
/// count of its eventfd is its pending bit.
pub struct Msix {
    msi: Arc<dyn Msi>,
    table: Vec<Entry>,
    connected: Vec<Option<MsiMessage>>,
    enabled: bool,
    function_masked: bool,
}

/// Saved state of [`Msix`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    table: Vec<Entry>,
    pending: Vec<bool>,
    enabled: bool,
    function_masked: bool,
}

impl Msix {
    /// The vectors of `msi`, all masked, MSI-X disabled.
    pub fn new(msi: Arc<dyn Msi>) -> Self {
        let vectors = usize::from(msi.vectors());
        Self {
            msi,
            table: vec![Entry::MASKED; vectors],
            connected: vec![None; vectors],
            enabled: false,
            function_masked: false,
        }
    }

    /// The control word of the capability.
    pub fn control(&self) -> u16 {
        let mut control = self.msi.vectors().saturating_sub(1) & 0x7ff;
        if self.enabled {
            control |= CONTROL_ENABLE;
        }
        if self.function_masked {
            control |= CONTROL_FUNCTION_MASK;
        }
        control
    }

    /// Takes the two bits of the control word that a guest can write.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        (0..self.table.len()).for_each(|vector| self.apply(vector));
    }

    /// Reads the table: aligned accesses of 4 or 8 bytes; others leave `data` as it is.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        for (at, part) in (offset / 4..).zip(data.chunks_exact_mut(4)) {
            if let Some(entry) = self.table.get((at / 4) as usize) {
                part.copy_from_slice(&entry.dword(at % 4).to_le_bytes());
            }
        }
    }

    /// Writes the table: aligned accesses of 4 or 8 bytes; others are lost.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        for (at, part) in (offset / 4..).zip(data.as_chunks::<4>().0) {
            if let Some(entry) = self.table.get_mut((at / 4) as usize) {
                entry.set_dword(at % 4, u32::from_le_bytes(*part));
            }
        }
        // An aligned access of 8 bytes stays in one entry.
        let vector = (offset / TABLE_ENTRY_LEN) as usize;
        if vector < self.table.len() {
            self.apply(vector);
        }
    }

    /// Reads the pending bit array: aligned accesses of 4 or 8 bytes; others leave `data` as it is.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        for (byte, part) in (offset..).zip(data.iter_mut()) {
            *part = (0..8).fold(0, |bits, bit| {
                let vector = byte.saturating_mul(8).saturating_add(bit);
                bits | u8::from(self.is_pending(vector)) << bit
            });
        }
    }

    /// The vectors as of now.
    pub fn save(&self) -> MsixState {
        let Self {
            msi: _,
            table,
            // Follows from the masks.
            connected: _,
            enabled,
            function_masked,
        } = self;
        MsixState {
            table: table.clone(),
            pending: (0..table.len() as u64)
                .map(|vector| self.is_pending(vector))
                .collect(),
            enabled: *enabled,
            function_masked: *function_masked,
        }
    }

    /// Checks that `state` can be restored here.
    ///
    /// # Errors
    ///
    /// The number of vectors is another.
    pub fn check(&self, kind: &'static str, state: &MsixState) -> Result<(), StateError> {
        let lengths = (state.table.len(), state.pending.len());
        if lengths == (self.table.len(), self.table.len()) {
            return Ok(());
        }
        Err(StateError::Field {
            kind,
            field: "msix",
            value: format!("{} vectors with {} pending bits", lengths.0, lengths.1),
            expected: format!("{} vectors", self.table.len()),
        })
    }

    /// Takes over a `state` that was checked.
    pub fn restore(&mut self, state: &MsixState) {
        let MsixState {
            table,
            pending,
            enabled,
            function_masked,
        } = state;
        self.table.copy_from_slice(table);
        self.enabled = *enabled;
        self.function_masked = *function_masked;
        for (vector, pending) in (0..).zip(pending) {
            if *pending {
                // A new eventfd's counter has room.
                let _ = self.msi.eventfd(vector).write(1);
            }
            self.apply(usize::from(vector));
        }
    }

    /// Connects or disconnects `vector`, as the masks say.
    fn apply(&mut self, vector: usize) {
        let entry = self.table[vector];
        let live = self.enabled && !self.function_masked && entry.control & VECTOR_MASKED == 0;
        let wanted = live.then_some(MsiMessage {
            address: entry.address,
            data: entry.data,
        });
        if wanted == self.connected[vector] {
            return;
        }
        let result = match wanted {
            Some(message) => self.msi.connect(vector as u16, message),
            None => self.msi.disconnect(vector as u16),
        };
        match result {
            Ok(()) => self.connected[vector] = wanted,
            Err(error) => {
                self.connected[vector] = None;
                if let Some(suppressed) = REFUSED_VECTORS.allow() {
                    warn!(vector, ?wanted, %error, suppressed, "MSI-X vector cannot be routed");
                }
            }
        }
    }

    fn is_pending(&self, vector: u64) -> bool {
        let index = vector as usize;
        vector < self.connected.len() as u64
            && self.connected[index].is_none()
            && is_readable(self.msi.eventfd(vector as u16))
    }
}

fn aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

/// Whether an eventfd has a count, which a read would take away.
fn is_readable(eventfd: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: eventfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid entry, and a timeout of 0 does not wait.
    #[allow(unsafe_code)]
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}
