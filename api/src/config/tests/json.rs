//! The JSON of `vm.create`.

use super::*;

fn json_refusal(json: &str) -> String {
    VmConfig::from_json(json.as_bytes())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_machine_as_clients_of_cloud_hypervisor_write_it_is_read() {
    let json = br#"{
        "cpus": {"boot_vcpus": 2, "max_vcpus": 4,
                 "topology": {"threads_per_core": 1, "cores_per_die": 4, "dies_per_package": 1, "packages": 1}},
        "memory": {"size": 1073741824, "shared": true},
        "payload": {"kernel": "/boot/vmlinux", "cmdline": "console=ttyS0 root=/dev/vda"},
        "disks": [{"path": "/root.img", "readonly": true}, {"path": "/data.img", "id": "data"}],
        "net": [{"tap": "tap0", "mac": "52:54:00:12:34:56", "ip": "192.168.249.1", "mask": "255.255.255.0"}],
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "fs": null, "devices": [], "iommu": false
    }"#;
    let config = VmConfig::from_json(json).unwrap();
    assert_eq!(config.cpus.max_vcpus, 4);
    assert_eq!(config.memory.size, ByteSize(1 << 30));
    assert!(config.memory.shared);
    assert!(config.disks[0].readonly);
    assert_eq!(config.disks[1].id.as_deref(), Some("data"));
    assert_eq!(config.net[0].prefix_len(), Some(24));
    assert_eq!(config.serial.mode, ConsoleOutputMode::Tty);
}

#[test]
fn defaults_are_those_of_cloud_hypervisor_but_for_console_and_pvpanic() {
    let config = VmConfig::from_json(br#"{"payload": {"kernel": "/k"}}"#).unwrap();
    let expected = serde_json::json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false},
            "nested": true, "core_scheduling": "Vm", "profile": "Host",
        },
        "memory": {
            "size": 512 << 20, "shared": false, "hugepages": false, "prefault": false, "mergeable": false,
            "thp": true, "hotplug_method": "Acpi", "reserve": false,
        },
        "payload": {"kernel": "/k"},
        "rng": {"src": "/dev/urandom", "iommu": false, "pci_segment": 0},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off", "iommu": false, "pci_segment": 0},
        "pvpanic": true,
        "debug_console": {"mode": "Off", "iobase": 233},
        "iommu": false,
        "watchdog": false,
        "landlock_enable": false,
    });
    assert_eq!(serde_json::to_value(&config).unwrap(), expected);
}

