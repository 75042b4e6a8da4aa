//! The root bus, seen from the guest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::config_space::ConfigSpaceState;
use super::*;
use crate::bus::Bus;
use crate::state::{Persist, Section, StateError};

const ECAM: u64 = 0xe000_0000;
const LOW: u64 = 0xc000_0000;
const LOW_LEN: u64 = 0x10_0000;
const HIGH: u64 = 0x10_0000_0000;
const HIGH_LEN: u64 = 0x1000_0000;
const COMMAND: u64 = 0x04;
const MEMORY: [u8; 2] = [2, 0];

/// A function whose BARs read as a value of its own.
pub(super) struct Plain {
    config: ConfigSpace,
    value: u8,
    mapped: Arc<Mutex<BTreeMap<u8, u64>>>,
    paused: bool,
}

pub(super) fn plain(value: u8, bars: &[(u8, BarKind, u64)]) -> Arc<Mutex<Plain>> {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x1234,
        device: value.into(),
        revision: 0,
        class: 0xff_00_00,
        subsystem_vendor: 0,
        subsystem: 0,
    });
    for (index, kind, len) in bars {
        config.add_bar(*index, *kind, *len);
    }
    Arc::new(Mutex::new(Plain {
        config,
        value,
        mapped: Arc::default(),
        paused: false,
    }))
}

impl PciFunction for Plain {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        assert!(usize::from(offset % 4) + data.len() <= 4, "within a dword");
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        assert!(usize::from(offset % 4) + data.len() <= 4, "within a dword");
        self.config.write(offset, data)
    }

    fn bar_mapped(&mut self, bar: u8, address: Option<u64>) {
        let mut mapped = self.mapped.lock().unwrap();
        match address {
            Some(address) => mapped.insert(bar, address),
            None => mapped.remove(&bar),
        };
    }

    fn read_bar(&mut self, bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(self.value + bar);
    }

    fn write_bar(&mut self, _bar: u8, _offset: u64, data: &[u8]) {
        self.value = data[0];
    }

    fn pause(&mut self) {
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
    }
}

impl Persist for Plain {
    fn save(&self) -> Section {
        let Self {
            config,
            value,
            mapped: _,
            paused: _,
        } = self;
        Section::new("plain", 1, &(config.save(), *value))
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let (config, value): (ConfigSpaceState, u8) = section.decode("plain", 1)?;
        self.config.restore("plain", &config)?;
        self.value = value;
        Ok(())
    }
}

struct Machine {
    mmio: Arc<Bus>,
    pio: Bus,
    root: Root,
}

impl Machine {
    fn new() -> Self {
        let mmio = Arc::new(Bus::new());
        let windows = Windows {
            low: LOW..LOW + LOW_LEN,
            high: HIGH..HIGH + HIGH_LEN,
        };
        let root = Root::new(Arc::clone(&mmio), windows);
        mmio.insert(ECAM, ECAM_LEN, root.ecam()).unwrap();
        let pio = Bus::new();
        pio.insert(0xcf8, 8, root.config_ports()).unwrap();
        Self { mmio, pio, root }
    }

    fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(address, &mut data);
        data
    }

    fn config(slot: u8, offset: u64) -> u64 {
        ECAM + (u64::from(slot) << 15) + offset
    }

    fn enable(&self, slot: u8) {
        self.mmio.write(Self::config(slot, COMMAND), &MEMORY);
    }

    fn disable(&self, slot: u8) {
        self.mmio.write(Self::config(slot, COMMAND), &[0, 0]);
    }

    fn bar(&self, slot: u8, bar: u8) -> u64 {
        let at = Self::config(slot, 0x10 + 4 * u64::from(bar));
        let low = u32::from_le_bytes(self.read(at));
        let high = if low & 0x4 != 0 {
            u32::from_le_bytes(self.read(at + 4))
        } else {
            0
        };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    fn move_bar(&self, slot: u8, bar: u8, address: u64) {
        let at = Self::config(slot, 0x10 + 4 * u64::from(bar));
        self.mmio.write(at, &(address as u32).to_le_bytes());
        self.mmio
            .write(at + 4, &((address >> 32) as u32).to_le_bytes());
    }
}

#[test]
fn host_bridge_is_function_0() {
    let machine = Machine::new();
    assert_eq!(machine.read(Machine::config(0, 0x0a)), [0x00, 0x06]);
    assert_eq!(
        machine.read(Machine::config(0, 0x0e)),
        [0],
        "one function, type 0 header"
    );
    assert_eq!(
        machine.read(Machine::config(0, 0x100)),
        [0; 4],
        "no extended capabilities"
    );
}

