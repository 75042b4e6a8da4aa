//! Breakpoints and watchpoints (Intel SDM, volume 3, 18.2).

use std::collections::BTreeMap;

use devices::memory::Ram;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};
use vm_memory::{Bytes, GuestAddress};

use super::request::Stop;

/// Debug registers that hold addresses.
const HARDWARE: usize = 4;

/// INT3.
const TRAP: u8 = 0xcc;

/// Exception vectors.
const DEBUG: u32 = 1;
const BREAKPOINT: u32 = 3;

/// DR6: the processor stopped after one instruction.
const DR6_STEP: u64 = 1 << 14;
/// DR7: bits that are set in any case, and exact matching.
const DR7_ALWAYS: u64 = 1 << 10 | 1 << 9;

/// What accesses a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Writes.
    Write,
    /// Reads and writes: the processor knows no watchpoint for reads alone.
    Any,
}

/// A place to stop at, by its virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breakpoint {
    /// An instruction, which is replaced in memory.
    Software(u64),
    /// An instruction, by a debug register.
    Hardware(u64),
    /// 1, 2, 4 or 8 bytes of data, by a debug register.
    Watch {
        /// First address, a multiple of the length.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// What to stop at.
        access: Access,
    },
}

/// Why a breakpoint cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BreakpointError {
    /// All debug registers are in use.
    #[error("all {HARDWARE} hardware breakpoints are in use")]
    Full,
    /// What a processor cannot watch.
    #[error(
        "{len} bytes at {address:#x} cannot be watched, expected 1, 2, 4 or 8 at a multiple of that"
    )]
    Length {
        /// First address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// There is no instruction.
    #[error("there is no memory for a breakpoint at {0:#x}")]
    Unmapped(u64),
}

#[derive(Clone, Copy, Debug)]
struct Replaced {
    physical: GuestAddress,
    instruction: u8,
}

/// All that are in force.
#[derive(Debug, Default)]
pub struct Breakpoints {
    hardware: [Option<Breakpoint>; HARDWARE],
    software: BTreeMap<u64, Replaced>,
}

impl Breakpoints {
    /// Adds one that takes a debug register. Adding it twice is adding it once.
    ///
    /// # Errors
    ///
    /// [`BreakpointError`]; nothing is changed.
    pub fn insert_hardware(&mut self, breakpoint: Breakpoint) -> Result<(), BreakpointError> {
        if let Breakpoint::Watch { address, len, .. } = breakpoint
            && (!matches!(len, 1 | 2 | 4 | 8) || !address.is_multiple_of(len))
        {
            return Err(BreakpointError::Length { address, len });
        }
        if self.hardware.contains(&Some(breakpoint)) {
            return Ok(());
        }
        let free = self.hardware.iter_mut().find(|slot| slot.is_none());
        *free.ok_or(BreakpointError::Full)? = Some(breakpoint);
        Ok(())
    }

    /// Adds one at `address`, which is `physical` in `memory`.
    ///
    /// # Errors
    ///
    /// There is no memory; nothing is changed.
    pub fn insert_software(
        &mut self,
        address: u64,
        physical: u64,
        memory: &Ram,
    ) -> Result<(), BreakpointError> {
        if self.software.contains_key(&address) {
            return Ok(());
        }
        let physical = GuestAddress(physical);
        let unmapped = |_| BreakpointError::Unmapped(address);
        let instruction = memory.read_obj(physical).map_err(unmapped)?;
        memory.write_obj(TRAP, physical).map_err(unmapped)?;
        let replaced = Replaced {
            physical,
            instruction,
        };
        self.software.insert(address, replaced);
        Ok(())
    }

    /// Takes one away, and tells whether it was there.
    pub fn remove(&mut self, breakpoint: Breakpoint, memory: &Ram) -> bool {
        if let Breakpoint::Software(address) = breakpoint {
            let replaced = self.software.remove(&address);
            return replaced.map(|replaced| restore(replaced, memory)).is_some();
        }
        let slot = self
            .hardware
            .iter_mut()
            .find(|slot| **slot == Some(breakpoint));
        slot.map(Option::take).is_some()
    }

    /// Takes all away.
    pub fn clear(&mut self, memory: &Ram) {
        for (_, replaced) in std::mem::take(&mut self.software) {
            restore(replaced, memory);
        }
        self.hardware = [None; HARDWARE];
    }

