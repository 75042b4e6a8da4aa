//! Whatever a guest does, and whenever the owner does something.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::state::Persist;

const COUNT: u32 = 5;

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Vec<u8> },
    Register { offset: u64, value: u32 },
    Plug(u32),
    Request(u32),
    Withdraw(u32),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..COUNT + 2;
    prop_oneof![
        2 => (0_u64..0x1000, 1_usize..=8).prop_map(|(offset, len)| Step::Read { offset, len }),
        2 => (0_u64..0x1000, prop::collection::vec(any::<u8>(), 1..=8))
            .prop_map(|(offset, data)| Step::Write { offset, data }),
        8 => (0_u64..8, prop_oneof![0_u32..16, any::<u32>()])
            .prop_map(|(register, value)| Step::Register { offset: 4 * register, value }),
        4 => index.clone().prop_map(Step::Plug),
        2 => index.clone().prop_map(Step::Request),
        1 => index.prop_map(Step::Withdraw),
        1 => Just(Step::Take),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..200)
}

/// The calls of one device, so that all are walked alike.
trait Device: BusDevice + Persist {
    /// Plugs, and tells what was plugged.
    fn plug(&mut self, index: u32) -> Result<u32, HotplugError>;
    fn request(&mut self, index: u32) -> Result<(), HotplugError>;
    fn withdraw(&mut self, index: u32) -> Result<(), HotplugError>;
    fn take(&mut self) -> Vec<u32>;
}

impl Device for PciSlots {
    fn plug(&mut self, index: u32) -> Result<u32, HotplugError> {
        self.insert(index as u8).map(|()| index)
    }
    fn request(&mut self, index: u32) -> Result<(), HotplugError> {
        self.request_removal(index as u8)
    }
    fn withdraw(&mut self, index: u32) -> Result<(), HotplugError> {
        PciSlots::withdraw(self, index as u8)
    }
    fn take(&mut self) -> Vec<u32> {
        let ejected = self.take_ejected();
        (0..32).filter(|slot| ejected & 1 << slot != 0).collect()
    }
}

impl Device for CpuSlots {
    fn plug(&mut self, index: u32) -> Result<u32, HotplugError> {
        CpuSlots::plug(self, index).map(|()| index)
    }
    fn request(&mut self, index: u32) -> Result<(), HotplugError> {
        self.request_unplug(index)
    }
    fn withdraw(&mut self, index: u32) -> Result<(), HotplugError> {
        CpuSlots::withdraw(self, index)
    }
    fn take(&mut self) -> Vec<u32> {
        self.take_ejected()
    }
}

impl Device for MemorySlots {
    fn plug(&mut self, index: u32) -> Result<u32, HotplugError> {
        let start = u64::from(index) << 30;
        MemorySlots::plug(self, start..start + (1 << 30))
    }
    fn request(&mut self, index: u32) -> Result<(), HotplugError> {
        self.request_unplug(index)
    }
    fn withdraw(&mut self, index: u32) -> Result<(), HotplugError> {
        MemorySlots::withdraw(self, index)
    }
    fn take(&mut self) -> Vec<u32> {
        let ejected = self.take_ejected().into_iter();
        ejected.map(|(slot, _)| slot).collect()
    }
}

/// Takes the steps, and checks that the owner hears only of what was there, once, and was woken for it.
fn walk(
    machine: &Machine,
    mut device: impl Device,
    mut fresh: impl Device,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let mut there = BTreeSet::new();
    for step in steps.into_iter().chain([Step::Take]) {
        match step {
            Step::Read { offset, len } => {
                let mut data = vec![0xff; len];
                device.read(offset, &mut data);
                let answered = len == 4 && offset % 4 == 0 && offset < 0x20;
                prop_assert!(answered || data.iter().all(|byte| *byte == 0xff));
            }
            Step::Write { offset, data } => device.write(offset, &data),
            Step::Register { offset, value } => write(&mut device, offset, value),
            Step::Plug(index) => {
                if let Ok(index) = device.plug(index) {
                    prop_assert!(there.insert(index));
                }
            }
            Step::Request(index) => {
                if device.request(index).is_ok() {
                    prop_assert!(there.contains(&index));
                }
            }
            Step::Withdraw(index) => {
                if device.withdraw(index).is_ok() {
                    prop_assert!(there.remove(&index));
                }
            }
            Step::Take => {
                let woken = machine.wakes() > 0;
                let ejected = device.take();
                prop_assert_eq!(woken, !ejected.is_empty());
                for index in ejected {
                    prop_assert!(there.remove(&index));
                }
            }
        }
    }
    let section = device.save();
    fresh.restore(&section).unwrap();
    prop_assert_eq!(fresh.save(), section);
    Ok(())
}

proptest! {
    #[test]
    fn owner_hears_of_ejected_functions_that_were_there(steps in steps()) {
        let machine = Machine::new();
        walk(&machine, machine.pci(), Machine::new().pci(), steps)?;
    }

    #[test]
    fn owner_hears_of_ejected_vcpus_that_were_there(steps in steps()) {
        let machine = Machine::new();
        let cpus = || machine.cpus(1, COUNT);
        walk(&machine, cpus(), cpus(), steps)?;
    }

    #[test]
    fn owner_hears_of_ejected_memory_that_was_there(steps in steps()) {
        let machine = Machine::new();
        let memory = || machine.memory(COUNT as u8);
        walk(&machine, memory(), memory(), steps)?;
    }
}
