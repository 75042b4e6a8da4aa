use super::machine::*;
use crate::pci::MsiMessage;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data,
    }
}

#[test]
fn used_buffers_raise_the_queues_vector() {
    let (machine, _rings) = Machine::running();
    for vector in 0..VECTORS {
        machine.set_vector(vector, message(vector.into()), false);
    }
    machine.set_msix_control(ENABLE);
    machine.interrupt().queue(1);
    let raised = [0, 1, 2].map(|vector| machine.msi.vector(vector));
    assert_eq!(
        raised,
        [
            (Some(message(0)), 0),
            (Some(message(1)), 1),
            (Some(message(2)), 0)
        ]
    );
}

#[test]
fn configuration_change_raises_its_vector_and_the_generation() {
    let (machine, _rings) = Machine::running();
    machine.set_vector(2, message(2), false);
    machine.set_msix_control(ENABLE);
    let before = machine.read(GENERATION);
    machine.interrupt().config_changed();
    assert_eq!(machine.msi.vector(2).1, 1);
    assert_ne!(machine.read(GENERATION), before);
    assert_eq!(interrupt_status(&machine), 2);
}

/// Reads the interrupt status, which clears it.
fn interrupt_status(machine: &Machine) -> u8 {
    let mut data = [0];
    machine
        .mmio
        .read(machine.bar() + machine.group(3).offset, &mut data);
    data[0]
}

#[test]
fn broken_ring_is_told_once() {
    let (machine, _rings) = Machine::running();
    machine.set_vector(2, message(2), false);
    machine.set_msix_control(ENABLE);
    machine.interrupt().needs_reset();
    machine.interrupt().needs_reset();
    assert_eq!(machine.msi.vector(2).1, 1);
    assert_eq!(machine.read(STATUS) & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn without_a_vector_the_interrupt_status_is_set_until_read() {
    let (machine, _rings) = Machine::running();
    let read = || interrupt_status(&machine);
    machine.interrupt().queue(0);
    assert_eq!(read(), 0, "the queue has a vector");
    machine.write(QUEUE_SELECT, 0);
    machine.write(QUEUE_VECTOR, 0xffff);
    machine.write(CONFIG_VECTOR, 0xffff);
    machine.interrupt().queue(0);
    assert_eq!(read(), 1);
    machine.interrupt().config_changed();
    assert_eq!(read(), 2);
    assert_eq!(read(), 0);
}

#[test]
fn masked_vector_is_pending_until_it_is_unmasked() {
    let (machine, _rings) = Machine::running();
    machine.set_msix_control(ENABLE);
    machine.set_vector(0, message(7), true);
    machine.interrupt().queue(0);
    machine.interrupt().queue(0);
    assert_eq!(machine.pending(), 1);
    assert_eq!(machine.pending(), 1, "reading does not clear it");
    assert_eq!(machine.msi.vector(0), (None, 0));
    machine.set_vector(0, message(7), false);
    assert_eq!(machine.msi.vector(0), (Some(message(7)), 1));
    assert_eq!(machine.pending(), 0);
}

#[test]
fn function_mask_holds_all_vectors() {
    let (machine, _rings) = Machine::running();
    machine.set_vector(0, message(0), false);
    machine.set_vector(1, message(1), false);
    machine.set_msix_control(ENABLE | FUNCTION_MASK);
    machine.interrupt().queue(0);
    machine.interrupt().queue(1);
    assert_eq!(machine.pending(), 0b11);
    machine.set_msix_control(ENABLE);
    assert_eq!(machine.pending(), 0);
    assert_eq!((machine.msi.vector(0).1, machine.msi.vector(1).1), (1, 1));
}

#[test]
fn eventfd_of_a_queue_is_its_vector_masked_or_not() {
    let (machine, _rings) = Machine::running();
    machine.set_msix_control(ENABLE);
    machine.set_vector(0, message(0), false);
    machine.set_vector(1, message(1), true);
    // As another process writes them.
    for queue in [0, 1] {
        let eventfd = machine.interrupt().queue_eventfd(queue).unwrap();
        eventfd.write(1).unwrap();
    }
    assert_eq!(machine.msi.vector(0).1, 1);
    assert_eq!(machine.pending(), 0b10);
    assert!(machine.interrupt().queue_eventfd(7).is_none());
}

#[test]
fn device_is_told_of_another_vector_while_it_runs() {
    let (machine, _rings) = Machine::running();
    assert!(machine.log().moved.is_empty());
    machine.write(QUEUE_SELECT, 1);
    machine.write(QUEUE_VECTOR, 0xffff);
    assert_eq!(machine.log().moved, [1]);
    assert!(machine.interrupt().queue_eventfd(1).is_none());
    machine.write(QUEUE_VECTOR, 2);
    let eventfd = machine.interrupt().queue_eventfd(1).unwrap();
    eventfd.write(1).unwrap();
    machine.set_msix_control(ENABLE);
    assert_eq!(machine.pending(), 0b100);
}

#[test]
fn changed_message_takes_effect_on_a_live_vector() {
    let (machine, _rings) = Machine::running();
    machine.set_msix_control(ENABLE);
    machine.set_vector(0, message(1), false);
    machine
        .mmio
        .write(machine.msix_entry(0) + 8, &2_u32.to_le_bytes());
    assert_eq!(machine.msi.vector(0).0, Some(message(2)));
    machine.set_msix_control(0);
    assert_eq!(machine.msi.vector(0).0, None);
}

#[test]
fn table_is_masked_after_power_on_and_keeps_what_is_written() {
    let machine = Machine::new();
    for vector in 0..VECTORS {
        let mut control = [0; 4];
        machine
            .mmio
            .read(machine.msix_entry(vector) + 12, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
    }
    let entry = machine.msix_entry(1);
    machine
        .mmio
        .write(entry, &0x1234_5678_9abc_def0_u64.to_le_bytes());
    machine.mmio.write(entry + 8, &[0xff; 8]);
    let mut read = [0; 8];
    machine.mmio.read(entry, &mut read);
    assert_eq!(u64::from_le_bytes(read), 0x1234_5678_9abc_def0);
    machine.mmio.read(entry + 8, &mut read);
    assert_eq!(
        read,
        [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        "only the mask bit can be set"
    );
}

#[test]
fn table_ignores_accesses_of_other_widths() {
    let machine = Machine::new();
    let entry = machine.msix_entry(0);
    machine.mmio.write(entry, &[0x55]);
    machine.mmio.write(entry + 2, &[0x55; 4]);
    machine.mmio.write(entry + 4, &[0x55; 8]);
    let mut read = [0; 8];
    machine.mmio.read(entry, &mut read);
    assert_eq!(read, [0; 8]);
}
