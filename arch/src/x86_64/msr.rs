//! Model-specific registers that firmware sets on a real machine.

use kvm_bindings::kvm_msr_entry;

/// `IA32_MISC_ENABLE` and its bit for fast string operations.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// `IA32_MTRR_DEF_TYPE`: memory type outside all ranges, and the bit that switches MTRRs on.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// MSRs for every vCPU before its first run; all others keep their reset values.
///
/// All memory is write-back: device memory is not cached by KVM whatever the MTRRs say.
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    [
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ]
    .into_iter()
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_string_operations_are_fast() {
        let msrs: Vec<_> = boot_msrs()
            .iter()
            .map(|msr| (msr.index, msr.data))
            .collect();
        assert_eq!(msrs, [(0x1a0, 1), (0x2ff, 0x806)]);
    }
}