#[test]
fn empty_slots_and_other_functions_read_all_ones() {
    let machine = Machine::new();
    assert_eq!(machine.read(Machine::config(1, 0)), [0xff; 4]);
    assert_eq!(machine.read(ECAM + 0x1000), [0xff; 4]);
    machine.mmio.write(Machine::config(31, COMMAND), &MEMORY);
}

#[test]
fn ports_reach_the_same_registers() {
    let machine = Machine::new();
    let read = |port| {
        let mut data = [0; 4];
        machine.pio.read(port, &mut data);
        u32::from_le_bytes(data)
    };
    machine.pio.write(0xcf8, &0x8000_0008_u32.to_le_bytes());
    assert_eq!(read(0xcf8), 0x8000_0008);
    assert_eq!(
        read(0xcfc).to_le_bytes(),
        machine.read(Machine::config(0, 8))
    );
    let mut class = [0; 2];
    machine.pio.read(0xcfe, &mut class);
    assert_eq!(class, [0x00, 0x06]);
    machine.pio.write(0xcf8, &0x8000_003c_u32.to_le_bytes());
    machine.pio.write(0xcfc, &[0x0b]);
    assert_eq!(machine.read(Machine::config(0, 0x3c)), [0x0b]);
    for address in [0x0000_0000_u32, 0x8001_0000, 0x8000_0100, 0x8000_0800] {
        machine.pio.write(0xcf8, &address.to_le_bytes());
        assert_eq!(
            read(0xcfc),
            u32::MAX,
            "{address:#x}: off, another bus, function 1, or an empty slot"
        );
    }
    machine.pio.write(0xcf8, &[0x01]);
    assert_eq!(
        read(0xcf8),
        0x8000_0800,
        "only dwords reach the address port"
    );
}

#[test]
fn bars_are_placed_by_kind_and_decoded_when_the_guest_says_so() {
    let mut machine = Machine::new();
    let bars = [
        (0, BarKind::Memory32, 0x4000),
        (1, BarKind::Memory64, 0x10),
        (3, BarKind::Memory64Prefetchable, 0x100_0000),
    ];
    assert_eq!(machine.root.add(plain(0x20, &bars)), Ok(1));
    let places: Vec<u64> = [0, 1, 3].map(|bar| machine.bar(1, bar)).to_vec();
    assert!(
        places[0] >= LOW && places[1] >= LOW && places[2] >= HIGH,
        "{places:x?}"
    );
    for (place, (_, _, len)) in places.iter().zip(bars) {
        assert!(place.is_multiple_of(len));
        assert_eq!(machine.read(*place), [0xff], "decoding is off");
    }
    machine.enable(1);
    assert_eq!(machine.read(places[0]), [0x20]);
    assert_eq!(machine.read(places[1] + 0xf), [0x21]);
    assert_eq!(machine.read(places[2] + 0xff_ffff), [0x23]);
    machine.disable(1);
    assert_eq!(machine.read(places[0]), [0xff]);
}

#[test]
fn bar_follows_its_registers() {
    let mut machine = Machine::new();
    machine
        .root
        .add(plain(0x20, &[(0, BarKind::Memory64, 0x1000)]))
        .unwrap();
    let old = machine.bar(1, 0);
    machine.enable(1);
    machine.move_bar(1, 0, HIGH + 0x5000);
    assert_eq!(machine.read(old), [0xff]);
    assert_eq!(machine.read(HIGH + 0x5000), [0x20]);
    machine.move_bar(1, 0, old);
    assert_eq!(machine.read(old), [0x20]);
}

#[test]
fn bar_outside_the_windows_is_not_decoded() {
    let mut machine = Machine::new();
    let function = plain(0x20, &[(0, BarKind::Memory64, 0x1000)]);
    let mapped = Arc::clone(&function.lock().unwrap().mapped);
    machine.root.add(function).unwrap();
    machine.enable(1);
    let before = machine.bar(1, 0);
    for address in [
        0,
        LOW - 0x1000,
        LOW + LOW_LEN,
        HIGH - 0x1000,
        HIGH + HIGH_LEN,
        !0xfff,
        ECAM,
    ] {
        machine.move_bar(1, 0, address);
        assert!(mapped.lock().unwrap().is_empty(), "{address:#x}");
        assert_eq!(
            machine.bar(1, 0),
            address,
            "the register keeps what was written"
        );
    }
    assert_eq!(machine.read(Machine::config(0, 0x0a)), [0x00, 0x06]);
    machine.move_bar(1, 0, before);
    assert_eq!(machine.read(before), [0x20]);
}