#[test]
fn errors_name_the_path_of_the_field() {
    let unknown = json_refusal(r#"{"disks": [{"path": "/a"}, {"pth": "/b"}]}"#);
    assert!(
        unknown
            .starts_with("disks[1].pth: unknown field `pth`, expected one of `path`, `readonly`"),
        "{unknown}"
    );
    insta::assert_snapshot!(json_refusal(r#"{"memory": {"size": "1G"}}"#),
        @r#"memory.size: invalid type: string "1G", expected u64 at line 1 column 24"#);
    insta::assert_snapshot!(json_refusal(r#"{"payload": {"kernel": "/k"}, "net": [{"mac": "1"}]}"#),
        @"net[0].mac: expected six hexadecimal bytes as in 52:54:00:12:34:56 at line 1 column 50");
    insta::assert_snapshot!(json_refusal(r#"{"payload": {"kernel": "/k"}, "disks": [{"path": "/a", "queue_size": 100}]}"#),
        @"bad value 100 for disks[0].queue_size: expected a power of two from 4 to 32768");
    insta::assert_snapshot!(json_refusal(r#"{"payload": {"kernel": "/k"}, "disks": [{}]}"#),
        @"disks[0].path is missing: expected the path of an image file or a block device");
    insta::assert_snapshot!(json_refusal(r#"{"payload": {"kernel": "/k"}} x"#),
        @"the document: trailing characters at line 1 column 31");
    insta::assert_snapshot!(json_refusal("{"), @"the document: EOF while parsing an object at line 1 column 1");
}

#[test]
fn lists_are_not_read_as_structs() {
    let refusal =
        |fields: &str| json_refusal(&format!(r#"{{"payload": {{"kernel": "/k"}}, {fields}}}"#));
    insta::assert_snapshot!(json_refusal("[]"),
        @"the document: invalid type: sequence, expected struct VmConfig at line 1 column 0");
    insta::assert_snapshot!(refusal(r#""cpus": [2, 4]"#),
        @"cpus: invalid type: sequence, expected struct CpusConfig at line 1 column 38");
    for field in [
        r#""disks": [["/a"]]"#,
        r#""memory": []"#,
        r#""platform": []"#,
        r#""cpus": {"topology": [1, 1, 1, 1]}"#,
        r#""net": [{"rate_limiter_config": []}]"#,
    ] {
        let text = refusal(field);
        assert!(text.contains("invalid type: sequence"), "{text}");
    }
}

#[test]
fn sections_known_to_cloud_hypervisor_are_refused_by_name() {
    let kernel = r#""payload": {"kernel": "/k"}"#;
    insta::assert_snapshot!(json_refusal(&format!(r#"{{{kernel}, "pmem": [{{"file": "f"}}]}}"#)),
        @r#"pmem is known to the Cloud Hypervisor API but not supported by podvisor: [{"file":"f"}] was given, only the default (none) is accepted"#);
    insta::assert_snapshot!(json_refusal(&format!(r#"{{{kernel}, "platform": {{"uuid": "u"}}}}"#)),
        @r#"platform.system_uuid is known to the Cloud Hypervisor API but not supported by podvisor: "u" was given, only the default (none) is accepted"#);
    insta::assert_snapshot!(json_refusal(&format!(r#"{{{kernel}, "memory": {{"zones": [{{"id": "z"}}]}}}}"#)),
        @r#"memory.zones is known to the Cloud Hypervisor API but not supported by podvisor: [{"id":"z"}] was given, only the default (none) is accepted"#);
    insta::assert_snapshot!(json_refusal(&format!(r#"{{{kernel}, "console": {{"iommu": true}}}}"#)),
        @"console.iommu is known to the Cloud Hypervisor API but not supported by podvisor: true was given, only the default (false) is accepted");
    let defaults = format!(
        r#"{{{kernel}, "platform": {{"num_pci_segments": 1}}, "debug_console": {{"mode": "Off", "iobase": 233}}}}"#
    );
    VmConfig::from_json(defaults.as_bytes()).unwrap();
}

#[test]
fn devices_are_read_as_ch_remote_writes_them() {
    let disk = serde_json::json!({
        "id": "data", "pci_segment": 0, "path": "/d", "readonly": false, "direct": false, "num_queues": 1,
        "queue_size": 128, "vhost_user": false, "disable_io_uring": false, "disable_aio": false,
        "backing_files": false, "sparse": true, "image_type": "Unknown", "lock_granularity": "ByteRange",
    });
    let disk: DiskConfig = serde_json::from_value(disk).unwrap();
    disk.validate().unwrap();
    let net = serde_json::json!({
        "id": "lan", "pci_segment": 0, "tap": "t0", "num_queues": 2, "queue_size": 256, "vhost_user": false,
        "vhost_mode": "Client", "offload_tso": true, "offload_ufo": true, "offload_csum": true,
    });
    let net: NetConfig = serde_json::from_value(net).unwrap();
    net.validate().unwrap();
}

#[test]
fn command_line_that_no_kernel_takes_is_refused() {
    for cmdline in ["é", r"\u0000"] {
        let text = json_refusal(&format!(
            r#"{{"payload": {{"kernel": "/k", "cmdline": "{cmdline}"}}}}"#
        ));
        assert!(text.contains("payload.cmdline: expected ASCII"), "{text}");
    }
}
