//! Local APIC setup that firmware does on a real machine.

use kvm_bindings::kvm_lapic_state;

/// Offsets of the local vector table's entries for the two interrupt pins (Intel SDM, volume 3, table 11-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE_SHIFT: u32 = 8;
const DELIVERY_MODE_MASK: u32 = 0b111 << DELIVERY_MODE_SHIFT;
const DELIVERY_NMI: u32 = 0b100;
const DELIVERY_EXTINT: u32 = 0b111;

/// Sets LINT0 to external interrupts and LINT1 to NMI; the other bits stay.
pub fn set_lint(mut lapic: kvm_lapic_state) -> kvm_lapic_state {
    set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    lapic
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let value = (register(lapic, offset) & !DELIVERY_MODE_MASK) | mode << DELIVERY_MODE_SHIFT;
    for (slot, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *slot = byte.cast_signed();
    }
}

fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| {
        lapic.regs[offset + n].cast_unsigned()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lint_pins_deliver_extint_and_nmi_and_keep_their_masks() {
        let mut before = kvm_lapic_state { regs: [0; 1024] };
        before.regs[LVT_LINT0 + 2] = 1;
        before.regs[LVT_LINT1 + 1] = 0b11;
        let after = set_lint(before);
        assert_eq!(register(&after, LVT_LINT0), 0x1_0700);
        assert_eq!(register(&after, LVT_LINT1), 0x400);
        let changed = (0..1024)
            .filter(|&n| before.regs[n] != after.regs[n])
            .collect::<Vec<_>>();
        assert_eq!(changed, [LVT_LINT0 + 1, LVT_LINT1 + 1]);
    }
}
