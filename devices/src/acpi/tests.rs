use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::platform::{Platform, PlatformEvent};
use crate::state::{Persist, Section, StateError};

#[derive(Default)]
struct Events(Mutex<Vec<PlatformEvent>>);

impl Platform for Events {
    fn raise(&self, event: PlatformEvent) {
        self.0.lock().unwrap().push(event);
    }
}

fn event_device() -> (EventDevice, EventFd) {
    let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
    let line = InterruptLine::new(interrupt.try_clone().unwrap());
    (EventDevice::new(line), interrupt)
}

fn register(device: &mut EventDevice) -> u32 {
    let mut data = [0xff; 4];
    device.read(0, &mut data);
    u32::from_le_bytes(data)
}

fn power(writes: &[(u64, &[u8])]) -> Vec<PlatformEvent> {
    let events = Arc::new(Events::default());
    let mut device = Power::new(events.clone());
    for (offset, data) in writes {
        device.write(*offset, data);
    }
    events.0.lock().unwrap().clone()
}

#[test]
fn sleep_state_5_with_sleep_enable_powers_off() {
    assert_eq!(
        power(&[(0, &[SLEEP_TYPE_S5 << 2 | 1 << 5])]),
        [PlatformEvent::PowerOff]
    );
}

#[test]
fn sleep_type_without_sleep_enable_does_nothing() {
    assert_eq!(power(&[(0, &[SLEEP_TYPE_S5 << 2])]), []);
}

#[test]
fn other_sleep_states_do_nothing() {
    for sleep_type in (0..8).filter(|value| *value != SLEEP_TYPE_S5) {
        assert_eq!(power(&[(0, &[sleep_type << 2 | 1 << 5])]), []);
    }
}

#[test]
fn reset_value_in_the_reset_register_resets() {
    assert_eq!(power(&[(2, &[RESET_VALUE])]), [PlatformEvent::Reset]);
    assert_eq!(
        power(&[(2, &[0]), (2, &[RESET_VALUE, 0]), (1, &[RESET_VALUE])]),
        []
    );
}

#[test]
fn power_registers_read_zero() {
    let mut device = Power::new(Arc::new(Events::default()));
    for offset in 0..POWER_REGISTERS_LEN {
        let mut data = [0xff];
        device.read(offset, &mut data);
        assert_eq!(data, [0]);
    }
}

#[test]
fn notified_event_interrupts_and_is_read_once() {
    let (mut device, interrupt) = event_device();
    assert_eq!(register(&mut device), 0);
    let source = device.clone();
    source.notify(Event::PowerButton).unwrap();
    source.notify(Event::PowerButton).unwrap();
    assert_eq!(interrupt.read().unwrap(), 2);
    assert_eq!(register(&mut device), 1);
    assert_eq!(register(&mut device), 0);
}

#[test]
fn reminder_interrupts_only_while_an_event_is_pending() {
    let (mut device, interrupt) = event_device();
    device.remind().unwrap();
    assert!(interrupt.read().is_err());
    device.notify(Event::PowerButton).unwrap();
    device.remind().unwrap();
    assert_eq!(interrupt.read().unwrap(), 2);
    assert_eq!(register(&mut device), 1);
    device.remind().unwrap();
    assert!(interrupt.read().is_err());
}

#[test]
fn partial_read_of_the_event_register_takes_nothing() {
    let (mut device, _interrupt) = event_device();
    device.notify(Event::PowerButton).unwrap();
    let mut data = [0xff; 2];
    device.read(0, &mut data);
    device.write(0, &[0; 4]);
    assert_eq!(data, [0xff; 2]);
    assert_eq!(register(&mut device), 1);
}

#[test]
fn restored_event_device_holds_the_pending_event_and_interrupts() {
    let (device, _interrupt) = event_device();
    device.notify(Event::PowerButton).unwrap();
    let section = device.save();
    let (mut restored, interrupt) = event_device();
    restored.restore(&section).unwrap();
    assert_eq!(restored.save(), section);
    assert_eq!(interrupt.read().unwrap(), 1);
    assert_eq!(register(&mut restored), 1);
}

#[test]
fn restored_event_device_with_nothing_pending_does_not_interrupt() {
    let (device, _interrupt) = event_device();
    let (mut restored, interrupt) = event_device();
    restored.restore(&device.save()).unwrap();
    assert!(interrupt.read().is_err());
    assert_eq!(register(&mut restored), 0);
}

#[test]
fn event_state_of_a_newer_version_is_refused_and_leaves_the_device() {
    let (mut device, _interrupt) = event_device();
    device.notify(Event::PowerButton).unwrap();
    let error = device
        .restore(&Section::new("acpi-event", 2, &()))
        .unwrap_err();
    assert!(matches!(error, StateError::Version { .. }), "{error}");
    assert_eq!(register(&mut device), 1);
}

proptest! {
    #[test]
    fn any_access_is_taken_and_only_named_values_have_effect(
        accesses in prop::collection::vec((any::<bool>(), 0_u64..4096, prop::collection::vec(any::<u8>(), 1..=8)), 0..100),
    ) {
        let events = Arc::new(Events::default());
        let mut power = Power::new(events.clone());
        let (mut event, _interrupt) = event_device();
        let mut expected = Vec::new();
        for (is_write, offset, mut data) in accesses {
            if is_write {
                power.write(offset % POWER_REGISTERS_LEN, &data);
                event.write(offset, &data);
                match (offset % POWER_REGISTERS_LEN, &*data) {
                    (0, [value]) if value & 0x3c == 0x34 => expected.push(PlatformEvent::PowerOff),
                    (2, [1]) => expected.push(PlatformEvent::Reset),
                    _ => {}
                }
            } else {
                data.fill(0xff);
                power.read(offset % POWER_REGISTERS_LEN, &mut data);
                prop_assert!(data == [0] || data.iter().all(|byte| *byte == 0xff));
                data.fill(0xff);
                event.read(offset, &mut data);
                prop_assert!(data == [0; 4] || data.iter().all(|byte| *byte == 0xff));
            }
        }
        prop_assert_eq!(&*events.0.lock().unwrap(), &expected);
    }
}