#[test]
fn bar_moved_onto_another_is_not_decoded_and_the_other_stays() {
    let mut machine = Machine::new();
    machine
        .root
        .add(plain(0x20, &[(0, BarKind::Memory64, 0x1000)]))
        .unwrap();
    machine
        .root
        .add(plain(0x30, &[(0, BarKind::Memory64, 0x4000)]))
        .unwrap();
    machine.enable(1);
    machine.enable(2);
    let (first, second) = (machine.bar(1, 0), machine.bar(2, 0));
    machine.move_bar(1, 0, second + 0x1000);
    assert_eq!(machine.read(second + 0x1000), [0x30]);
    assert_eq!(machine.read(first), [0xff]);
    machine.disable(2);
    assert_eq!(
        machine.read(second + 0x1000),
        [0xff],
        "it is decoded with the next write that moves it"
    );
    machine.disable(1);
    machine.enable(1);
    assert_eq!(machine.read(second + 0x1000), [0x20]);
    machine.enable(2);
    assert_eq!(machine.read(second), [0xff]);
    assert_eq!(machine.read(second + 0x1000), [0x20]);
}

#[test]
fn slots_run_out() {
    let mut machine = Machine::new();
    for slot in 1..32 {
        assert_eq!(machine.root.add(plain(slot, &[])), Ok(slot));
    }
    assert_eq!(machine.root.add(plain(0, &[])), Err(RootError::NoSlot));
    assert_eq!(
        machine.root.add_at(5, plain(0, &[])),
        Err(RootError::SlotTaken(5))
    );
    assert_eq!(
        machine.root.add_at(32, plain(0, &[])),
        Err(RootError::SlotTaken(32))
    );
}

#[test]
fn function_that_does_not_fit_leaves_the_windows_as_they_were() {
    let mut machine = Machine::new();
    let error = RootError::NoRoom {
        bar: 1,
        len: LOW_LEN * 2,
    };
    let bars = [
        (0, BarKind::Memory32, LOW_LEN),
        (1, BarKind::Memory32, LOW_LEN * 2),
    ];
    assert_eq!(machine.root.add(plain(1, &bars)), Err(error));
    assert_eq!(
        machine
            .root
            .add(plain(1, &[(0, BarKind::Memory32, LOW_LEN)])),
        Ok(1)
    );
    let large = [(0, BarKind::Memory64, 0x1000)];
    assert_eq!(machine.root.add(plain(2, &large)), Ok(2));
    assert!(
        machine.bar(2, 0) >= HIGH,
        "a 64-bit BAR goes where there is room"
    );
}

#[test]
fn function_behind_the_closed_gate_answers_no_configuration_access_until_it_left_its_slot() {
    let mut machine = Machine::new();
    let bars = [(0, BarKind::Memory32, 0x1000)];
    machine.root.add(plain(0x20, &bars)).unwrap();
    machine.root.add(plain(0x30, &[])).unwrap();
    machine.enable(1);
    let place = machine.bar(1, 0);
    machine.root.gate().close(1 << 1);
    assert_eq!(machine.read(Machine::config(1, 0)), [0xff; 4]);
    assert_eq!(machine.read(Machine::config(2, 0)), [0x34, 0x12, 0x30, 0]);
    machine.disable(1);
    assert_eq!(machine.read(place), [0x20]);
    assert!(machine.root.remove(1).is_ok());
    assert_eq!(machine.root.add(plain(0x40, &[])), Ok(1));
    assert_eq!(machine.read(Machine::config(1, 0)), [0x34, 0x12, 0x40, 0]);
}

#[test]
fn removed_function_frees_its_slot_and_addresses() {
    let mut machine = Machine::new();
    let bars = [(0, BarKind::Memory32, LOW_LEN)];
    machine.root.add(plain(0x20, &bars)).unwrap();
    machine.enable(1);
    let place = machine.bar(1, 0);
    assert!(machine.root.remove(1).is_ok());
    assert_eq!(machine.read(place), [0xff]);
    assert_eq!(machine.read(Machine::config(1, 0)), [0xff; 4]);
    for slot in [0, 1, 32] {
        assert_eq!(
            machine.root.remove(slot).err(),
            Some(RootError::NoFunction(slot))
        );
    }
    assert_eq!(machine.root.add(plain(0x30, &bars)), Ok(1));
}

