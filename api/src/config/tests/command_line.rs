//! Option strings.

use super::*;

#[test]
fn every_supported_key_of_each_option_is_read() {
    let cpus: CpusConfig = "boot=2,max=8,topology=2:2:1:2".parse().unwrap();
    assert_eq!((cpus.boot_vcpus, cpus.max_vcpus), (2, 8));
    let topology = CpuTopology {
        threads_per_core: 2,
        cores_per_die: 2,
        dies_per_package: 1,
        packages: 2,
    };
    assert_eq!(cpus.topology, Some(topology));

    let memory: MemoryConfig =
        "size=2G,shared=on,hugepages=on,hugepage_size=2M,prefault=on,mergeable=off,thp=off"
            .parse()
            .unwrap();
    let expected = MemoryConfig {
        size: ByteSize(2 << 30),
        shared: true,
        hugepages: true,
        hugepage_size: Some(ByteSize::mib(2)),
        prefault: true,
        thp: false,
        ..MemoryConfig::default()
    };
    assert_eq!(memory, expected);

    let disk: DiskConfig = "path=/d.img,readonly=on,id=root,serial=S1,queue_size=64,image_type=raw"
        .parse()
        .unwrap();
    let expected = DiskConfig {
        path: Some("/d.img".into()),
        readonly: true,
        id: Some("root".to_owned()),
        serial: Some("S1".to_owned()),
        queue_size: 64,
        image_type: ImageType::Raw,
        ..DiskConfig::default()
    };
    assert_eq!(disk, expected);

    let net: NetConfig =
        "tap=tap0,mac=52:54:00:12:34:56,ip=10.0.0.1,mask=255.255.255.0,mtu=1400,id=n,queue_size=512,\
         num_queues=2,offload_tso=off,offload_ufo=off,offload_csum=off"
            .parse()
            .unwrap();
    let expected = NetConfig {
        tap: Some("tap0".to_owned()),
        mac: Some(MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
        ip: Some([10, 0, 0, 1].into()),
        mask: Some([255, 255, 255, 0].into()),
        mtu: Some(1400),
        id: Some("n".to_owned()),
        queue_size: 512,
        offload_tso: false,
        offload_ufo: false,
        offload_csum: false,
        ..NetConfig::default()
    };
    assert_eq!(net, expected);

    let net: NetConfig = "fd=7".parse().unwrap();
    assert_eq!(net.fds, Some(vec![7]));

    let rng: RngConfig = "src=/dev/random,id=entropy".parse().unwrap();
    assert_eq!(rng.src, std::path::Path::new("/dev/random"));

    let fs: FsConfig = "tag=home,socket=/run/fs.sock,num_queues=2,queue_size=64,id=shared"
        .parse()
        .unwrap();
    let expected = FsConfig {
        tag: "home".to_owned(),
        socket: "/run/fs.sock".into(),
        num_queues: 2,
        queue_size: 64,
        id: Some("shared".to_owned()),
        ..FsConfig::default()
    };
    assert_eq!(fs, expected);

    let vsock: VsockConfig = "cid=7,socket=/run/v.sock,id=agent".parse().unwrap();
    let expected = VsockConfig {
        cid: 7,
        socket: "/run/v.sock".into(),
        id: Some("agent".to_owned()),
        ..VsockConfig::default()
    };
    assert_eq!(vsock, expected);
}

#[test]
fn serial_takes_each_mode_by_its_name() {
    let mode = |text: &str| text.parse::<SerialConfig>().unwrap().mode;
    assert_eq!(mode("tty"), ConsoleOutputMode::Tty);
    assert_eq!(mode("null"), ConsoleOutputMode::Null);
    assert_eq!(mode("off"), ConsoleOutputMode::Off);
    assert_eq!(mode("pty"), ConsoleOutputMode::Pty);
    let file: SerialConfig = "file=/tmp/log".parse().unwrap();
    assert_eq!(file.mode, ConsoleOutputMode::File);
    assert_eq!(file.file, Some("/tmp/log".into()));
    let socket: SerialConfig = "socket=/tmp/s".parse().unwrap();
    assert_eq!(socket.mode, ConsoleOutputMode::Socket);
    assert_eq!(socket.socket, Some("/tmp/s".into()));
}

#[test]
fn serial_takes_one_mode_only() {
    insta::assert_snapshot!(refusal::<SerialConfig>("ttyy"),
        @r#""ttyy": expected one of off, null, tty, pty, file=VALUE, socket=VALUE"#);
    insta::assert_snapshot!(refusal::<SerialConfig>("tty,file=/tmp/x"),
        @r#"key "mode" is given more than once"#);
    insta::assert_snapshot!(refusal::<SerialConfig>("file"), @r#""file": expected file=VALUE"#);
}

#[test]
fn mode_without_a_value_is_refused() {
    insta::assert_snapshot!(refusal::<SerialConfig>("socket="),
        @r#""socket=": expected socket=VALUE"#);
    insta::assert_snapshot!(refusal::<SerialConfig>(""),
        @r#""": expected one of off, null, tty, pty, file=VALUE, socket=VALUE"#);
}

#[test]
fn value_without_a_key_is_refused_with_the_key_it_may_have_meant() {
    insta::assert_snapshot!(refusal::<MemoryConfig>("512M"),
        @r#""512M": expected key=value, as in size=512M; known keys: size, shared, hugepages, hugepage_size, prefault, mergeable, thp, hotplug_method, hotplug_size, hotplugged_size"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("4"),
        @r#""4": expected key=value, as in boot=4; known keys: boot, max, topology"#);
}

#[test]
fn max_is_boot_when_not_given() {
    let cpus: CpusConfig = "boot=4".parse().unwrap();
    assert_eq!((cpus.boot_vcpus, cpus.max_vcpus), (4, 4));
}

#[test]
fn unknown_keys_are_named_with_the_known_ones() {
    insta::assert_snapshot!(refusal::<DiskConfig>("pth=/d.img"),
        @r#"unknown key "pth"; known keys: path, readonly, queue_size, serial, id, image_type, direct, num_queues, rate_limit_group, bw_size, bw_one_time_burst, bw_refill_time, ops_size, ops_one_time_burst, ops_refill_time, queue_affinity, backing_files, overlay, sparse, lock_granularity, _disable_io_uring, _disable_aio, werror, rerror"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boots=1"),
        @r#"unknown key "boots"; known keys: boot, max, topology"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boot_vcpus=1"),
        @r#"unknown key "boot_vcpus"; known keys: boot, max, topology"#);
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,shard=on"),
        @r#"unknown key "shard"; known keys: size, shared, hugepages, hugepage_size, prefault, mergeable, thp, hotplug_method, hotplug_size, hotplugged_size"#);
    insta::assert_snapshot!(refusal::<NetConfig>("tap=a,fds=3"),
        @r#"unknown key "fds"; known keys: tap, fd, mac, ip, mask, mtu, queue_size, id, offload_tso, offload_ufo, offload_csum, num_queues, link, bw_size, bw_one_time_burst, bw_refill_time, ops_size, ops_one_time_burst, ops_refill_time"#);
    insta::assert_snapshot!(refusal::<RngConfig>("source=/x"),
        @r#"unknown key "source"; known keys: src, id"#);
    let balloon: BalloonConfig =
        "size=64M,deflate_on_oom=on,free_page_reporting=on,stats_polling_interval_s=5,id=b"
            .parse()
            .unwrap();
    let expected = BalloonConfig {
        size: ByteSize::mib(64),
        deflate_on_oom: true,
        free_page_reporting: true,
        stats_polling_interval_s: 5,
        id: Some("b".to_owned()),
        ..BalloonConfig::default()
    };
    assert_eq!(balloon, expected);
    insta::assert_snapshot!(refusal::<VsockConfig>("port=1"),
        @r#"unknown key "port"; known keys: cid, socket, id"#);
}

#[test]
fn bad_values_name_field_value_and_expectation() {
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,readonly=maybe"),
        @r#"bad value "maybe" for readonly: expected on or off"#);
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,queue_size=100000"),
        @r#"bad value "100000" for queue_size: expected an integer from 0 to 65535"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=two"),
        @r#"bad value "two" for boot: expected an integer from 0 to 4294967295"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=0"),
        @"bad value 0 for boot: expected 1 to 254 vCPUs");
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=4,max=2"),
        @"bad value 2 for max: expected at least the 4 vCPUs to boot with and at most 254");
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=4,topology=2:2"),
        @r#"bad value "2:2" for topology: expected threads_per_core:cores_per_die:dies_per_package:packages"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=4,topology=4"),
        @r#"bad value "4" for topology: expected threads_per_core:cores_per_die:dies_per_package:packages"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=4,topology=1:x:1:1"),
        @r#"bad value "1:x:1:1" for topology: expected an integer from 0 to 65535"#);
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1X"),
        @r#"bad value "1X" for size: expected a number of bytes, with K, M, G or T for powers of 1024, below 2^64"#);
    insta::assert_snapshot!(refusal::<NetConfig>("mac=52:54:00"),
        @r#"bad value "52:54:00" for mac: expected six hexadecimal bytes as in 52:54:00:12:34:56"#);
    insta::assert_snapshot!(refusal::<NetConfig>("ip=10.0.0,mask=255.0.0.0"),
        @r#"bad value "10.0.0" for ip: expected an IP address, as in 192.168.249.1"#);
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,image_type=vmdk"),
        @r#"bad value "vmdk" for image_type: expected one of fixed-vhd, qcow2, raw, vhdx, unknown"#);
    insta::assert_snapshot!(refusal::<NetConfig>("fd=x"),
        @r#"bad value "x" for fd: expected an integer from -2147483648 to 2147483647"#);
}

#[test]
fn a_missing_path_is_named() {
    insta::assert_snapshot!(refusal::<DiskConfig>("readonly=on"),
        @"path is missing: expected the path of an image file or a block device");
    assert_eq!(
        refusal::<DiskConfig>("path="),
        refusal::<DiskConfig>("readonly=on")
    );
}

#[test]
fn duplicate_keys_are_refused() {
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/a,path=/b"),
        @r#"key "path" is given more than once"#);
    insta::assert_snapshot!(refusal::<NetConfig>("mac=,mac=52:54:00:12:34:56"),
        @r#"key "mac" is given more than once"#);
}

#[test]
fn format_of_a_disk_is_stated_with_what_belongs_to_it() {
    let disk: DiskConfig = "path=/d,image_type=qcow2,backing_files=on,overlay=/o"
        .parse()
        .unwrap();
    assert_eq!(
        disk,
        DiskConfig {
            path: Some("/d".into()),
            image_type: ImageType::Qcow2,
            backing_files: true,
            overlay: Some("/o".into()),
            ..DiskConfig::default()
        }
    );
    "path=/d,overlay=/o".parse::<DiskConfig>().unwrap();
    for (text, field) in [
        ("path=/d,image_type=vhdx", "Vhdx for image_type"),
        (
            "path=/d,backing_files=on",
            "true for backing_files: expected false for a raw image",
        ),
        ("path=/d,overlay=/o,direct=on", "true for direct"),
        ("path=/d,image_type=qcow2,direct=on", "true for direct"),
        ("path=/d,overlay=/d", "\"/d\" for overlay"),
        ("path=/d,overlay=/o,readonly=on", "\"/o\" for overlay"),
    ] {
        let refusal = refusal::<DiskConfig>(text);
        assert!(refusal.contains(field), "{refusal}");
    }
    for (text, field) in [
        (
            "fd=3,image_type=qcow2,backing_files=on",
            "true for backing_files",
        ),
        ("fd=3,overlay=/o", "\"/o\" for overlay"),
    ] {
        let refusal = refusal::<AddedDisk>(text);
        assert!(refusal.contains(field), "{refusal}");
    }
    "fd=3,image_type=qcow2".parse::<AddedDisk>().unwrap();
}

#[test]
fn keys_known_to_cloud_hypervisor_are_accepted_at_their_default_only() {
    let disk: DiskConfig =
        "path=/d,direct=off,num_queues=1,vhost_user=off,sparse=on,pci_segment=0,bw_size=0,ops_size=0,\
         lock_granularity=byte-range,backing_files=off,iommu=off"
            .parse()
            .unwrap();
    assert_eq!(disk.rate_limiter_config, None);
    let cpus: CpusConfig =
        "boot=1,kvm_hyperv=off,max_phys_bits=46,nested=on,core_scheduling=vm,profile=host,features=[]"
            .parse()
            .unwrap();
    assert_eq!(cpus, CpusConfig::default());
    "size=1G,hotplug_method=acpi,reserve=off"
        .parse::<MemoryConfig>()
        .unwrap();

    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,iommu=on"),
        @"iommu is known to the Cloud Hypervisor API but not supported by podvisor: true was given, only the default (false) is accepted");
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,socket=/tmp/s"),
        @r#"socket is known to the Cloud Hypervisor API but not supported by podvisor: "/tmp/s" was given, only the default (none) is accepted"#);
    insta::assert_snapshot!(refusal::<MemoryConfig>("size=1G,reserve=on"),
        @"reserve is known to the Cloud Hypervisor API but not supported by podvisor: true was given, only the default (false) is accepted");
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=1,features=amx"),
        @r#"features is known to the Cloud Hypervisor API but not supported by podvisor: {"amx":true} was given, only the default ({"amx":false}) is accepted"#);
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=1,affinity=[0@[1,3-4]]"),
        @r#"affinity is known to the Cloud Hypervisor API but not supported by podvisor: [{"host_cpus":[1,3,4],"vcpu":0}] was given, only the default (none) is accepted"#);
    insta::assert_snapshot!(refusal::<NetConfig>("host_mac=02:00:00:00:00:01"),
        @r#"host_mac is known to the Cloud Hypervisor API but not supported by podvisor: "02:00:00:00:00:01" was given, only the default (none) is accepted"#);
    insta::assert_snapshot!(refusal::<ConsoleConfig>("tty,iommu=on"),
        @"iommu is known to the Cloud Hypervisor API but not supported by podvisor: true was given, only the default (false) is accepted");
    assert_eq!("off".parse(), Ok(ConsoleConfig::default()));
}

#[test]
fn an_empty_value_means_the_default() {
    let net: NetConfig = "tap=,mac=,ip=,mask=".parse().unwrap();
    assert_eq!(net, NetConfig::default());
}

#[test]
fn quoted_values_may_hold_commas_and_quotes() {
    let disk: DiskConfig = r#"path="/a,b ""c"".img",readonly=on"#.parse().unwrap();
    assert_eq!(disk.path, Some(r#"/a,b "c".img"#.into()));
    let disk: DiskConfig = r#"path=/disk[1].img"#.parse().unwrap();
    assert_eq!(disk.path, Some("/disk[1].img".into()));
    let disk: DiskConfig = r#"path="/half[.img""#.parse().unwrap();
    assert_eq!(disk.path, Some("/half[.img".into()));
}

#[test]
fn unbalanced_quotes_and_brackets_are_refused() {
    insta::assert_snapshot!(refusal::<DiskConfig>(r#"path="/a"#),
        @r#""path=\"/a": expected a closing quote; a value with such a character is put in quotes"#);
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/a["),
        @r#""path=/a[": expected a ] for each [; a value with such a character is put in quotes"#);
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/a]"),
        @r#""path=/a]": expected a [ before each ]; a value with such a character is put in quotes"#);
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/a,,id=b"),
        @r#""path=/a,,id=b": expected key=value between the commas"#);
}

#[test]
fn a_range_in_a_list_is_bounded() {
    insta::assert_snapshot!(refusal::<CpusConfig>("boot=1,affinity=0@[0-4294967295]"),
        @r#"bad value "0@[0-4294967295]" for affinity: expected a range FIRST-LAST, not "0-4294967295""#);
}

#[test]
fn sizes_take_binary_suffixes() {
    let size = |text: &str| text.parse::<ByteSize>().map(ByteSize::bytes);
    assert_eq!(size("0"), Ok(0));
    assert_eq!(size("4096"), Ok(4096));
    assert_eq!(size("3K"), Ok(3 << 10));
    assert_eq!(size("512m"), Ok(512 << 20));
    assert_eq!(size("5G"), Ok(5 << 30));
    assert_eq!(size("2T"), Ok(2 << 40));
    for bad in ["", "K", "-1", "+1", "1.5G", "1 G", "1GB", "16777216T", "ü"] {
        assert!(size(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn disk_that_is_added_may_have_a_descriptor_in_place_of_its_path() {
    let disk: AddedDisk = "fd=7,id=data,readonly=on".parse().unwrap();
    assert_eq!(disk.fd, Some(7));
    let expected = DiskConfig {
        id: Some("data".to_owned()),
        readonly: true,
        ..DiskConfig::default()
    };
    assert_eq!(disk.config, expected);
    let disk: AddedDisk = "path=/d.img".parse().unwrap();
    assert_eq!((disk.config.path, disk.fd), (Some("/d.img".into()), None));
}

#[test]
fn descriptor_of_a_disk_is_refused_where_it_makes_no_sense() {
    for (text, part) in [
        ("fd=2", "above 2"),
        ("fd=many", "bad value many for fd"),
        ("fd=3,path=/d.img", "either a path or a descriptor"),
        ("fd=", "path is missing"),
        ("fd=3,fd=4", "more than once"),
        ("colour=red", ", rerror, fd"),
    ] {
        let error = text.parse::<AddedDisk>().unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    let error = "fd=3".parse::<DiskConfig>().unwrap_err().to_string();
    assert!(error.starts_with("unknown key \"fd\""), "{error}");
}

#[test]
fn pairs_of_any_keys_are_split_outside_quotes_and_brackets() {
    let pairs = split_pairs("a=1,b=\"x,y\",c=[1,2],d=").unwrap();
    let expected = [("a", "1"), ("b", "x,y"), ("c", "[1,2]"), ("d", "")];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(pairs, expected);
    for (text, part) in [
        ("a", "expected key=value"),
        ("", "expected key=value"),
        ("a=1,a=2", "more than once"),
        ("a=[1", "a ] for each ["),
    ] {
        let error = split_pairs(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn how_a_disk_is_served_is_read() {
    let disk: DiskConfig =
        "path=/d,num_queues=4,queue_affinity=[0@[1,3-4],3@[0]],sparse=off,direct=on"
            .parse()
            .unwrap();
    let affinity = |queue_index, host_cpus: &[usize]| VirtQueueAffinity {
        queue_index,
        host_cpus: host_cpus.to_vec(),
    };
    let expected = DiskConfig {
        path: Some("/d".into()),
        num_queues: 4,
        queue_affinity: Some(vec![affinity(0, &[1, 3, 4]), affinity(3, &[0])]),
        sparse: false,
        direct: true,
        ..DiskConfig::default()
    };
    assert_eq!(disk, expected);
}

#[test]
fn queues_that_a_disk_cannot_have_are_named() {
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,num_queues=0"),
        @"bad value 0 for num_queues: expected 1 to 256");
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,num_queues=257"),
        @"bad value 257 for num_queues: expected 1 to 256");
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,num_queues=2,queue_affinity=[2@[0]]"),
        @"bad value of queue 2 for queue_affinity: expected queues 0 to 1");
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,num_queues=2,queue_affinity=[1@[0],1@[1]]"),
        @"bad value of queue 1 for queue_affinity: expected each queue once");
    insta::assert_snapshot!(refusal::<DiskConfig>("path=/d,queue_affinity=[0@[]]"),
        @"bad value [] of queue 0 for queue_affinity: expected at least one host CPU");
}

#[test]
fn limits_and_locks_of_a_disk_are_read() {
    let disk: DiskConfig =
        "path=/d,bw_size=1000000,bw_one_time_burst=5,bw_refill_time=100,ops_size=10,ops_refill_time=20,\
         lock_granularity=full"
            .parse()
            .unwrap();
    let bucket = |size, one_time_burst, refill_time| {
        Some(TokenBucket {
            size,
            one_time_burst,
            refill_time,
        })
    };
    let expected = DiskConfig {
        path: Some("/d".into()),
        rate_limiter_config: Some(RateLimiterConfig {
            bandwidth: bucket(1_000_000, Some(5), 100),
            ops: bucket(10, None, 20),
        }),
        lock_granularity: LockGranularity::Full,
        ..DiskConfig::default()
    };
    assert_eq!(disk, expected);
    let disk: DiskConfig = "path=/d,lock_granularity=byterange".parse().unwrap();
    assert_eq!(disk.lock_granularity, LockGranularity::ByteRange);
}

#[test]
fn network_has_its_queues_limits_and_link_from_the_command_line() {
    let net: NetConfig =
        "fd=[7,8],num_queues=4,bw_size=1000,bw_refill_time=100,ops_size=0,link=off"
            .parse()
            .unwrap();
    let limits = net.rate_limiter_config.as_ref().unwrap();
    assert_eq!(limits.bandwidth.as_ref().unwrap().size, 1000);
    assert_eq!(limits.ops, None);
    assert_eq!((net.pairs(), net.link), (2, false));
    assert_eq!(net.fds, Some(vec![7, 8]));

    insta::assert_snapshot!(refusal::<NetConfig>("num_queues=3"),
        @"bad value 3 for num_queues: expected an even number from 2 to 512, half of them to receive and half to send");
    refusal::<NetConfig>("num_queues=0");
    refusal::<NetConfig>("num_queues=514");
    insta::assert_snapshot!(refusal::<NetConfig>("fd=7,num_queues=4"),
        @"bad value [7] for fd: expected 2 descriptors, one for each pair of num_queues=4");
}
