//! What vCPUs do while a function leaves.

use std::sync::Arc;

use super::*;
use crate::pci::BarKind;
use crate::pci::tests::plain;

#[test]
fn write_that_found_a_function_before_it_left_does_not_keep_it_on_the_bus() {
    const COMMAND: u16 = 0x04;
    let windows = Windows {
        low: 0xc000_0000..0xc010_0000,
        high: 0x10_0000_0000..0x10_1000_0000,
    };
    let mmio = Arc::new(Bus::new());
    let mut root = Root::new(Arc::clone(&mmio), windows);
    let function = plain(0x20, &[(0, BarKind::Memory64, 0x1000)]);
    let gone = Arc::downgrade(&function);
    let slot = root.add(function).unwrap();
    let found = root.slots.answering(slot).unwrap();
    drop(root.remove(slot).unwrap());
    let target = Target {
        slot,
        offset: COMMAND,
    };
    root.slots.write_slot(&found, target, &[2, 0]);
    drop(found);
    assert!(gone.upgrade().is_none());
}