#[test]
fn dropped_machine_drops_its_functions() {
    let mut machine = Machine::new();
    let function = plain(0x20, &[(0, BarKind::Memory64, 0x1000)]);
    machine
        .root
        .add(Arc::clone(&function) as SharedFunction)
        .unwrap();
    machine.enable(1);
    assert_eq!(machine.read(machine.bar(1, 0)), [0x20]);
    drop(machine);
    assert_eq!(Arc::strong_count(&function), 1);
}

#[test]
fn all_functions_pause_and_resume() {
    let mut machine = Machine::new();
    let functions = [plain(1, &[]), plain(2, &[])];
    for function in &functions {
        machine
            .root
            .add(Arc::clone(function) as SharedFunction)
            .unwrap();
    }
    machine.root.pause();
    assert!(
        functions
            .iter()
            .all(|function| function.lock().unwrap().paused)
    );
    machine.root.resume();
    assert!(
        functions
            .iter()
            .all(|function| !function.lock().unwrap().paused)
    );
}

#[test]
fn restored_bus_decodes_where_the_guest_left_it() {
    let build = || {
        let mut machine = Machine::new();
        machine
            .root
            .add(plain(0x20, &[(0, BarKind::Memory64, 0x1000)]))
            .unwrap();
        machine
            .root
            .add(plain(0x30, &[(0, BarKind::Memory32, 0x1000)]))
            .unwrap();
        machine
    };
    let machine = build();
    machine.enable(1);
    machine.move_bar(1, 0, HIGH + 0x7000);
    machine.mmio.write(HIGH + 0x7000, &[0x44]);
    machine.pio.write(0xcf8, &0x8000_1234_u32.to_le_bytes());
    let saved = machine.root.save();

    let mut fresh = build();
    fresh.root.restore(&saved).unwrap();
    assert_eq!(fresh.root.save(), saved);
    assert_eq!(fresh.read(HIGH + 0x7000), [0x44]);
    assert_eq!(fresh.read(fresh.bar(2, 0)), [0xff], "its decoding was off");
    fresh.enable(2);
    assert_eq!(fresh.read(fresh.bar(2, 0)), [0x30]);

    let error = Machine::new().root.restore(&saved).unwrap_err();
    assert!(
        matches!(
            error,
            StateError::Field {
                field: "functions",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn every_register_keeps_its_fixed_bits() {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    config.add_bar(4, BarKind::Memory64Prefetchable, 0x1_0000_0000);
    let at = config.add_capability(Capability {
        id: 9,
        body: &[1, 2, 3],
        writable: &[0, 0xf0],
    });
    for offset in (0..256).step_by(4) {
        config.write(offset, &[0xff; 4]);
    }
    let mut identity = [0; 4];
    config.read(0, &mut identity);
    assert_eq!(identity, [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(config.word(0x04), 0x0407);
    assert_eq!(config.dword(0x20), 0x0000_000c);
    assert_eq!(config.dword(0x24), 0xffff_ffff);
    let mut capability = [0; 6];
    config.read(at, &mut capability);
    assert_eq!(capability, [9, 0, 1, 0xf2, 3, 0]);
}

proptest! {
    #[test]
    fn any_configuration_writes_keep_bars_apart_and_in_the_windows(
        writes in prop::collection::vec(
            (1_u8..4, prop_oneof![Just(0x04_u64), 0x10_u64..0x28, 0_u64..0x1000], prop::collection::vec(
                prop_oneof![any::<u8>(), Just(0), Just(0x10), Just(0xc0)], 1..=8)),
            0..128),
    ) {
        let mut machine = Machine::new();
        let bars = [(0, BarKind::Memory64, 0x1000), (2, BarKind::Memory32, 0x1_0000)];
        let functions = [plain(0x20, &bars), plain(0x30, &bars), plain(0x40, &bars)];
        for function in &functions {
            machine.root.add(Arc::clone(function) as SharedFunction).unwrap();
        }
        for (slot, offset, data) in &writes {
            let address = Machine::config(*slot, *offset);
            machine.mmio.write(address, data);
            machine.mmio.read(address, &mut data.clone());
        }
        let mut ranges = Vec::new();
        for function in &functions {
            let function = function.lock().unwrap();
            for (bar, address) in function.mapped.lock().unwrap().iter() {
                let (_, _, len) = bars.iter().find(|(index, ..)| index == bar).unwrap();
                ranges.push((*address, address + len, function.value + bar));
            }
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].1 <= pair[1].0);
        }
        for (start, end, value) in ranges {
            prop_assert!(start >= LOW && end <= LOW + LOW_LEN || start >= HIGH && end <= HIGH + HIGH_LEN);
            prop_assert_eq!(machine.read(start), [value]);
        }
    }
}
