use kvm_bindings::kvm_cpuid_entry2;
use proptest::prelude::*;

use super::*;

/// What KVM might say on a processor of this vendor, with features that must be hidden.
fn supported(vendor: &[u8; 12]) -> CpuId {
    let word = |n: usize| u32::from_le_bytes(*vendor[n..].first_chunk().unwrap());
    let leaf = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    };
    CpuId::from_entries(&[
        leaf(0, 0, 0xd, word(0), word(8), word(4)),
        leaf(
            1,
            0,
            0x806f8,
            0x5510_0800,
            1 << 3 | 1 << 5 | 1 << 15 | 1 << 20,
            0x0f8b_fbff,
        ),
        leaf(4, 0, 0xfc00_4121, 1, 2, 3),
        leaf(4, 1, 0xfc00_4143, 1, 2, 3),
        leaf(4, 2, 0xfc1f_c163, 1, 2, 3),
        leaf(4, 3, 0, 0, 0, 0),
        leaf(5, 0, 64, 64, 3, 0),
        leaf(7, 0, 1, 1 << 2 | 1 << 5, 1 << 30 | 1 << 2, 1 << 1 | 1 << 4),
        leaf(0xa, 0, 0x0730_0404, 0, 0, 0x603),
        leaf(0xb, 0, 1, 2, 0x100, 0x55),
        leaf(0xd, 0, 7, 0x340, 0x340, 0),
        leaf(0x12, 0, 1, 1, 0, 0),
        leaf(0x4000_0000, 0, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
        leaf(0x4000_0001, 0, 0x0100_7efb, 0, 0, 0),
        leaf(0x8000_0000, 0, 0x8000_001f, word(0), word(8), word(4)),
        leaf(
            0x8000_0001,
            0,
            0,
            0,
            1 << 2 | 1 << 5 | 1 << 22 | 1 << 23,
            0x2c10_0800,
        ),
        leaf(0x8000_0002, 0, 0x6574_6e49, 1, 2, 3),
        leaf(0x8000_0008, 0, 0x302e, 0x200, 0x7000, 0),
        leaf(0x8000_000a, 0, 1, 8, 0, 1),
        leaf(0x8000_001d, 0, 0x4121, 1, 2, 3),
        leaf(0x8000_001d, 3, 0x1c163, 1, 2, 3),
        leaf(0x8000_001f, 0, 0x1f, 0, 0, 0),
    ])
    .unwrap()
}

fn config(topology: Topology) -> CpuidConfig {
    CpuidConfig {
        topology,
        tsc_khz: Some(2_300_000),
        tsc_deadline_timer: true,
        pmu: false,
        nested: false,
    }
}

fn intel(topology: Topology, vcpu: u32) -> CpuId {
    configure(&supported(b"GenuineIntel"), &config(topology), vcpu).unwrap()
}

fn amd(topology: Topology, vcpu: u32) -> CpuId {
    configure(&supported(b"AuthenticAMD"), &config(topology), vcpu).unwrap()
}

fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
    let mut found = cpuid
        .as_slice()
        .iter()
        .filter(|e| (e.function, e.index) == (function, index));
    let first = found.next().map(|e| [e.eax, e.ebx, e.ecx, e.edx]);
    assert!(
        found.next().is_none(),
        "leaf {function:#x}.{index} is there twice"
    );
    first
}

fn get(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    find(cpuid, function, index).unwrap()
}

fn topology(t: u32, c: u32, d: u32, p: u32) -> Topology {
    Topology::new(t, c, d, p).unwrap()
}

#[test]
fn apic_ids_have_a_field_of_whole_bits_for_each_level() {
    let odd = topology(2, 3, 3, 2);
    assert_eq!(odd.vcpu_count(), 36);
    assert_eq!(
        (odd.core_shift(), odd.die_shift(), odd.package_shift()),
        (1, 3, 5)
    );
    let ids: Vec<_> = (0..8).map(|vcpu| odd.apic_id(vcpu)).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9]);
    assert_eq!(odd.apic_id(18), 32);
    let flat = Topology::flat(254).unwrap();
    assert!((0..254).all(|vcpu| flat.apic_id(vcpu) == vcpu));
}

#[test]
fn empty_and_overlarge_topologies_are_refused() {
    assert_eq!(
        Topology::new(1, 0, 1, 1),
        Err(TopologyError::Zero {
            level: "cores per die"
        })
    );
    assert_eq!(
        Topology::flat(0),
        Err(TopologyError::Zero {
            level: "cores per die"
        })
    );
    assert!(matches!(
        Topology::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
        Err(TopologyError::TooLarge { .. })
    ));
    let error = configure(
        &supported(b"GenuineIntel"),
        &config(topology(1, 2, 1, 1)),
        2,
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "vCPU 2 is not in a topology of 2 vCPUs");
}

