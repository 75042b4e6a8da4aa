//! Whatever a guest writes, nothing panics, and the device comes back with a reset.

use proptest::prelude::*;

use super::machine::*;
use crate::bus::Bus;

#[derive(Clone, Debug)]
enum Access {
    /// To a register of the common configuration at its own width, with values that lead far.
    Register(usize, u64),
    Common(u64, Vec<u8>),
    Device(u64, Vec<u8>),
    Notify(u64, Vec<u8>),
    Table(u64, Vec<u8>),
    Pending(u64, Vec<u8>),
    Bar(u64, Vec<u8>),
    Config(u64, Vec<u8>),
    Window(u32, u32, Vec<u8>),
    Ecam(u64, Vec<u8>),
    Port(u64, Vec<u8>),
    Address(u32, u64, Vec<u8>),
    Pause,
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let values = prop_oneof![any::<u8>(), Just(0), Just(0xff)];
    prop::collection::vec(values, 1..=8)
}

fn access() -> impl Strategy<Value = Access> {
    let value = prop_oneof![
        0_u64..16,
        Just(0xffff),
        (0_u64..0x110).prop_map(|page| page << 12),
        any::<u64>(),
    ];
    prop_oneof![
        8 => (0_usize..REGISTERS.len(), value).prop_map(|(at, value)| Access::Register(at, value)),
        1 => (0_u64..0x40, bytes()).prop_map(|(at, data)| Access::Common(at, data)),
        1 => (0_u64..0x1008, bytes()).prop_map(|(at, data)| Access::Device(at, data)),
        1 => (0_u64..0x20, bytes()).prop_map(|(at, data)| Access::Notify(at, data)),
        1 => (0_u64..0x40, bytes()).prop_map(|(at, data)| Access::Table(at, data)),
        1 => (0_u64..0x10, bytes()).prop_map(|(at, data)| Access::Pending(at, data)),
        1 => (0_u64..0x8000, bytes()).prop_map(|(at, data)| Access::Bar(at, data)),
        2 => (0_u64..0x110, bytes()).prop_map(|(at, data)| Access::Config(at, data)),
        1 => (any::<u32>(), 0_u32..8, bytes()).prop_map(|(at, len, data)| Access::Window(at, len, data)),
        1 => (0_u32..0x6000, 0_u32..8, bytes()).prop_map(|(at, len, data)| Access::Window(at, len, data)),
        1 => (0_u64..1 << 20, bytes()).prop_map(|(at, data)| Access::Ecam(at, data)),
        1 => (0_u64..8, bytes()).prop_map(|(at, data)| Access::Port(at, data)),
        1 => (any::<u32>(), 4_u64..8, bytes()).prop_map(|(to, at, data)| Access::Address(to, at, data)),
        1 => Just(Access::Pause),
    ]
}

const REGISTERS: [Register; 12] = [
    DRIVER_FEATURE_SELECT,
    DRIVER_FEATURE,
    CONFIG_VECTOR,
    STATUS,
    STATUS,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_VECTOR,
    QUEUE_ENABLE,
    QUEUE_DESC,
    QUEUE_DRIVER,
    QUEUE_DEVICE,
];

/// Addresses of register groups, as they were before the guest could break anything.
struct Addresses {
    bar: u64,
    common: u64,
    device: u64,
    notify: u64,
    table: u64,
    window: u64,
}

fn apply(machine: &mut Machine, pio: &Bus, at: &Addresses, access: &Access) {
    let both = |bus: &Bus, address: u64, data: &[u8]| {
        bus.write(address, data);
        bus.read(address, &mut data.to_vec());
    };
    let mmio = &machine.mmio;
    match access {
        Access::Register(index, value) => {
            let Register(offset, len) = REGISTERS[*index];
            both(mmio, at.common + offset, &value.to_le_bytes()[..len]);
        }
        Access::Common(offset, data) => both(mmio, at.common + offset, data),
        Access::Device(offset, data) => both(mmio, at.device + offset, data),
        Access::Notify(offset, data) => both(mmio, at.notify + offset, data),
        Access::Table(offset, data) => both(mmio, at.table + offset, data),
        Access::Pending(offset, data) => both(mmio, at.table + 0x1000 + offset, data),
        Access::Bar(offset, data) => both(mmio, at.bar + offset, data),
        Access::Config(offset, data) => both(mmio, ECAM + 0x8000 + offset, data),
        Access::Window(offset, len, data) => {
            machine.write_config(at.window + 8, &offset.to_le_bytes());
            machine.write_config(at.window + 12, &len.to_le_bytes());
            both(mmio, ECAM + 0x8000 + at.window + 16, data);
        }
        Access::Ecam(offset, data) => both(mmio, ECAM + offset, data),
        Access::Port(offset, data) => both(pio, 0xcf8 + offset, data),
        Access::Address(address, offset, data) => {
            pio.write(0xcf8, &(address | 1 << 31).to_le_bytes());
            both(pio, 0xcf8 + offset, data);
        }
        Access::Pause => {
            machine.root.pause();
            let section = crate::state::Persist::save(&machine.root);
            let mut fresh = Machine::powered_on();
            crate::state::Persist::restore(&mut fresh.root, &section)
                .expect("saved state can be restored");
            machine.root.resume();
        }
    }
}

proptest! {
    #[test]
    fn any_accesses_leave_a_device_that_a_reset_brings_back(accesses in prop::collection::vec(access(), 0..64)) {
        let (mut machine, rings) = Machine::running();
        let pio = Bus::new();
        pio.insert(0xcf8, 8, machine.root.config_ports()).unwrap();
        let at = Addresses {
            bar: machine.bar(),
            common: machine.common(),
            device: machine.bar() + machine.group(4).offset,
            notify: machine.bar() + machine.group(2).offset,
            table: machine.msix_entry(0),
            window: machine.capability(5),
        };
        for access in &accesses {
            apply(&mut machine, &pio, &at, access);
        }

        machine.write_config(0x04, &[0, 0]);
        machine.write_config(0x10, &(at.bar as u32).to_le_bytes());
        machine.write_config(0x14, &((at.bar >> 32) as u32).to_le_bytes());
        machine.write_config(0x04, &[6, 0]);
        prop_assert_eq!(machine.bound(), [at.notify, at.notify + 4]);
        machine.negotiate();
        machine.set_queue(0, &rings[0]);
        machine.driver_ok();
        prop_assert_eq!(machine.read(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        prop_assert_eq!(machine.log().queues.len(), 1);
        machine.set_msix_control(1 << 15);
        machine.set_vector(0, Default::default(), false);
        let before = machine.msi.vector(0).1;
        machine.interrupt().queue(0);
        prop_assert_eq!(machine.msi.vector(0).1, before + 1);
    }
}
