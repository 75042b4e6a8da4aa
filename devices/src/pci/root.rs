//! Bus 0: the functions in its slots, and their BARs on the MMIO bus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::allocator::{Allocation, BarAllocator};
use super::ecam::{AddressPort, ConfigPorts, Ecam, Target};
use super::probe::{self, ProbedBar};
use super::{BarChange, HostBridge, PciFunction, SlotGate, Windows};
use crate::bus::{Bus, BusDevice, SharedDevice};
use crate::state::{Persist, Section, StateError};
use crate::throttle::Throttle;

const KIND: &str = "pci-root";
const SLOTS: usize = 32;

static REFUSED_BARS: Throttle = Throttle::per_minute(10);

/// Why a function cannot be added or removed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RootError {
    /// All 32 slots are taken.
    #[error("no free PCI slot on bus 0")]
    NoSlot,
    /// The slot is taken or beyond the bus.
    #[error("PCI slot {0} is taken or not on bus 0")]
    SlotTaken(u8),
    /// No function is in the slot, or it is the host bridge.
    #[error("PCI slot {0} has no function that can be removed")]
    NoFunction(u8),
    /// A window has no room.
    #[error("no room for BAR {bar} of {len:#x} bytes in the PCI windows")]
    NoRoom {
        /// BAR index.
        bar: u8,
        /// Its length in bytes.
        len: u64,
    },
}

/// A PCI function as the bus holds it.
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// The root bus of segment 0.
pub struct Root {
    slots: Arc<Slots>,
    address: AddressPort,
    allocator: BarAllocator,
}

impl Root {
    /// A bus with a host bridge at 00:00.0. BARs go to `mmio`, inside `windows` only; `mmio` is not kept alive.
    pub fn new(mmio: Arc<Bus>, windows: Windows) -> Self {
        let allocator = BarAllocator::new(&windows);
        let slots = Slots {
            mmio: Arc::downgrade(&mmio),
            windows,
            slots: RwLock::default(),
            gate: SlotGate::default(),
        };
        let bridge = Slot::new(Arc::new(Mutex::new(HostBridge::new())), Vec::new());
        slots.set(0, Some(bridge));
        Self {
            slots: Arc::new(slots),
            address: AddressPort::default(),
            allocator,
        }
    }

    /// The ECAM range, [`super::ECAM_LEN`] bytes, for the MMIO bus.
    pub fn ecam(&self) -> SharedDevice {
        Arc::new(Mutex::new(Ecam(Arc::clone(&self.slots))))
    }

    /// Configuration mechanism 1, 8 ports from 0xcf8 on, for the PIO bus.
    pub fn config_ports(&self) -> SharedDevice {
        Arc::new(Mutex::new(ConfigPorts {
            slots: Arc::clone(&self.slots),
            address: Arc::clone(&self.address),
        }))
    }

    /// Hides functions from the guest that it gave up; each is shown again once it left its slot.
    pub fn gate(&self) -> SlotGate {
        self.slots.gate.clone()
    }

    /// Puts `function` into the lowest free slot, gives its BARs addresses, and returns the slot. The guest finds the
    /// addresses in the BARs, and turns decoding on.
    ///
    /// # Errors
    ///
    /// [`RootError`]; the bus is unchanged.
    pub fn add(&mut self, function: SharedFunction) -> Result<u8, RootError> {
        let slot = (1..SLOTS as u8)
            .find(|slot| self.slots.get(*slot).is_none())
            .ok_or(RootError::NoSlot)?;
        self.add_at(slot, function)?;
        Ok(slot)
    }

