//! What holds for any string and any machine.

use proptest::prelude::*;

use super::*;

/// Text made of what the parser looks at, so that deep paths are reached.
fn option_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        proptest::sample::select(vec![
            "boot",
            "max",
            "topology",
            "affinity",
            "features",
            "size",
            "path",
            "readonly",
            "fd",
            "mac",
            "ip",
            "mask",
            "bw_size",
            "tty",
            "file",
            "mode",
            "on",
            "off",
            "amx",
            "=",
            ",",
            "[",
            "]",
            "\"",
            ":",
            "@",
            "-",
            "0",
            "7",
            "512M",
            "4294967295",
            "18446744073709551616",
            "ü",
            " ",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn parse_all(text: &str) {
    let _ = text.parse::<CpusConfig>();
    let _ = text.parse::<MemoryConfig>();
    let _ = text.parse::<DiskConfig>();
    let _ = text.parse::<NetConfig>();
    let _ = text.parse::<FsConfig>();
    let _ = text.parse::<RngConfig>();
    let _ = text.parse::<VsockConfig>();
    let _ = text.parse::<BalloonConfig>();
    let _ = text.parse::<SerialConfig>();
    let _ = text.parse::<ConsoleConfig>();
    let _ = text.parse::<ByteSize>();
    let _ = text.parse::<MacAddr>();
    let _ = VmConfig::from_json(text.as_bytes());
}

fn toggle(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

prop_compose! {
    fn disks()(
        path in "/[ -~]{1,30}",
        readonly in any::<bool>(),
        queue_bits in 2_u32..16,
        serial in proptest::option::of("[ -~]{1,20}"),
    ) -> (String, DiskConfig) {
        let config = DiskConfig {
            path: Some(path.trim_end().into()),
            readonly,
            queue_size: 1 << queue_bits,
            serial: serial.map(|serial| serial.trim().to_owned()).filter(|serial| !serial.is_empty()),
            ..DiskConfig::default()
        };
        let mut text = format!(
            "path={},readonly={},queue_size={}",
            quoted(path.trim_end()), toggle(readonly), config.queue_size
        );
        if let Some(serial) = &config.serial {
            text += &format!(",serial={}", quoted(serial));
        }
        (text, config)
    }
}

prop_compose! {
    fn memories()(
        mib in 8_u64..100_000,
        shared: bool,
        prefault: bool,
        thp: bool,
        hotplug in proptest::option::of(1_u64..1000),
        virtio_mem: bool,
    ) -> (String, MemoryConfig) {
        let method = if virtio_mem { HotplugMethod::VirtioMem } else { HotplugMethod::Acpi };
        let config = MemoryConfig {
            size: ByteSize::mib(mib),
            shared,
            prefault,
            thp,
            hotplug_method: method,
            hotplug_size: hotplug.map(|blocks| ByteSize::mib(128 * blocks)),
            hotplugged_size: hotplug.filter(|_| virtio_mem).map(|blocks| ByteSize::mib(2 * blocks)),
            ..MemoryConfig::default()
        };
        let mut text = format!(
            "size={},shared={},prefault={},thp={},hotplug_method={}",
            config.size, toggle(shared), toggle(prefault), toggle(thp),
            if virtio_mem { "virtio-mem" } else { "acpi" }
        );
        for (key, size) in [("hotplug_size", config.hotplug_size), ("hotplugged_size", config.hotplugged_size)] {
            if let Some(size) = size {
                text += &format!(",{key}={size}");
            }
        }
        (text, config)
    }
}

prop_compose! {
    fn topologies()(threads in 1_u16..3, cores in 1_u16..9, dies in 1_u16..3, packages in 1_u16..4)
        -> (String, CpusConfig)
    {
        let topology = CpuTopology {
            threads_per_core: threads, cores_per_die: cores, dies_per_package: dies, packages
        };
        let vcpus = u32::try_from(topology.vcpus()).unwrap();
        let config = CpusConfig {
            boot_vcpus: vcpus, max_vcpus: vcpus, topology: Some(topology), ..CpusConfig::default()
        };
        (format!("topology={threads}:{cores}:{dies}:{packages},boot={vcpus}"), config)
    }
}

prop_compose! {
    fn nets()(mac: [u8; 6], ip: u32, prefix in 0_u32..=32, mtu in 68_u16..) -> (String, NetConfig) {
        let mut mac = MacAddr(mac);
        mac.0[0] = mac.0[0] & 0xfe | 2;
        let ip = std::net::Ipv4Addr::from(ip & 0x7fff_ffff | 1);
        let mask = std::net::Ipv4Addr::from(u32::MAX.checked_shl(32 - prefix).unwrap_or(0));
        let config = NetConfig {
            mac: Some(mac), ip: Some(ip.into()), mask: Some(mask.into()), mtu: Some(mtu), ..NetConfig::default()
        };
        (format!("mac={mac},ip={ip},mask={mask},mtu={mtu}"), config)
    }
}

proptest! {
    #[test]
    fn the_parsers_never_panic(text in option_like()) {
        parse_all(&text);
    }

    #[test]
    fn string_config_and_json_say_the_same(
        (disk_text, disk) in disks(),
        (memory_text, memory) in memories(),
        (cpus_text, cpus) in topologies(),
        (net_text, net) in nets(),
    ) {
        prop_assert_eq!(&disk_text.parse::<DiskConfig>().unwrap(), &disk);
        prop_assert_eq!(&memory_text.parse::<MemoryConfig>().unwrap(), &memory);
        prop_assert_eq!(&cpus_text.parse::<CpusConfig>().unwrap(), &cpus);
        prop_assert_eq!(&net_text.parse::<NetConfig>().unwrap(), &net);
        let mut config = VmConfig { disks: vec![disk], memory, cpus, net: vec![net], ..bootable() };
        config.assign_ids();
        let json = serde_json::to_vec(&config).unwrap();
        prop_assert_eq!(VmConfig::from_json(&json).unwrap(), config);
    }

    #[test]
    fn sizes_survive_being_written(bytes: u64) {
        let size = ByteSize(bytes);
        prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
    }

    #[test]
    fn macs_survive_being_written(octets: [u8; 6]) {
        let mac = MacAddr(octets);
        prop_assert_eq!(mac.to_string().parse::<MacAddr>(), Ok(mac));
    }

    #[test]
    fn prefix_lengths_are_those_of_masks(prefix in 0_u8..=128) {
        let bits = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let net = NetConfig { mask: Some(std::net::Ipv6Addr::from(bits).into()), ..NetConfig::default() };
        prop_assert_eq!(net.prefix_len(), Some(prefix));
    }
}
