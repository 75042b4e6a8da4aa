//! Rules between fields.

use super::*;

#[test]
fn the_topology_must_hold_all_vcpus() {
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=4,topology=2:1:1:1"),
        @"bad value 2:1:1:1 for topology: expected threads per core × cores per die × dies per package × packages to be the largest number of vCPUs (4), not 2");
    refusal::<CpusConfig>("boot=1,topology=0:1:1:1");
    refusal::<CpusConfig>("boot=1,topology=65535:65535:65535:65535");
    "boot=64".parse::<CpusConfig>().unwrap();
    refusal::<CpusConfig>("boot=255");
}

#[test]
fn topology_must_not_waste_the_apic_ids() {
    // 3 cores take 2 bits, so that the ids of package 40 begin at 39 * 8.
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=240,topology=2:3:1:40"),
        @"bad value 2:3:1:40 for topology: expected APIC ids up to 254, and the last vCPU would have 317; counts that are powers of two waste none");
    "boot=240,topology=2:4:1:30".parse::<CpusConfig>().unwrap();
    "boot=254".parse::<CpusConfig>().unwrap();
}

#[test]
fn memory_is_made_of_whole_pages() {
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=0"),
        @"bad value 0 for size: expected 8M to 32T");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=67108865"),
        @"bad value 67108865 for size: expected a multiple of the page size, 4K");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1537M,hugepages=on,hugepage_size=1G"),
        @"bad value 1537M for size: expected a multiple of the page size, 1G");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=65M,hugepages=on"),
        @"bad value 65M for size: expected a multiple of the page size, 2M");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hugepage_size=2M"),
        @"bad value 2M for hugepage_size: expected hugepages=on beside it");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hugepages=on,hugepage_size=4M"),
        @"bad value 4M for hugepage_size: expected 2M or 1G");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,shared=on,mergeable=on"),
        @"bad value on for mergeable: expected shared=off and hugepages=off beside it, as the kernel merges only anonymous pages of normal size");
}

#[test]
fn memory_can_be_added_later_by_either_method() {
    let acpi: MemoryConfig = "size=1G,hotplug_size=3G".parse().unwrap();
    assert_eq!(
        (acpi.hotplug_method, acpi.hotplug_size),
        (HotplugMethod::Acpi, Some(ByteSize::mib(3072)))
    );
    // Kata asks for as much as the host has, whatever that is.
    "size=1G,hotplug_size=16384004K"
        .parse::<MemoryConfig>()
        .unwrap();
    let virtio: MemoryConfig =
        "size=1G,hotplug_method=virtio-mem,hotplug_size=384M,hotplugged_size=130M"
            .parse()
            .unwrap();
    assert_eq!(virtio.hotplug_method, HotplugMethod::VirtioMem);
    assert_eq!(virtio.hotplugged_size, Some(ByteSize::mib(130)));
    for size in [0, 384] {
        format!("size=1G,hotplug_method=virtio-mem,hotplug_size=384M,hotplugged_size={size}M")
            .parse::<MemoryConfig>()
            .unwrap();
    }
    // The method alone adds nothing.
    "size=1G,hotplug_method=virtio-mem"
        .parse::<MemoryConfig>()
        .unwrap();
}

#[test]
fn memory_for_later_fits_the_guest_and_the_addresses() {
    "size=1G,hotplug_size=0,hotplugged_size=0"
        .parse::<MemoryConfig>()
        .unwrap();
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=16T,hotplug_size=17T"),
        @"bad value 17T for hotplug_size: expected at most 32T together with size");
    "size=16T,hotplug_size=16T".parse::<MemoryConfig>().unwrap();
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hotplug_size=4097"),
        @"bad value 4097 for hotplug_size: expected a multiple of 4K");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hotplug_method=virtio-mem,hotplug_size=192M"),
        @"bad value 192M for hotplug_size: expected a multiple of 128M");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hotplug_method=virtio-mem,hotplug_size=1536M,hugepages=on,hugepage_size=1G"),
        @"bad value 1536M for hotplug_size: expected a multiple of 1G");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hotplug_size=3M,hugepages=on"),
        @"bad value 3M for hotplug_size: expected a multiple of 2M");
}