#[test]
fn leaf_1_has_apic_id_thread_count_and_what_the_local_apic_brings() {
    let [_, ebx, ecx, edx] = get(&intel(topology(1, 3, 1, 1), 2), 1, 0);
    assert_eq!(ebx, 2 << 24 | 4 << 16 | 0x0800);
    assert_eq!(ecx, 1 << 20 | 1 << 21 | 1 << 24 | 1 << 31);
    assert_ne!(edx & 1 << 28, 0);
    let [_, ebx, _, edx] = get(&amd(topology(1, 3, 1, 1), 1), 1, 0);
    assert_eq!(ebx, 1 << 24 | 3 << 16 | 0x0800);
    assert_ne!(edx & 1 << 28, 0);
    assert_eq!(get(&intel(topology(1, 1, 1, 2), 1), 1, 0)[3] & 1 << 28, 0);
}

#[test]
fn extended_topology_names_threads_cores_and_dies() {
    let cpuid = intel(topology(2, 4, 2, 2), 13);
    let id = 0b1101;
    assert_eq!(get(&cpuid, 0xb, 0), [1, 2, 0x100, id]);
    assert_eq!(get(&cpuid, 0xb, 1), [4, 16, 0x201, id]);
    assert_eq!(get(&cpuid, 0xb, 2), [0, 0, 2, id]);
    assert_eq!(get(&cpuid, 0x1f, 1), [3, 8, 0x201, id]);
    assert_eq!(get(&cpuid, 0x1f, 2), [4, 16, 0x502, id]);
    assert_eq!(get(&cpuid, 0x1f, 3), [0, 0, 3, id]);
    assert_eq!(get(&cpuid, 0, 0)[0], 0x1f);
    let one_die = intel(topology(1, 4, 1, 1), 3);
    assert_eq!(get(&one_die, 0x1f, 1), [2, 4, 0x201, 3]);
    assert_eq!(get(&one_die, 0x1f, 2), [0, 0, 2, 3]);
}

#[test]
fn intel_caches_are_shared_by_core_and_die() {
    let cpuid = intel(topology(2, 6, 2, 1), 0);
    let eax = |index| get(&cpuid, 4, index)[0];
    assert_eq!(
        (
            eax(0) >> 14 & 0xfff,
            eax(1) >> 14 & 0xfff,
            eax(2) >> 14 & 0xfff
        ),
        (1, 1, 15)
    );
    assert_eq!((eax(0) >> 26, eax(2) & 0x3fff, eax(3)), (15, 0x0163, 0));
}

#[test]
fn amd_leaves_show_the_topology() {
    let cpuid = amd(topology(2, 4, 2, 2), 29);
    let id = 0b1_1101;
    assert_eq!(get(&cpuid, 0x8000_0008, 0)[2], 4 << 12 | 15);
    assert_eq!(
        get(&cpuid, 0x8000_001e, 0),
        [id, 1 << 8 | 0b110, 1 << 8 | 3, 0]
    );
    assert_eq!(get(&cpuid, 0x8000_001d, 0)[0] >> 14 & 0xfff, 1);
    assert_eq!(get(&cpuid, 0x8000_001d, 3)[0] >> 14 & 0xfff, 7);
    assert_eq!(get(&cpuid, 0x8000_0001, 0)[2], 1 << 1 | 1 << 5 | 1 << 22);
    assert_eq!(get(&cpuid, 0xb, 1), [4, 16, 0x201, id]);
    assert_eq!(find(&cpuid, 0x1f, 0), None);
}

fn amd_without_topology_extensions(topology: Topology) -> CpuId {
    let mut supported = supported(b"AuthenticAMD");
    let features = supported
        .as_mut_slice()
        .iter_mut()
        .find(|e| e.function == 0x8000_0001);
    features.unwrap().ecx &= !(1 << 22);
    configure(&supported, &config(topology), 3).unwrap()
}

#[test]
fn amd_processor_without_topology_extensions_gets_none_for_cores() {
    let cpuid = amd_without_topology_extensions(topology(1, 4, 1, 1));
    assert_eq!(get(&cpuid, 0x8000_0001, 0)[2] & 1 << 22, 0);
    assert_eq!(find(&cpuid, 0x8000_001e, 0), None);
    assert_eq!(get(&cpuid, 0x8000_0008, 0)[2], 2 << 12 | 3);
}

#[test]
fn amd_guest_with_threads_gets_topology_extensions_on_any_host() {
    let cpuid = amd_without_topology_extensions(topology(2, 2, 1, 1));
    assert_eq!(get(&cpuid, 0x8000_0001, 0)[2] & 1 << 22, 1 << 22);
    assert_eq!(get(&cpuid, 0x8000_001e, 0), [3, 1 << 8 | 1, 0, 0]);
}