    /// Forgets those in memory: it is another guest's now.
    pub fn forget_memory(&mut self) {
        self.software.clear();
    }

    /// How KVM runs a vCPU with these, one instruction only if it is to `step`.
    pub fn control(&self, step: bool) -> kvm_guest_debug {
        let mut debug = kvm_guest_debug::default();
        if !self.software.is_empty() {
            debug.control |= KVM_GUESTDBG_USE_SW_BP;
        }
        if step {
            debug.control |= KVM_GUESTDBG_SINGLESTEP;
        }
        let mut dr7 = DR7_ALWAYS;
        for (slot, breakpoint) in self.hardware.iter().enumerate() {
            let (address, kind, len) = match *breakpoint {
                None | Some(Breakpoint::Software(_)) => continue,
                Some(Breakpoint::Hardware(address)) => (address, 0b00, 1),
                Some(Breakpoint::Watch {
                    address,
                    len,
                    access,
                }) => {
                    let kind = match access {
                        Access::Write => 0b01,
                        Access::Any => 0b11,
                    };
                    (address, kind, len)
                }
            };
            let len = match len {
                2 => 0b01,
                4 => 0b11,
                8 => 0b10,
                _ => 0b00,
            };
            debug.arch.debugreg[slot] = address;
            dr7 |= 2 << (2 * slot) | kind << (16 + 4 * slot) | len << (18 + 4 * slot);
            debug.control |= KVM_GUESTDBG_USE_HW_BP;
        }
        if debug.control != 0 {
            debug.control |= KVM_GUESTDBG_ENABLE;
            debug.arch.debugreg[7] = dr7;
        }
        debug
    }

    /// Why `vcpu`, which was to do one instruction if it `steps`, stopped. Nothing if it was not for the debugger: the guest
    /// has breakpoints of its own.
    pub fn stop(&self, vcpu: u32, steps: bool, at: &kvm_debug_exit_arch) -> Option<Stop> {
        match at.exception {
            BREAKPOINT => self
                .software
                .contains_key(&at.pc)
                .then_some(Stop::Software(vcpu)),
            DEBUG => {
                let hit = self
                    .hardware
                    .iter()
                    .enumerate()
                    .filter(|(slot, _)| at.dr6 & 1 << slot != 0)
                    .find_map(|(_, breakpoint)| *breakpoint);
                match hit {
                    Some(breakpoint @ Breakpoint::Watch { .. }) => {
                        Some(Stop::Watch { vcpu, breakpoint })
                    }
                    Some(_) => Some(Stop::Hardware(vcpu)),
                    None => (steps && at.dr6 & DR6_STEP != 0).then_some(Stop::Step(vcpu)),
                }
            }
            _ => None,
        }
    }

    /// How a vCPU goes on from a stop that was the guest's own: it gets the exception.
    pub fn control_with(&self, steps: bool, at: &kvm_debug_exit_arch) -> kvm_guest_debug {
        let mut debug = self.control(steps);
        debug.control |= KVM_GUESTDBG_ENABLE
            | match at.exception {
                BREAKPOINT => KVM_GUESTDBG_INJECT_BP,
                _ => KVM_GUESTDBG_INJECT_DB,
            };
        debug
    }
}