#[test]
fn memory_that_was_added_makes_a_machine_that_can_be_defined_again() {
    const GIB: u64 = 1 << 30;
    let sizes = |config: &MemoryConfig| {
        config.check().unwrap();
        [
            Some(config.size),
            config.hotplug_size,
            config.hotplugged_size,
        ]
        .map(|size| size.map(|size| size.bytes() / GIB))
    };
    let mut acpi: MemoryConfig = "size=1G,hotplug_size=3G".parse().unwrap();
    acpi.note_hotplugged(GIB, 2 * GIB);
    assert_eq!(sizes(&acpi), [Some(3), Some(1), None]);
    // It boots with 3 GiB now, and gets the rest; or had got it before the reboot, and gave up some.
    acpi.note_hotplugged(3 * GIB, GIB);
    assert_eq!(sizes(&acpi), [Some(4), Some(0), None]);
    acpi.note_hotplugged(GIB, GIB);
    assert_eq!(sizes(&acpi), [Some(2), Some(2), None]);
    let virtio = "size=1G,hotplug_method=virtio-mem,hotplug_size=3G";
    let mut virtio: MemoryConfig = virtio.parse().unwrap();
    virtio.note_hotplugged(GIB, 2 * GIB);
    assert_eq!(sizes(&virtio), [Some(1), Some(3), Some(2)]);
    let mut fixed: MemoryConfig = "size=1G".parse().unwrap();
    fixed.note_hotplugged(GIB, 0);
    assert_eq!(sizes(&fixed), [Some(1), None, None]);
}

#[test]
fn memory_plugged_at_the_start_is_part_of_that_for_later() {
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hotplugged_size=128M"),
        @"bad value 128M for hotplugged_size: expected hotplug_size beside it");
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,hotplug_size=1G,hotplugged_size=128M"),
        @"bad value 128M for hotplugged_size: expected hotplug_method=virtio-mem beside it");
    let virtio = "size=1G,hotplug_method=virtio-mem,hotplug_size=1G";
    insta::assert_snapshot!(refusal::<MemoryConfig>(&format!("{virtio},hotplugged_size=2G")),
        @"bad value 2G for hotplugged_size: expected at most hotplug_size, 1G");
    insta::assert_snapshot!(refusal::<MemoryConfig>(&format!("{virtio},hotplugged_size=3M")),
        @"bad value 3M for hotplugged_size: expected a multiple of 2M");
    insta::assert_snapshot!(refusal::<MemoryConfig>(&format!("{virtio},hugepages=on,hugepage_size=1G,hotplugged_size=512M")),
        @"bad value 512M for hotplugged_size: expected a multiple of 1G");
}

#[test]
fn network_addresses_go_in_pairs() {
    insta::assert_snapshot!(refusal::<NetConfig>("ip=10.0.0.1"),
        @"mask is missing: expected a network mask beside ip, as in 255.255.255.0");
    insta::assert_snapshot!(refusal::<NetConfig>("mask=255.0.0.0"),
        @"ip is missing: expected an address beside mask, as in 192.168.249.1");
    insta::assert_snapshot!(refusal::<NetConfig>("ip=10.0.0.1,mask=255.0.255.0"),
        @"bad value 255.0.255.0 for mask: expected a network mask, ones before zeros, as in 255.255.255.0");
    insta::assert_snapshot!(refusal::<NetConfig>("ip=10.0.0.1,mask=ffff::"),
        @"bad value ffff:: for mask: expected the same IP version as that of ip, 10.0.0.1");
    insta::assert_snapshot!(refusal::<NetConfig>("ip=0.0.0.0,mask=255.0.0.0"),
        @"bad value 0.0.0.0 for ip: expected the address of one host");
    let net: NetConfig = "ip=fd00::1,mask=ffff:ffff:ffff:ffff::".parse().unwrap();
    assert_eq!(net.prefix_len(), Some(64));
}

