use super::super::VirtioPci;
use super::machine::*;

#[test]
fn header_names_a_modern_virtio_device() {
    let machine = Machine::powered_on();
    assert_eq!(machine.read_config(0x00), 0x1af4_u16.to_le_bytes());
    assert_eq!(machine.read_config(0x02), (0x1040_u16 + 42).to_le_bytes());
    assert_eq!(machine.read_config::<1>(0x08), [1]);
    assert_eq!(machine.read_config(0x2c), 0x1af4_u16.to_le_bytes());
    assert_eq!(machine.read_config::<1>(0x3d), [0], "no interrupt pin");
    assert_eq!(machine.read_config(0x0a), 0x00ff_u16.to_le_bytes());
}

#[test]
fn classes_are_those_of_the_device_types() {
    assert_eq!(super::super::class(1), 0x02_00_00);
    assert_eq!(super::super::class(2), 0x01_80_00);
    assert_eq!(super::super::class(4), 0x00_ff_00);
}

#[test]
fn capabilities_lead_to_registers_that_do_not_overlap() {
    let machine = Machine::new();
    let ids: Vec<u8> = machine.capabilities().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0x11, 9, 9, 9, 9, 9]);
    let mut groups: Vec<Group> = (1..=4).map(|kind| machine.group(kind)).collect();
    let table = machine.msix_entry(0) - machine.bar();
    groups.push(Group {
        offset: table,
        len: 16 * u64::from(VECTORS),
    });
    let pending = u32::from_le_bytes(machine.read_config(machine.msix_capability() + 8));
    groups.push(Group {
        offset: pending.into(),
        len: 8,
    });
    groups.sort_by_key(|group| group.offset);
    for pair in groups.windows(2) {
        assert!(pair[0].offset + pair[0].len <= pair[1].offset, "{pair:?}");
    }
    let control = u16::from_le_bytes(machine.read_config(machine.msix_capability() + 2));
    assert_eq!(control, VECTORS - 1);
}

#[test]
fn bar_length_is_found_by_writing_ones() {
    let machine = Machine::powered_on();
    let before = machine.bar();
    machine.write_config(0x10, &[0xff; 4]);
    machine.write_config(0x14, &[0xff; 4]);
    let len = (!machine.bar()).wrapping_add(1);
    assert!(len.is_power_of_two() && before.is_multiple_of(len));
}

#[test]
fn reset_forgets_vectors_and_what_can_be_read_back() {
    let (machine, _rings) = Machine::running();
    machine.write(STATUS, 0);
    assert_eq!(machine.read(CONFIG_VECTOR), 0xffff);
    for (index, max) in [(0, 16), (1, 8)] {
        machine.write(QUEUE_SELECT, index);
        assert_eq!(machine.read(QUEUE_SIZE), max);
        assert_eq!(machine.read(QUEUE_VECTOR), 0xffff);
        assert_eq!(machine.read(QUEUE_DESC), 0);
    }
    machine.write(DRIVER_FEATURE_SELECT, 0);
    assert_eq!(machine.read(DRIVER_FEATURE), 0);
}

#[test]
fn number_of_queues_is_told() {
    assert_eq!(Machine::new().read(QUEUE_COUNT), 2);
}

#[test]
fn configuration_access_window_reaches_registers() {
    let machine = Machine::powered_on();
    let at = machine.capability(5);
    let select = |offset: u64, len: u32| {
        machine.write_config(at + 8, &(offset as u32).to_le_bytes());
        machine.write_config(at + 12, &len.to_le_bytes());
    };
    select(machine.group(1).offset + STATUS.0, 1);
    machine.write_config(at + 16, &[ACKNOWLEDGE as u8]);
    machine.write_config(at + 16, &[(ACKNOWLEDGE | DRIVER) as u8]);
    let [status] = machine.read_config::<1>(at + 16);
    assert_eq!(u64::from(status), ACKNOWLEDGE | DRIVER);
    select(machine.group(4).offset, 4);
    assert_eq!(machine.read_config(at + 16), [1, 2, 3, 4]);
    assert_eq!(machine.read_config(at + 18), [3, 4]);
}

#[test]
fn configuration_access_window_refuses_what_a_driver_must_not_select() {
    let machine = Machine::new();
    let at = machine.capability(5);
    let device = machine.group(4).offset as u32;
    for (bar, offset, len) in [
        (1, device, 4),
        (0, device + 1, 4),
        (0, device, 3),
        (0, device, 0),
        (0, u32::MAX - 3, 4),
    ] {
        machine.write_config(at + 4, &[bar]);
        machine.write_config(at + 8, &u32::to_le_bytes(offset));
        machine.write_config(at + 12, &u32::to_le_bytes(len));
        machine.write_config(at + 16, &[0x55; 4]);
        let read: [u8; 4] = machine.read_config(at + 16);
        assert!(
            read == [0; 4] || read == [0xff; 4],
            "{bar} {offset:#x} {len}: {read:?}"
        );
    }
    let mut data = [0; 8];
    machine
        .mmio
        .read(machine.bar() + u64::from(device), &mut data);
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn vector_count_covers_queues_and_configuration() {
    assert_eq!(VirtioPci::vector_count(&idle()), 3);
}

#[test]
fn function_without_vectors_is_refused() {
    for (vectors, accepted) in [(0, false), (1, true), (2048, true), (2049, false)] {
        let function = VirtioPci::new(
            Box::new(idle()),
            crate::virtio::driver::memory(&[(0, 0x1000)]),
            Vectors::new(vectors),
            std::sync::Arc::new(Bindings::default()),
        );
        assert_eq!(function.is_ok(), accepted, "{vectors} vectors");
    }
}

#[test]
fn bar_is_one_and_answers_alone() {
    let machine = Machine::new();
    let function = machine.root.function(1).unwrap();
    let mut function = function.lock().unwrap();
    let mut data = [0x55; 2];
    function.read_bar(1, 0, &mut data);
    function.write_bar(1, STATUS.0, &[1]);
    function.read_bar(0, STATUS.0, &mut data[..1]);
    assert_eq!(data, [0, 0x55]);
}
