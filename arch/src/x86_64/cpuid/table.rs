//! CPUID entries by leaf and subleaf.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The four registers that CPUID gives: `eax`, `ebx`, `ecx`, `edx`.
pub(super) type Registers = [u32; 4];

/// CPUID entries that are being changed.
pub(super) struct Table(pub(super) Vec<kvm_cpuid_entry2>);

impl Table {
    /// The first entry of a leaf: its only one, or subleaf 0.
    pub(super) fn leaf(&mut self, function: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .find(|entry| entry.function == function && entry.index == 0)
    }

    /// All entries of a leaf.
    pub(super) fn subleaves(
        &mut self,
        function: u32,
    ) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .filter(move |entry| entry.function == function)
    }

    /// Leaves the leaf out, so that it reads as zeroes.
    pub(super) fn remove(&mut self, function: u32) {
        self.0.retain(|entry| entry.function != function);
    }

    /// Replaces a leaf without subleaves.
    pub(super) fn set(&mut self, function: u32, [eax, ebx, ecx, edx]: Registers) {
        self.remove(function);
        self.0.push(kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        });
    }

    /// Replaces a leaf with subleaves, given from number 0 on.
    pub(super) fn set_subleaves(
        &mut self,
        function: u32,
        subleaves: impl IntoIterator<Item = Registers>,
    ) {
        self.remove(function);
        for (index, [eax, ebx, ecx, edx]) in (0..).zip(subleaves) {
            self.0.push(kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx,
                edx,
                ..kvm_cpuid_entry2::default()
            });
        }
    }

    /// Makes sure that a range of leaves, which `base` gives the end of, reaches up to `last`.
    pub(super) fn extend_range(&mut self, base: u32, last: u32) {
        match self.leaf(base) {
            Some(entry) => entry.eax = entry.eax.max(last),
            None => self.set(base, [last, 0, 0, 0]),
        }
    }
}
