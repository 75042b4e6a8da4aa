use super::machine::*;

const QUEUE: u32 = 1;
const CHANGE: u32 = 2;

#[test]
fn used_buffers_set_the_status_and_make_an_edge() {
    let (machine, _rings) = Machine::running();
    assert_eq!(machine.edges(), 0);
    machine.interrupt().queue(1);
    assert_eq!(machine.read(INTERRUPT_STATUS), QUEUE);
    assert_eq!(machine.read(INTERRUPT_STATUS), QUEUE, "reading keeps it");
    assert_eq!(machine.edges(), 1);
    machine.write(INTERRUPT_ACK, QUEUE);
    assert_eq!(machine.read(INTERRUPT_STATUS), 0);
}

#[test]
fn what_comes_before_the_acknowledgement_makes_an_edge_of_its_own() {
    let (machine, _rings) = Machine::running();
    machine.interrupt().queue(0);
    assert_eq!(machine.edges(), 1);
    machine.interrupt().queue(1);
    assert_eq!(machine.edges(), 1);
    machine.write(INTERRUPT_ACK, QUEUE);
    machine.interrupt().queue(0);
    assert_eq!(machine.read(INTERRUPT_STATUS), QUEUE);
    assert_eq!(machine.edges(), 1);
}

#[test]
fn acknowledgement_clears_what_it_names() {
    let (machine, _rings) = Machine::running();
    machine.interrupt().queue(0);
    machine.interrupt().config_changed();
    assert_eq!(machine.read(INTERRUPT_STATUS), QUEUE | CHANGE);
    machine.write(INTERRUPT_ACK, CHANGE);
    assert_eq!(machine.read(INTERRUPT_STATUS), QUEUE);
    machine.write(INTERRUPT_ACK, 0xffff_fffc);
    assert_eq!(machine.read(INTERRUPT_STATUS), QUEUE);
}

#[test]
fn broken_ring_is_told_once() {
    let (machine, _rings) = Machine::running();
    machine.interrupt().needs_reset();
    machine.interrupt().needs_reset();
    assert_eq!(machine.edges(), 1);
    assert_eq!(machine.read(INTERRUPT_STATUS), CHANGE);
}

#[test]
fn reset_clears_the_status() {
    let (machine, _rings) = Machine::running();
    machine.interrupt().queue(0);
    machine.write(STATUS, 0);
    assert_eq!(machine.read(INTERRUPT_STATUS), 0);
}

#[test]
fn driver_is_reminded_of_what_it_did_not_acknowledge_when_the_machine_resumes() {
    let (mut machine, _rings) = Machine::running();
    machine.interrupt().queue(0);
    machine.pause();
    let saved = machine.save();
    let mut fresh = Machine::new();
    fresh.restore(&saved).unwrap();
    assert_eq!(fresh.edges(), 0);
    fresh.resume();
    assert_eq!(fresh.edges(), 1);
    assert_eq!(fresh.read(INTERRUPT_STATUS), QUEUE);
    fresh.write(INTERRUPT_ACK, QUEUE);
    fresh.pause();
    fresh.resume();
    assert_eq!(fresh.edges(), 0);
}