    /// Puts `function` into `slot`, as [`Root::add`] does.
    ///
    /// # Errors
    ///
    /// [`RootError`]; the bus is unchanged.
    pub fn add_at(&mut self, slot: u8, function: SharedFunction) -> Result<(), RootError> {
        if usize::from(slot) >= SLOTS || self.slots.get(slot).is_some() {
            return Err(RootError::SlotTaken(slot));
        }
        let mut bars = Vec::new();
        {
            let mut function = lock(&function);
            for probed in probe::bars(&mut *function) {
                let Some(allocation) = self.allocator.allocate(&probed) else {
                    bars.iter()
                        .for_each(|bar: &SlotBar| self.allocator.free(&bar.allocation));
                    return Err(RootError::NoRoom {
                        bar: probed.index,
                        len: probed.len,
                    });
                };
                probe::place(&mut *function, &probed, allocation.address());
                bars.push(SlotBar {
                    probed,
                    allocation,
                    mapped: None,
                });
            }
        }
        self.slots.set(slot, Some(Slot::new(function, bars)));
        Ok(())
    }

    /// Takes the function out of `slot`, its BARs off the bus, and gives it back. It is not paused.
    ///
    /// # Errors
    ///
    /// [`RootError::NoFunction`].
    pub fn remove(&mut self, slot: u8) -> Result<SharedFunction, RootError> {
        let taken = self.slots.get(slot).filter(|_| slot != 0);
        let taken = taken.ok_or(RootError::NoFunction(slot))?;
        self.slots.set(slot, None);
        self.slots.gate.open(1 << slot);
        let mut taken = lock(&taken);
        for at in 0..taken.bars.len() {
            self.slots.map(slot, &mut taken, at, None);
            self.allocator.free(&taken.bars[at].allocation);
        }
        // A write that found the slot before and comes to its turn now decodes nothing any more.
        taken.bars.clear();
        Ok(Arc::clone(&taken.function))
    }

    /// The function in `slot`.
    pub fn function(&self, slot: u8) -> Option<SharedFunction> {
        let slot = self.slots.get(slot)?;
        let function = Arc::clone(&lock(&slot).function);
        Some(function)
    }

    /// Pauses all functions. vCPUs do not run.
    pub fn pause(&mut self) {
        for (_, slot) in self.slots.all() {
            lock(&lock(&slot).function).pause();
        }
    }