/// Puts an instruction back, unless the guest has written another there.
fn restore(replaced: Replaced, memory: &Ram) {
    let Replaced {
        physical,
        instruction,
    } = replaced;
    // Memory that was there is there: it goes only when the guest gives it up, and then it runs no code there.
    if memory.read_obj::<u8>(physical).is_ok_and(|now| now == TRAP) {
        let _ = memory.write_obj(instruction, physical);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Ram {
        let memory = Ram::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_obj(0x90_u8, GuestAddress(0x100)).unwrap();
        memory
    }

    fn byte(memory: &Ram) -> u8 {
        memory.read_obj(GuestAddress(0x100)).unwrap()
    }

    fn exit(exception: u32, pc: u64, dr6: u64) -> kvm_debug_exit_arch {
        kvm_debug_exit_arch {
            exception,
            pc,
            dr6,
            ..Default::default()
        }
    }

    const WATCH: Breakpoint = Breakpoint::Watch {
        address: 0x2008,
        len: 8,
        access: Access::Write,
    };

    #[test]
    fn debug_registers_are_filled_as_the_manual_says() {
        let mut breakpoints = Breakpoints::default();
        assert_eq!(breakpoints.control(false).control, 0);
        breakpoints
            .insert_hardware(Breakpoint::Hardware(0xffff_ffff_8100_0000))
            .unwrap();
        breakpoints.insert_hardware(WATCH).unwrap();
        let debug = breakpoints.control(false);
        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(debug.arch.debugreg[..2], [0xffff_ffff_8100_0000, 0x2008]);
        // Both are on for all tasks; the second is of writes of 8 bytes.
        assert_eq!(debug.arch.debugreg[7], 0x600 | 0b1010 | 0b1001 << 20);
        let step = breakpoints.control(true).control;
        assert_eq!(step, debug.control | KVM_GUESTDBG_SINGLESTEP);
    }

    #[test]
    fn there_are_four_debug_registers() {
        let mut breakpoints = Breakpoints::default();
        for address in 0..4 {
            breakpoints
                .insert_hardware(Breakpoint::Hardware(address))
                .unwrap();
            // Twice is once.
            breakpoints
                .insert_hardware(Breakpoint::Hardware(address))
                .unwrap();
        }
        let error = breakpoints.insert_hardware(WATCH).unwrap_err();
        assert!(matches!(error, BreakpointError::Full));
        assert!(breakpoints.remove(Breakpoint::Hardware(2), &memory()));
        assert!(!breakpoints.remove(Breakpoint::Hardware(2), &memory()));
        breakpoints.insert_hardware(WATCH).unwrap();
    }

    #[test]
    fn data_that_a_processor_cannot_watch_is_refused() {
        for (address, len) in [(0, 0), (0, 3), (0, 16), (4, 8), (1, 2)] {
            let watch = Breakpoint::Watch {
                address,
                len,
                access: Access::Any,
            };
            let error = Breakpoints::default().insert_hardware(watch).unwrap_err();
            assert!(matches!(error, BreakpointError::Length { .. }));
        }
    }

    #[test]
    fn instruction_is_replaced_once_and_put_back() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        for _ in 0..2 {
            breakpoints.insert_software(0x8100, 0x100, &memory).unwrap();
            assert_eq!(byte(&memory), TRAP);
        }
        assert!(breakpoints.remove(Breakpoint::Software(0x8100), &memory));
        assert_eq!(byte(&memory), 0x90);
        assert!(!breakpoints.remove(Breakpoint::Software(0x8100), &memory));

        // What the guest wrote meanwhile stays.
        breakpoints.insert_software(0x8100, 0x100, &memory).unwrap();
        memory.write_obj(0x55_u8, GuestAddress(0x100)).unwrap();
        breakpoints.clear(&memory);
        assert_eq!(byte(&memory), 0x55);
        let error = breakpoints.insert_software(1, 0x9000, &memory).unwrap_err();
        assert!(matches!(error, BreakpointError::Unmapped(1)));
    }

    #[test]
    fn stops_of_the_guests_own_are_told_from_the_debuggers() {
        let (memory, mut breakpoints) = (memory(), Breakpoints::default());
        breakpoints.insert_software(0x8100, 0x100, &memory).unwrap();
        breakpoints
            .insert_hardware(Breakpoint::Hardware(0x9000))
            .unwrap();
        breakpoints.insert_hardware(WATCH).unwrap();
        let stop = |steps, at| breakpoints.stop(1, steps, &at);
        assert_eq!(stop(false, exit(3, 0x8100, 0)), Some(Stop::Software(1)));
        assert_eq!(stop(false, exit(3, 0x8200, 0)), None);
        assert_eq!(stop(false, exit(1, 0x9000, 1)), Some(Stop::Hardware(1)));
        let watch = Stop::Watch {
            vcpu: 1,
            breakpoint: WATCH,
        };
        assert_eq!(stop(false, exit(1, 0, 0b10)), Some(watch));
        assert_eq!(stop(false, exit(1, 0, 0b100)), None);
        assert_eq!(stop(true, exit(1, 0, DR6_STEP)), Some(Stop::Step(1)));
        // The guest steps through a program of its own.
        assert_eq!(stop(false, exit(1, 0, DR6_STEP)), None);

        let debug = breakpoints.control_with(false, &exit(3, 0x8200, 0));
        assert_ne!(debug.control & KVM_GUESTDBG_INJECT_BP, 0);
        let debug = Breakpoints::default().control_with(false, &exit(1, 0, 0));
        let expected = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
        assert_eq!(debug.control, expected);
    }
}