#[test]
fn what_a_guest_must_not_see_is_hidden() {
    let cpuid = intel(topology(1, 1, 1, 1), 0);
    for leaf in [5, 0xa, 0x12, 0x8000_000a, 0x8000_001f] {
        assert_eq!(find(&cpuid, leaf, 0), None, "leaf {leaf:#x}");
    }
    assert_eq!(get(&cpuid, 7, 0)[1..], [1 << 5, 1 << 2, 1 << 4]);
    let open = CpuidConfig {
        pmu: true,
        nested: true,
        ..config(topology(1, 1, 1, 1))
    };
    let cpuid = configure(&supported(b"AuthenticAMD"), &open, 0).unwrap();
    assert_eq!(get(&cpuid, 1, 0)[2] & (1 << 5 | 1 << 15), 1 << 5 | 1 << 15);
    assert_eq!(
        get(&cpuid, 0x8000_0001, 0)[2] & (1 << 2 | 1 << 23),
        1 << 2 | 1 << 23
    );
    assert!(find(&cpuid, 0xa, 0).is_some() && find(&cpuid, 0x8000_000a, 0).is_some());
}

#[test]
fn other_leaves_pass_as_kvm_gives_them() {
    let (before, after) = (supported(b"GenuineIntel"), intel(topology(1, 2, 1, 1), 1));
    for leaf in [0xd, 0x4000_0001, 0x8000_0000, 0x8000_0002, 0x8000_0008] {
        assert_eq!(
            get(&after, leaf, 0),
            get(&before, leaf, 0),
            "leaf {leaf:#x}"
        );
    }
    assert_eq!(physical_address_bits(&after), 46);
    assert_eq!(
        physical_address_bits(&CpuId::from_entries(&[]).unwrap()),
        36
    );
}

#[test]
fn hypervisor_leaves_have_kvms_signature_and_the_clocks() {
    let cpuid = intel(topology(1, 1, 1, 1), 0);
    assert_eq!(
        get(&cpuid, 0x4000_0000, 0),
        [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]
    );
    assert_eq!(get(&cpuid, 0x4000_0010, 0), [2_300_000, 1_000_000, 0, 0]);
    assert_eq!(get(&cpuid, 0x15, 0), [10, 23, 1_000_000_000, 0]);
    assert_eq!(get(&cpuid, 0x16, 0), [2300, 2300, 100, 0]);
    assert_eq!(find(&amd(topology(1, 1, 1, 1), 0), 0x15, 0), None);

    let crooked = CpuidConfig {
        tsc_khz: Some(2_295_687),
        ..config(topology(1, 1, 1, 1))
    };
    assert_eq!(
        find(
            &configure(&supported(b"GenuineIntel"), &crooked, 0).unwrap(),
            0x15,
            0
        ),
        None
    );
    let unknown = CpuidConfig {
        tsc_khz: None,
        tsc_deadline_timer: false,
        ..crooked
    };
    let cpuid = configure(&supported(b"GenuineIntel"), &unknown, 0).unwrap();
    assert_eq!(
        (get(&cpuid, 0x4000_0000, 0)[0], find(&cpuid, 0x4000_0010, 0)),
        (0x4000_0001, None)
    );
    assert_eq!(get(&cpuid, 1, 0)[2] & 1 << 24, 0);
}

proptest! {
    #[test]
    fn apic_ids_are_unique_and_levels_can_be_read_back(t in 1u32..5, c in 1u32..20, d in 1u32..5, p in 1u32..5) {
        let topology = topology(t, c, d, p);
        let ids: std::collections::BTreeSet<_> = (0..topology.vcpu_count()).map(|n| topology.apic_id(n)).collect();
        prop_assert_eq!(ids.len() as u32, t * c * d * p);
        let distinct = |shift: u32| ids.iter().map(|id| id >> shift).collect::<std::collections::BTreeSet<_>>().len();
        prop_assert_eq!(distinct(topology.core_shift()) as u32, c * d * p);
        prop_assert_eq!(distinct(topology.die_shift()) as u32, d * p);
        prop_assert_eq!(distinct(topology.package_shift()) as u32, p);
        prop_assert!(ids.iter().zip(ids.iter().skip(1)).all(|(a, b)| a < b));
    }

    #[test]
    fn every_frequency_gives_a_ratio_that_is_exact_or_none(tsc_khz in 0u32..=u32::MAX) {
        let config = CpuidConfig { tsc_khz: Some(tsc_khz), ..config(topology(1, 1, 1, 1)) };
        let cpuid = configure(&supported(b"GenuineIntel"), &config, 0).unwrap();
        if let Some([denominator, numerator, hertz, _]) = find(&cpuid, 0x15, 0) {
            let product = (hertz / 1000).checked_mul(numerator);
            prop_assert_eq!(product.map(|product| product / denominator), Some(tsc_khz));
        }
    }

    #[test]
    fn arbitrary_cpuid_from_kvm_is_taken(
        entries in proptest::collection::vec(any::<(u32, u32, u32, u32, u32, u32)>(), 0..60),
        vcpu in 0u32..6,
    ) {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(function, index, eax, ebx, ecx, edx)| kvm_cpuid_entry2 {
                function: function % 0x30, index: index % 4, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default()
            })
            .collect();
        let supported = CpuId::from_entries(&entries).unwrap();
        let cpuid = configure(&supported, &config(topology(1, 6, 1, 1)), vcpu).unwrap();
        prop_assert_eq!(get(&cpuid, 0xb, 0)[3], vcpu);
    }
}
