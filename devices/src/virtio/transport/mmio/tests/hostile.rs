//! Whatever a guest writes, nothing panics, and the device comes back with a reset.

use proptest::prelude::*;

use super::machine::*;

#[derive(Clone, Debug)]
enum Access {
    /// To a register at its own width, with values that lead far.
    Register(usize, u32),
    Any(u64, Vec<u8>),
    Pause,
}

const REGISTERS: [u64; 20] = [
    DEVICE_FEATURES_SEL,
    DRIVER_FEATURES,
    DRIVER_FEATURES_SEL,
    QUEUE_SEL,
    QUEUE_SEL,
    QUEUE_NUM,
    QUEUE_READY,
    QUEUE_READY,
    QUEUE_READY,
    QUEUE_NOTIFY,
    INTERRUPT_ACK,
    STATUS,
    STATUS,
    STATUS,
    QUEUE_DESC,
    QUEUE_DESC + 4,
    QUEUE_DRIVER,
    QUEUE_DRIVER + 4,
    QUEUE_DEVICE,
    QUEUE_DEVICE + 4,
];

fn access() -> impl Strategy<Value = Access> {
    let value = prop_oneof![
        0_u32..16,
        Just(0xffff),
        Just(0x1_0000),
        (0_u32..0x110).prop_map(|page| page << 12),
        any::<u32>(),
    ];
    let bytes = prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 1..=8);
    prop_oneof![
        8 => (0_usize..REGISTERS.len(), value).prop_map(|(at, value)| Access::Register(at, value)),
        2 => (0_u64..0x110, bytes.clone()).prop_map(|(at, data)| Access::Any(at, data)),
        1 => (0_u64..0x1000, bytes).prop_map(|(at, data)| Access::Any(at, data)),
        1 => Just(Access::Pause),
    ]
}

fn apply(machine: &mut Machine, access: &Access) {
    let both = |offset: u64, data: &[u8]| {
        machine.mmio.write(BASE + offset, data);
        machine.mmio.read(BASE + offset, &mut data.to_vec());
    };
    match access {
        Access::Register(index, value) => both(REGISTERS[*index], &value.to_le_bytes()),
        Access::Any(offset, data) => both(*offset, data),
        Access::Pause => {
            machine.pause();
            let mut fresh = Machine::new();
            fresh
                .restore(&machine.save())
                .expect("saved state can be restored");
            machine.resume();
        }
    }
}

proptest! {
    #[test]
    fn any_accesses_leave_a_device_that_a_reset_brings_back(accesses in prop::collection::vec(access(), 0..64)) {
        let (mut machine, rings) = Machine::running();
        for access in &accesses {
            apply(&mut machine, access);
        }

        machine.negotiate();
        machine.set_queue(0, &rings[0]);
        machine.driver_ok();
        prop_assert_eq!(machine.get(Field::Status), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        prop_assert_eq!(machine.log().queues.len(), 1);
        prop_assert_eq!(machine.read(INTERRUPT_STATUS), 0);
        machine.edges();
        machine.interrupt().queue(0);
        prop_assert_eq!(machine.edges(), 1);
    }
}
