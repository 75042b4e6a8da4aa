//! The interrupt of a virtio device on MMIO: one line, and the status that says what for.

use std::sync::Arc;

use super::super::core::{Isr, Signals};
use crate::interrupt::InterruptLine;
use crate::virtio::Interrupt;

/// The line, shared by the registers and the device.
///
/// It is edge-triggered, and every event makes an edge, whatever the status says already: a bit that is set tells that an
/// edge was made, not that the driver has seen it. A driver that acknowledges before it looks at its queues, as the
/// specification has it (virtio 1.2, 4.2.3.4), then misses nothing: what came before the acknowledgement is found by that
/// look, and what comes after it makes another edge.
pub(super) struct Line {
    line: InterruptLine,
    signals: Arc<Signals>,
}

impl Line {
    pub(super) fn new(line: InterruptLine, signals: Arc<Signals>) -> Self {
        Self { line, signals }
    }

    /// Makes an edge if there is anything that the driver did not acknowledge.
    pub(super) fn remind(&self) {
        if !self.signals.isr().is_empty() {
            self.edge();
        }
    }

    fn raise(&self, isr: Isr) {
        self.signals.add_isr(isr);
        self.edge();
    }

    fn edge(&self) {
        // An eventfd takes any write but one to a full counter, which is an edge to come.
        let _ = self.line.raise();
    }
}

impl Interrupt for Line {
    fn queue(&self, _index: u16) {
        self.raise(Isr::QUEUE);
    }

    fn config_changed(&self) {
        self.signals.bump_generation();
        self.raise(Isr::CONFIG);
    }

    fn needs_reset(&self) {
        if self.signals.need_reset() {
            self.raise(Isr::CONFIG);
        }
    }
}