#[test]
fn taps_are_given_by_name_or_by_descriptor() {
    insta::assert_snapshot!(refusal::<NetConfig>("tap=a,fd=3"),
        @"bad value [3] for fd: expected either a tap's name or its descriptor, not both");
    insta::assert_snapshot!(refusal::<NetConfig>("fd=1"),
        @"bad value [1] for fd: expected a descriptor above 2, as 0 to 2 are the terminal's");
    insta::assert_snapshot!(refusal::<NetConfig>("fd=[3,4]"),
        @"bad value [3, 4] for fd: expected one descriptor, as there is one pair of queues");
    insta::assert_snapshot!(refusal::<NetConfig>("fd=3,ip=10.0.0.1,mask=255.0.0.0"),
        @"bad value [3] for fd: expected no ip beside it: who opened the tap gives it its address");
    insta::assert_snapshot!(refusal::<NetConfig>("tap=a-name-too-long-for-linux"),
        @r#"bad value "a-name-too-long-for-linux" for tap: expected an interface name of 1 to 15 characters"#);
    for name in ["a/b", "a b", "..", "tap%d"] {
        refusal::<NetConfig>(&format!("tap={name}"));
    }
}

#[test]
fn macs_are_unicast() {
    insta::assert_snapshot!(refusal::<NetConfig>("mac=ff:ff:ff:ff:ff:ff"),
        @"bad value ff:ff:ff:ff:ff:ff for mac: expected a unicast address: the lowest bit of its first byte is 0, and it is not all zero");
    refusal::<NetConfig>("mac=00:00:00:00:00:00");
    for bad in [
        "52:54:00:12:34:5",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "+2:54:00:12:34:56",
    ] {
        refusal::<NetConfig>(&format!("mac={bad}"));
    }
}

#[test]
fn offloads_need_the_checksum_offload() {
    insta::assert_snapshot!(refusal::<NetConfig>("offload_csum=off"),
        @"bad value off for offload_csum: expected offload_tso=off and offload_ufo=off beside it, as both need checksum offload");
}

#[test]
fn small_mtus_are_refused() {
    insta::assert_snapshot!(refusal::<NetConfig>("mtu=67"),
        @"bad value 67 for mtu: expected 68 to 65535");
    "mtu=68".parse::<NetConfig>().unwrap();
    "mtu=65535".parse::<NetConfig>().unwrap();
}

#[test]
fn queue_sizes_are_powers_of_two() {
    for bad in ["0", "1", "2", "3", "100", "65535"] {
        refusal::<DiskConfig>(&format!("path=/a,queue_size={bad}"));
        refusal::<NetConfig>(&format!("queue_size={bad}"));
    }
    for good in ["4", "256", "32768"] {
        format!("path=/a,queue_size={good}")
            .parse::<DiskConfig>()
            .unwrap();
    }
}

#[test]
fn serial_numbers_fit_the_get_id_request() {
    "path=/a,serial=12345678901234567890"
        .parse::<DiskConfig>()
        .unwrap();
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/a,serial=123456789012345678901"),
        @r#"bad value "123456789012345678901" for serial: expected at most 20 ASCII characters"#);
}

#[test]
fn device_names_are_unique() {
    let disk = |id: &str| DiskConfig {
        path: Some("/a".into()),
        id: Some(id.to_owned()),
        ..DiskConfig::default()
    };
    let mut config = bootable();
    config.disks = vec![disk("a"), disk("b")];
    config.validate().unwrap();
    config.net = vec!["id=b".parse().unwrap()];
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "b" for net[0].id: expected a name that no other device has"#);
    refusal::<DiskConfig>("path=/a,id=__rng");
    refusal::<DiskConfig>("path=/a,id=a b");
}

#[test]
fn disks_share_the_limits_of_a_group_that_is_there() {
    let mut config = bootable();
    let group: RateLimitGroupConfig = "id=slow,ops_size=10,ops_refill_time=100".parse().unwrap();
    config.rate_limit_groups = Some(vec![group.clone()]);
    let disk: DiskConfig = "path=/a,rate_limit_group=slow".parse().unwrap();
    config.disks = vec![disk];
    config.validate().unwrap();
    let json = serde_json::to_vec(&config).unwrap();
    assert_eq!(VmConfig::from_json(&json).unwrap(), config);

    config.disks[0].rate_limit_group = Some("fast".to_owned());
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "fast" for disks[0].rate_limit_group: expected the id of one of rate_limit_groups"#);
    config.disks.clear();
    config.rate_limit_groups = Some(vec![group.clone(), group]);
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "slow" for rate_limit_groups[1].id: expected a name that no other group has"#);
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/a,rate_limit_group=g,ops_size=1,ops_refill_time=1"),
        @r#"bad value "g" for rate_limit_group: expected either a group or limits of the disk's own, not both"#);
    refusal::<RateLimitGroupConfig>("id=,ops_size=1,ops_refill_time=1");
}

#[test]
fn devices_without_a_name_get_a_free_one() {
    let mut config = bootable();
    config.disks = vec![
        "path=/a".parse().unwrap(),
        "path=/b,id=_net1".parse().unwrap(),
    ];
    config.net = vec!["tap=t".parse().unwrap()];
    config.vsock = Some("cid=3,socket=/s".parse().unwrap());
    config.balloon = Some(BalloonConfig::default());
    config.assign_ids();
    assert_eq!(config.disks[0].id.as_deref(), Some("_disk0"));
    assert_eq!(config.disks[1].id.as_deref(), Some("_net1"));
    assert_eq!(config.net[0].id.as_deref(), Some("_net2"));
    assert_eq!(config.rng.id.as_deref(), Some("_rng3"));
    let vsock = config.vsock.as_ref().unwrap();
    assert_eq!(vsock.id.as_deref(), Some("_vsock4"));
    let balloon = config.balloon.as_ref().unwrap();
    assert_eq!(balloon.id.as_deref(), Some("_balloon5"));
    config.validate().unwrap();
    let again = {
        let mut again = config.clone();
        again.assign_ids();
        again
    };
    assert_eq!(again, config);
}

#[test]
fn sockets_to_the_guest_need_an_address_and_a_path() {
    let refused = |text: &str| refusal::<VsockConfig>(text);
    insta::assert_snapshot!(refused("socket=/s"),
        @"bad value 0 for cid: expected the address of a guest, 3 to 4294967294");
    insta::assert_snapshot!(refused("cid=2,socket=/s"),
        @"bad value 2 for cid: expected the address of a guest, 3 to 4294967294");
    insta::assert_snapshot!(refused("cid=4294967295,socket=/s"),
        @"bad value 4294967295 for cid: expected the address of a guest, 3 to 4294967294");
    insta::assert_snapshot!(refused("cid=3"),
        @"socket is missing: expected the path of the socket that programs on the host connect to");
    let long = format!("cid=3,socket=/{}", "a".repeat(96));
    insta::assert_snapshot!(refused(&long),
        @"bad value of 97 bytes for socket: expected at most 96 bytes, as _PORT is appended to it");
    let mut config = bootable();
    config.vsock = Some(VsockConfig::default());
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value 0 for vsock.cid: expected the address of a guest, 3 to 4294967294");
}

#[test]
fn file_system_needs_a_tag_a_socket_and_shared_memory() {
    let refused = |text: &str| refusal::<FsConfig>(text);
    insta::assert_snapshot!(refused("socket=/s"),
        @"tag is missing: expected the name that the guest mounts");
    insta::assert_snapshot!(refused("tag=0123456789012345678901234567890123456,socket=/s"),
        @r#"bad value "0123456789012345678901234567890123456" for tag: expected 1 to 36 bytes without NUL"#);
    insta::assert_snapshot!(refused("tag=home"),
        @"socket is missing: expected the path of the socket that virtiofsd listens at");
    let long = format!("tag=home,socket=/{}", "a".repeat(107));
    insta::assert_snapshot!(refused(&long),
        @"bad value of 108 bytes for socket: expected at most 107 bytes");
    insta::assert_snapshot!(refused("tag=home,socket=/s,num_queues=0"),
        @"bad value 0 for num_queues: expected 1 to 255");
    insta::assert_snapshot!(refused("tag=home,socket=/s,queue_size=3"),
        @"bad value 3 for queue_size: expected a power of two from 4 to 32768");

    let mut config = bootable();
    config.fs = vec!["tag=home,socket=/s".parse().unwrap()];
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value off for memory.shared: expected on, as fs is served by a process that maps the memory");
    config.memory.shared = true;
    config.validate().unwrap();
    config.fs.push(FsConfig::default());
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"fs[1].tag is missing: expected the name that the guest mounts");
}

#[test]
fn file_systems_have_names_and_can_be_removed() {
    let mut config = bootable();
    config.memory.shared = true;
    let fs: FsConfig = "tag=home,socket=/s".parse().unwrap();
    config.fs = vec![fs.clone(), fs];
    config.assign_ids();
    assert_eq!(config.fs[1].id.as_deref(), Some("_fs1"));
    config.validate().unwrap();
    assert!(config.can_remove("_fs0"));
    config.remove_device("_fs0");
    assert_eq!(config.fs.len(), 1);
    assert_eq!(config.fs[0].id.as_deref(), Some("_fs1"));
}

#[test]
fn sockets_to_the_guest_can_be_removed() {
    let mut config = bootable();
    config.vsock = Some("cid=3,socket=/s".parse().unwrap());
    config.assign_ids();
    assert!(!config.can_remove("_rng0"));
    assert!(config.can_remove("_vsock1"));
    config.remove_device("_rng0");
    assert!(config.vsock.is_some());
    config.remove_device("_vsock1");
    assert_eq!(config.vsock, None);
}

#[test]
fn only_one_console_can_have_the_terminal() {
    let mut config = bootable();
    config.serial.mode = ConsoleOutputMode::Tty;
    config.console.mode = ConsoleOutputMode::Tty;
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value Tty for console.mode: expected another mode, as the serial port has the terminal");
    config.serial.mode = ConsoleOutputMode::Null;
    config.console.ports = Some(vec!["name=first,tty".parse().unwrap()]);
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value Tty for console.ports[0].mode: expected another mode, as the console has the terminal");
    config.console.mode = ConsoleOutputMode::Off;
    config.validate().unwrap();
    let ports = config.console.ports.as_mut().unwrap();
    ports.push("name=second,tty".parse().unwrap());
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value Tty for console.ports[1].mode: expected another mode, as the port first has the terminal");
}

#[test]
fn ports_have_names_of_their_own() {
    let mut config = bootable();
    let port: ConsolePortConfig = "name=org.qemu.guest_agent.0,socket=/a".parse().unwrap();
    assert_eq!(port.mode, ConsoleOutputMode::Socket);
    config.console.ports = Some(vec![port.clone(), port.clone()]);
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "org.qemu.guest_agent.0" for console.ports[1].name: expected a name that no other port has"#);
    let numbered = (0..31).map(|number| ConsolePortConfig {
        name: number.to_string(),
        ..port.clone()
    });
    config.console.ports = Some(numbered.collect());
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value of 31 ports for console.ports: expected at most 30 ports");
    config.console.ports.as_mut().unwrap().pop();
    config.validate().unwrap();
}

#[test]
fn port_without_a_name_or_an_end_is_refused() {
    let refusal = |text: &str| text.parse::<ConsolePortConfig>().unwrap_err();
    insta::assert_snapshot!(refusal("socket=/a"), @"name is missing: expected name=NAME");
    insta::assert_snapshot!(refusal("name=a"), @"socket is missing: expected socket=PATH");
    insta::assert_snapshot!(refusal("name=a/b,pty"),
        @r#"bad value "a/b" for name: expected 1 to 64 printable ASCII characters without blanks and slashes"#);
    insta::assert_snapshot!(refusal("name=a,off"),
        @r#""off": expected one of null, tty, pty, name=VALUE, file=VALUE, socket=VALUE"#);
    insta::assert_snapshot!(refusal("name=a,pty,socket=/a"), @r#"key "mode" is given more than once"#);
    let mut config = bootable();
    config.console.ports = Some(vec![ConsolePortConfig {
        name: "a".to_owned(),
        mode: ConsoleOutputMode::Off,
        ..ConsolePortConfig::default()
    }]);
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value Off for console.ports[0].mode: expected Socket, File, Tty, Pty or Null");
}

#[test]
fn path_of_a_pty_can_be_given_as_vm_info_tells_it() {
    let mut config = bootable();
    config.serial.mode = ConsoleOutputMode::Pty;
    config.serial.file = Some("/dev/pts/1".into());
    config.validate().unwrap();
    config.serial.socket = Some("/x".into());
    config.validate().unwrap_err();
}

#[test]
fn console_paths_go_with_their_mode() {
    let mut config = bootable();
    config.serial.mode = ConsoleOutputMode::File;
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"serial.file is missing: expected file=PATH");
    config.serial = SerialConfig {
        mode: ConsoleOutputMode::Tty,
        file: Some("/x".into()),
        socket: None,
    };
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "/x" for serial.file: expected only with mode File, not with Tty"#);
}

#[test]
fn long_command_lines_are_refused() {
    let mut config = bootable();
    config.payload.cmdline = Some("x".repeat(2047));
    config.validate().unwrap();
    config.payload.cmdline = Some("x".repeat(2048));
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value of 2048 bytes for payload.cmdline: expected at most 2047 bytes");
}

#[test]
fn boot_disk_is_one_of_the_disks_and_stands_for_kernel_and_initramfs() {
    let mut config = bootable();
    config.payload = PayloadConfig {
        boot_disk: Some("root".to_owned()),
        ..PayloadConfig::default()
    };
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "root" for payload.boot_disk: expected the id of one of disks"#);
    config.disks.push(DiskConfig {
        id: Some("root".to_owned()),
        path: Some("/d".into()),
        ..DiskConfig::default()
    });
    config.payload.cmdline = Some("words to append".to_owned());
    config.validate().unwrap();
    assert!(config.boots_from("root") && !config.boots_from("data"));
    insta::assert_snapshot!(config.validate_with(&|id| usize::from(id == "kernel")).unwrap_err(),
        @r#"bad value "root" for payload.boot_disk: expected none together with a descriptor of kernel"#);
    config.payload.initramfs = Some("/i".into());
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @r#"bad value "root" for payload.boot_disk: expected none together with initramfs: what is booted is on the disk"#);
}

#[test]
fn descriptors_stand_for_paths() {
    let mut config = VmConfig {
        disks: vec![DiskConfig::default()],
        net: vec![NetConfig::default()],
        ..VmConfig::default()
    };
    config.assign_ids();
    let passed = |names: &'static [&'static str]| {
        config.validate_with(&|id| names.iter().filter(|name| **name == id).count())
    };
    passed(&["kernel", "initramfs", "_disk0", "_net1"]).unwrap();
    passed(&["kernel", "_disk0"]).unwrap();
    insta::assert_snapshot!(passed(&["_disk0"]).unwrap_err(),
        @"payload.kernel is missing: expected the path of a kernel (an ELF file or a bzImage), --kernel on the command line, or boot_disk, --boot-disk");
    insta::assert_snapshot!(passed(&["kernel"]).unwrap_err(),
        @"disks[0].path is missing: expected the path of an image file or a block device");
    insta::assert_snapshot!(passed(&["kernel", "_disk0", "_disk0"]).unwrap_err(),
        @"bad value of 2 descriptors for disks[0].fds: expected one descriptor");
}

#[test]
fn device_without_a_name_is_asked_for_by_an_empty_one() {
    let disk = DiskConfig::default();
    disk.validate_with(&|id| usize::from(id.is_empty()))
        .unwrap();
    let net: NetConfig = "tap=t".parse().unwrap();
    net.validate_with(&|_| 0).unwrap();
    insta::assert_snapshot!(net.validate_with(&|id| usize::from(id.is_empty())).unwrap_err(),
        @r#"bad value "t" for tap: expected either a tap's name or its descriptor, not both"#);
    let net: NetConfig = "fd=7".parse().unwrap();
    insta::assert_snapshot!(net.validate_with(&|_| 1).unwrap_err(),
        @"bad value of 1 descriptors for fds: expected descriptors that are passed or numbers of open ones, not both");
}

#[test]
fn balloon_is_in_whole_pages_of_the_guests_memory() {
    insta::assert_snapshot!(refusal::<BalloonConfig>("size=1"), @"bad value 1 for size: expected a multiple of 4096, up to 17179869180K");
    insta::assert_snapshot!(refusal::<BalloonConfig>("size=16T"), @"bad value 17592186044416 for size: expected a multiple of 4096, up to 17179869180K");
    let mut config = bootable();
    config.memory.size = ByteSize::mib(128);
    config.balloon = Some("size=128M,free_page_reporting=on".parse().unwrap());
    config.validate().unwrap();
    config.balloon = Some("size=132M".parse().unwrap());
    insta::assert_snapshot!(config.validate().unwrap_err(), @"bad value 138412032 for balloon.size: expected at most the guest's memory, 134217728");
    config.memory = "size=128M,hotplug_method=virtio-mem,hotplug_size=128M,hotplugged_size=4M"
        .parse()
        .unwrap();
    config.validate().unwrap();
    config.memory = "size=256M,hugepages=on".parse().unwrap();
    insta::assert_snapshot!(config.validate().unwrap_err(), @"bad value size=132M for balloon: expected none beside memory.hugepages=on: a huge page that the host's pool has lost meanwhile would end the VMM when the guest uses it again");
}

#[test]
fn balloon_cannot_be_removed() {
    let mut config = bootable();
    config.balloon = Some(BalloonConfig::default());
    config.assign_ids();
    assert!(config.ids().any(|id| id == "_balloon1"));
    assert!(!config.can_remove("_balloon1"));
}

#[test]
fn watchdog_resets_unless_it_is_told_otherwise() {
    let config = |fields: &str| {
        VmConfig::from_json(format!(r#"{{"payload": {{"kernel": "/k"}}, {fields}}}"#).as_bytes())
    };
    let of = |fields: &str| {
        let config = config(fields).unwrap();
        (config.watchdog, config.watchdog_action)
    };
    assert_eq!(of(r#""watchdog": true"#), (true, None));
    let poweroff = Some(WatchdogAction::Poweroff);
    assert_eq!(
        of(r#""watchdog": true, "watchdog_action": "Poweroff""#),
        (true, poweroff)
    );
    insta::assert_snapshot!(config(r#""watchdog_action": "Poweroff""#).unwrap_err(),
        @"bad value poweroff for watchdog_action: expected watchdog=true beside it");
    insta::assert_snapshot!("off".parse::<WatchdogAction>().unwrap_err(),
        @r#"bad value "off" for watchdog: expected one of reset, poweroff, shutdown, pause, none"#);
}

#[test]
fn transport_by_mmio_has_no_place_for_a_device_on_pci() {
    let mut config = bootable();
    config.platform = Some("transport=mmio".parse().unwrap());
    assert_eq!(config.transport(), Transport::Mmio);
    config.validate().unwrap();
    config.watchdog = true;
    insta::assert_snapshot!(config.validate().unwrap_err(),
        @"bad value true for watchdog: expected platform.transport Pci, as the watchdog is a device on the PCI bus");
    config.platform = Some("transport=pci".parse().unwrap());
    config.validate().unwrap();
    insta::assert_snapshot!("transport=isa".parse::<PlatformConfig>().unwrap_err(),
        @r#"bad value "isa" for transport: expected one of pci, mmio"#);
}