    /// The mirror of [`Root::pause`].
    pub fn resume(&mut self) {
        for (_, slot) in self.slots.all() {
            lock(&lock(&slot).function).resume();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct RootState {
    address_port: u32,
    functions: Vec<(u8, Section)>,
}

impl Persist for Root {
    fn save(&self) -> Section {
        let Self {
            slots,
            address,
            // Follows from the functions, which are added in the same order.
            allocator: _,
        } = self;
        let functions = slots.all().into_iter();
        Section::new(
            KIND,
            1,
            &RootState {
                address_port: address.load(std::sync::atomic::Ordering::Relaxed),
                functions: functions
                    .map(|(index, slot)| (index, lock(&lock(&slot).function).save()))
                    .collect(),
            },
        )
    }

    /// Restores every function, and puts its BARs where the guest decoded them. If a function refuses its state, those in
    /// lower slots have theirs already: the bus is then of no use.
    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let RootState {
            address_port,
            functions,
        } = section.decode(KIND, 1)?;
        let here: Vec<u8> = self
            .slots
            .all()
            .into_iter()
            .map(|(index, _)| index)
            .collect();
        let saved: Vec<u8> = functions.iter().map(|(index, _)| *index).collect();
        if here != saved {
            return Err(StateError::Field {
                kind: KIND,
                field: "functions",
                value: format!("slots {saved:?}"),
                expected: format!("slots {here:?}"),
            });
        }
        for (index, section) in &functions {
            let Some(slot) = self.slots.get(*index) else {
                continue;
            };
            let mut slot = lock(&slot);
            lock(&slot.function).restore(section)?;
            for at in 0..slot.bars.len() {
                let address = probe::decoded(&*lock(&slot.function), &slot.bars[at].probed);
                self.slots.map(*index, &mut slot, at, address);
            }
        }
        self.address
            .store(address_port, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

/// The functions, as configuration accesses find them.
///
/// Locks are taken in the order slot, function; the list of slots and the list of the MMIO bus are locked only to look
/// something up or to change them.
pub(super) struct Slots {
    /// Weak, since the bus holds the ECAM range, which leads here: the two would keep each other and all devices alive.
    mmio: Weak<Bus>,
    windows: Windows,
    slots: RwLock<[Option<SharedSlot>; SLOTS]>,
    gate: SlotGate,
}

type SharedSlot = Arc<Mutex<Slot>>;

/// A function and where its BARs are. Its lock is held while a write to configuration space takes effect, so that two
/// vCPUs that move the same BAR leave it where the registers say.
struct Slot {
    function: SharedFunction,
    bars: Vec<SlotBar>,
}

struct SlotBar {
    probed: ProbedBar,
    allocation: Allocation,
    mapped: Option<u64>,
}

impl Slot {
    fn new(function: SharedFunction, bars: Vec<SlotBar>) -> SharedSlot {
        Arc::new(Mutex::new(Self { function, bars }))
    }
}

impl Slots {
    pub(super) fn read_config(&self, target: Target, data: &mut [u8]) {
        if let Some(slot) = self.answering(target.slot) {
            let slot = lock(&slot);
            lock(&slot.function).read_config(target.offset, data);
        }
    }

    pub(super) fn write_config(&self, target: Target, data: &[u8]) {
        if let Some(slot) = self.answering(target.slot) {
            self.write_slot(&slot, target, data);
        }
    }

    /// Writes to the configuration space of `slot`, which was found at `target`, and may have been taken out meanwhile.
    fn write_slot(&self, slot: &SharedSlot, target: Target, data: &[u8]) {
        let mut slot = lock(slot);
        let changes = lock(&slot.function).write_config(target.offset, data);
        for BarChange { bar, to } in changes {
            if let Some(at) = slot.bars.iter().position(|known| known.probed.index == bar) {
                self.map(target.slot, &mut slot, at, to);
            }
        }
    }

    /// Moves BAR `at` of `slot` to `address`, if that is free and in a window; else it is decoded nowhere.
    fn map(&self, index: u8, slot: &mut Slot, at: usize, address: Option<u64>) {
        let Slot { function, bars } = slot;
        let bar = &mut bars[at];
        if bar.mapped == address {
            return;
        }
        let Some(mmio) = self.mmio.upgrade() else {
            return;
        };
        if let Some(old) = bar.mapped.take() {
            mmio.remove(old);
        }
        let ProbedBar {
            index: number, len, ..
        } = bar.probed;
        if let Some(address) = address {
            let range = BarRange {
                function: Arc::clone(function),
                bar: number,
            };
            let refusal = if self.windows.contain(address, len) {
                mmio.insert(address, len, Arc::new(Mutex::new(range)))
                    .err()
                    .map(|error| error.to_string())
            } else {
                Some("outside the PCI windows".to_owned())
            };
            match refusal {
                None => bar.mapped = Some(address),
                Some(reason) => {
                    if let Some(suppressed) = REFUSED_BARS.allow() {
                        warn!(
                            slot = index,
                            bar = number,
                            address = format_args!("{address:#x}"),
                            reason,
                            suppressed,
                            "PCI BAR is not decoded"
                        );
                    }
                }
            }
        }
        lock(function).bar_mapped(number, bar.mapped);
    }

    /// The function in `slot`, if the guest has not given it up.
    fn answering(&self, slot: u8) -> Option<SharedSlot> {
        self.get(slot).filter(|_| self.gate.is_open(slot))
    }

    fn get(&self, slot: u8) -> Option<SharedSlot> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(usize::from(slot))?.clone()
    }

    fn set(&self, slot: u8, value: Option<SharedSlot>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots[usize::from(slot)] = value;
    }

    fn all(&self) -> Vec<(u8, SharedSlot)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        (0..)
            .zip(slots.iter())
            .filter_map(|(index, slot)| Some((index, slot.clone()?)))
            .collect()
    }
}

/// A BAR on the MMIO bus.
struct BarRange {
    function: SharedFunction,
    bar: u8,
}

impl BusDevice for BarRange {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.function).read_bar(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.function).write_bar(self.bar, offset, data);
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
