//! The leaves that show the topology.

use kvm_bindings::kvm_cpuid_entry2;

use super::table::Table;
use super::{Topology, Vendor};

const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, `ecx`, of AMD.
const CMP_LEGACY: u32 = 1 << 1;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

const INTEL_CACHES: u32 = 4;
const EXTENDED_TOPOLOGY: u32 = 0xb;
const V2_EXTENDED_TOPOLOGY: u32 = 0x1f;
const EXTENDED_BASE: u32 = 0x8000_0000;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const AMD_CORE_COUNT: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_V2_TOPOLOGY: u32 = 0x8000_0026;

/// Type in `eax` of the cache leaves of both vendors; 0 ends the list.
const CACHE_TYPE: u32 = 0b1_1111;

/// Level types of leaves 0xB and 0x1F.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
const LEVEL_DIE: u32 = 5;

/// Sets the leaves of the vCPU with APIC id `apic_id`.
pub(super) fn set_topology(table: &mut Table, vendor: Vendor, topology: &Topology, apic_id: u32) {
    let threads = topology.threads_per_package();
    if let Some(leaf) = table.leaf(1) {
        // Intel counts ids, that is with the gaps between them; AMD counts threads.
        let count = match vendor {
            Vendor::Intel => 1 << topology.package_shift(),
            Vendor::Amd => threads,
        };
        leaf.ebx = leaf.ebx & 0xffff | count.min(0xff) << 16 | (apic_id & 0xff) << 24;
        leaf.edx = leaf.edx & !HTT | if threads > 1 { HTT } else { 0 };
    }

    let smt = (
        LEVEL_SMT,
        topology.core_shift(),
        topology.threads_per_core(),
    );
    let package = (topology.package_shift(), threads);
    // This older leaf has no dies; its core level ends where the package does.
    table.set_subleaves(
        EXTENDED_TOPOLOGY,
        levels(&[smt, (LEVEL_CORE, package.0, package.1)], apic_id),
    );
    table.remove(V2_EXTENDED_TOPOLOGY);
    match vendor {
        Vendor::Intel => {
            let core = (LEVEL_CORE, topology.die_shift(), topology.threads_per_die());
            let die = (LEVEL_DIE, package.0, package.1);
            let with_dies = [smt, core, die];
            let shown = if topology.dies_per_package() > 1 {
                &with_dies[..]
            } else {
                &with_dies[..2]
            };
            table.set_subleaves(V2_EXTENDED_TOPOLOGY, levels(shown, apic_id));
            table.extend_range(0, V2_EXTENDED_TOPOLOGY);
            set_intel_caches(table, topology);
        }
        Vendor::Amd => {
            table.extend_range(0, EXTENDED_TOPOLOGY);
            set_amd(table, topology, apic_id);
        }
    }
}

/// Subleaves of leaves 0xB and 0x1F from levels of (type, shift to the next level, threads), with the one that ends them.
fn levels(levels: &[(u32, u32, u32)], apic_id: u32) -> Vec<[u32; 4]> {
    let end = (0, 0, 0);
    (0..)
        .zip(levels.iter().chain([&end]))
        .map(|(number, (kind, shift, threads))| [*shift, *threads, number | kind << 8, apic_id])
        .collect()
}

/// Level of a cache, in `eax` of the cache leaves of both vendors.
fn cache_level(leaf: &kvm_cpuid_entry2) -> u32 {
    leaf.eax >> 5 & 0b111
}

/// Number of APIC ids, less one, that share a cache of this level: a core's, or a die's from level 3 on.
fn sharing(topology: &Topology, level: u32) -> u32 {
    let shift = if level < 3 {
        topology.core_shift()
    } else {
        topology.die_shift()
    };
    ((1 << shift) - 1).min(0xfff)
}

fn set_intel_caches(table: &mut Table, topology: &Topology) {
    let core_ids = (1u32 << (topology.package_shift() - topology.core_shift())) - 1;
    for leaf in table
        .subleaves(INTEL_CACHES)
        .filter(|leaf| leaf.eax & CACHE_TYPE != 0)
    {
        leaf.eax = leaf.eax & 0x3fff
            | sharing(topology, cache_level(leaf)) << 14
            | core_ids.min(0x3f) << 26;
    }
}

fn set_amd(table: &mut Table, topology: &Topology, apic_id: u32) {
    let threads = topology.threads_per_package();
    let mut has_extensions = false;
    if let Some(leaf) = table.leaf(EXTENDED_FEATURES) {
        let cmp_legacy = if threads > 1 { CMP_LEGACY } else { 0 };
        leaf.ecx = leaf.ecx & !CMP_LEGACY | cmp_legacy;
        // Threads of a core can be told in no other leaf. The extensions are data alone, which KVM need not support.
        if topology.threads_per_core() > 1 {
            leaf.ecx |= TOPOLOGY_EXTENSIONS;
        }
        has_extensions = leaf.ecx & TOPOLOGY_EXTENSIONS != 0;
    }
    if let Some(leaf) = table.leaf(AMD_CORE_COUNT) {
        let (count, id_width) = ((threads - 1).min(0xff), topology.package_shift().min(0xf));
        leaf.ecx = leaf.ecx & !0xf0ff | count | id_width << 12;
    }
    table.remove(AMD_V2_TOPOLOGY);
    if !has_extensions {
        return;
    }
    for leaf in table
        .subleaves(AMD_CACHES)
        .filter(|leaf| leaf.eax & CACHE_TYPE != 0)
    {
        leaf.eax = leaf.eax & !(0xfff << 14) | sharing(topology, cache_level(leaf)) << 14;
    }
    let within = |from: u32, to: u32| apic_id >> from & ((1u32 << (to - from)) - 1);
    let core = within(topology.core_shift(), topology.package_shift());
    let die = within(topology.die_shift(), topology.package_shift());
    let dies = topology.dies_per_package();
    let node = (apic_id >> topology.package_shift()) * dies + die;
    let cores = (topology.threads_per_core() - 1).min(0xff) << 8 | core & 0xff;
    let nodes = (dies - 1).min(0b111) << 8 | node & 0xff;
    table.set(AMD_TOPOLOGY, [apic_id, cores, nodes, 0]);
    table.extend_range(EXTENDED_BASE, AMD_TOPOLOGY);
}
