use super::machine::*;

#[test]
fn queue_that_does_not_exist_reads_as_one_that_was_not_set_up() {
    let machine = Machine::new();
    machine.negotiate();
    for index in [2, 0x100, 0xffff] {
        machine.write(QUEUE_SELECT, index);
        machine.write(QUEUE_SIZE, 4);
        machine.write(QUEUE_VECTOR, 0);
        machine.write(QUEUE_DESC, 0x1000);
        machine.write(QUEUE_ENABLE, 1);
        assert_eq!(machine.read(QUEUE_SIZE), 0);
        assert_eq!(machine.read(QUEUE_ENABLE), 0);
        assert_eq!(machine.read(QUEUE_DESC), 0);
        assert_eq!(machine.read(QUEUE_VECTOR), 0xffff);
    }
    machine.driver_ok();
    assert!(machine.log().queues.is_empty());
}

#[test]
fn vector_that_does_not_exist_reads_back_as_none() {
    let machine = Machine::new();
    for vector in [u64::from(VECTORS), 0x7ff, 0xfffe, 0xffff] {
        machine.write(CONFIG_VECTOR, 0);
        machine.write(CONFIG_VECTOR, vector);
        assert_eq!(machine.read(CONFIG_VECTOR), 0xffff);
        machine.write(QUEUE_VECTOR, 1);
        machine.write(QUEUE_VECTOR, vector);
        assert_eq!(machine.read(QUEUE_VECTOR), 0xffff);
    }
}

#[test]
fn notifications_are_bound_where_the_bar_is_decoded() {
    let machine = Machine::powered_on();
    let notify = machine.group(2).offset;
    assert!(machine.bound().is_empty());
    machine.write_config(0x04, &[2, 0]);
    let bar = machine.bar();
    assert_eq!(machine.bound(), [bar + notify, bar + notify + 4]);
    machine.write_config(0x14, &((HIGH >> 32) as u32).to_le_bytes());
    machine.write_config(0x10, &0x100_0000_u32.to_le_bytes());
    let moved = HIGH + 0x100_0000;
    assert_eq!(machine.bar(), moved);
    assert_eq!(machine.bound(), [moved + notify, moved + notify + 4]);
    assert_eq!(machine.read(QUEUE_COUNT), 2);
    machine.write_config(0x04, &[0, 0]);
    assert!(machine.bound().is_empty());
}

#[test]
fn removed_function_leaves_nothing_behind() {
    let (mut machine, _rings) = Machine::running();
    let bar = machine.bar();
    drop(machine.root.remove(1).unwrap());
    assert!(machine.bound().is_empty());
    assert_eq!(machine.log().stops, 1);
    let mut data = [0; 4];
    machine.mmio.read(bar, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(machine.read_config(0), [0xff; 4]);
}
