//! What the parser checks beyond types and ranges, as far as JSON Schema can say it.
//!
//! Rules between fields are conditions (`if`): programs that make code of the document pass them by, where a choice
//! (`anyOf`) would change the types that they make.

use serde_json::{Map, Value, json};

use super::ADDITION;
use super::schemas::{ADD_DISK, ADD_NET};

/// Adds the rules to the schemas.
pub(super) fn add(schemas: &mut Map<String, Value>) {
    add_values(schemas);

    // A mode needs its path, and takes no other.
    let path =
        |field: &str| json!({"required": [field], "properties": {field: {"type": "string"}}});
    let mode = |mode: &str| json!({"required": ["mode"], "properties": {"mode": {"const": mode}}});
    let without = |field: &str| json!({"properties": {field: {"type": "null"}}});
    for name in ["SerialConfig", "ConsoleConfig"] {
        let console = &mut schemas[name];
        console["if"] = mode("File");
        console["then"] = path("file");
        console["then"]["properties"]["socket"] = json!({"type": "null"});
        console["else"]["if"] = mode("Socket");
        console["else"]["then"] = path("socket");
        console["else"]["then"]["properties"]["file"] = json!({"type": "null"});
        console["else"]["else"] = without("socket");
        // Where the pseudo-terminal is, as a reply tells it.
        console["else"]["else"]["if"] = mode("Pty");
        console["else"]["else"]["else"] = without("file");
    }
    let port = &mut schemas["ConsolePortConfig"];
    port["required"] = json!(["name"]);
    if let Some(name) = port["properties"]["name"].as_object_mut() {
        name.remove("default");
    }
    port["if"] = json!({"properties": {"mode": {"const": "Socket"}}});
    port["then"] = path("socket");
    port["then"]["properties"]["file"] = json!({"type": "null"});
    port["else"] = without("socket");
    port["else"]["properties"]["mode"] = json!({"enum": ["File", "Tty", "Pty", "Null"]});
    port["else"]["if"] = mode("File");
    port["else"]["then"] = path("file");
    port["else"]["else"]["if"] = mode("Pty");
    port["else"]["else"]["else"] = without("file");

    schemas["PayloadConfig"]["properties"]["boot_disk"][ADDITION] = json!(true);

    // Without a descriptor there must be a path.
    let disk = &mut schemas[ADD_DISK];
    disk["if"] = json!({"properties": {"fds": {"maxProperties": 0, "maxItems": 0}}});
    disk["then"] = path("path");
    disk["else"] = without("path");

    // What goes with a format only.
    let off = |field: &str| json!({"properties": {field: {"const": false}}});
    for name in ["DiskConfig", ADD_DISK] {
        let rules = &mut schemas[name]["dependentSchemas"];
        rules["image_type"] = json!({
            "if": {"properties": {"image_type": {"const": "Qcow2"}}},
            "then": off("direct"),
        });
        rules["backing_files"] = json!({
            "if": {"properties": {"backing_files": {"const": true}}},
            "then": {
                "required": ["image_type"],
                "properties": {
                    "image_type": {"const": "Qcow2"},
                    "fds": {"maxProperties": 0, "maxItems": 0},
                },
            },
        });
        rules["overlay"] = json!({
            "if": {"properties": {"overlay": {"type": "string"}}},
            "then": {
                "properties": {
                    "readonly": {"const": false},
                    "direct": {"const": false},
                    "fds": {"maxProperties": 0, "maxItems": 0},
                },
            },
        });
    }

    // What the parser takes for no address and no path cannot be given.
    let vsock = &mut schemas["VsockConfig"];
    vsock["required"] = json!(["cid", "socket"]);
    if let Some(cid) = vsock["properties"]["cid"].as_object_mut() {
        cid.remove("default");
    }

    schemas["FsConfig"]["required"] = json!(["tag", "socket"]);
    let vm = &mut schemas["VmConfig"];
    vm["dependentSchemas"]["watchdog_action"] = json!({
        "if": {"properties": {"watchdog_action": {"type": "string"}}},
        "then": {"required": ["watchdog"], "properties": {"watchdog": {"const": true}}},
    });

    // An address and its mask go together.
    for name in ["NetConfig", ADD_NET] {
        let net = &mut schemas[name];
        net["if"] = json!({"required": ["ip"], "properties": {"ip": {"type": "string"}}});
        net["then"] = path("mask");
        net["else"] = without("mask");
        net["dependentSchemas"]["offload_csum"] = json!({
            "if": {"properties": {"offload_csum": {"const": false}}},
            "then": {
                "required": ["offload_tso", "offload_ufo"],
                "properties": {"offload_tso": {"const": false}, "offload_ufo": {"const": false}},
            },
        });
    }

    let memory = &mut schemas["MemoryConfig"];
    memory["dependentSchemas"]["hugepage_size"] = json!({
        "if": {"properties": {"hugepage_size": {"type": "integer"}}},
        "then": {"required": ["hugepages"], "properties": {"hugepages": {"const": true}}},
        "allOf": [{
            "if": {"properties": {"hugepage_size": {"const": 1 << 30}}},
            "then": {"required": ["size"], "properties": multiples(1 << 30)},
        }],
    });
    let mut huge = json!({"properties": multiples(2 << 20)});
    huge["properties"]["mergeable"] = json!({"const": false});
    memory["dependentSchemas"]["hugepages"] = json!({
        "if": {"properties": {"hugepages": {"const": true}}},
        "then": huge,
    });
    // Without virtio-mem nothing is plugged before the guest runs.
    memory["if"] = json!({
        "required": ["hotplug_method"],
        "properties": {"hotplug_method": {"const": "VirtioMem"}},
    });
    memory["then"] = json!({"properties": {"hotplug_size": {"multipleOf": 128 << 20}}});
    memory["else"] = json!({"properties": {"hotplugged_size": {"enum": [null, 0]}}});
    memory["dependentSchemas"]["hotplugged_size"] = json!({
        "if": {"properties": {"hotplugged_size": {"type": "integer", "minimum": 1}}},
        "then": {
            "required": ["hotplug_size"],
            "properties": {"hotplug_size": {"type": "integer", "minimum": 1}},
        },
    });
    memory["dependentSchemas"]["shared"] = json!({
        "if": {"properties": {"shared": {"const": true}}},
        "then": {"properties": {"mergeable": {"const": false}}},
    });

    // A bucket without a size or a refill time limits nothing, and only such a bucket is taken for a network.
    let bucket = json!({
        "if": {"required": ["size"], "properties": {"size": {"minimum": 1}}},
        "then": {"properties": {"refill_time": {"const": 0}}},
    });
    schemas["NetConfig"]["dependentSchemas"]["rate_limiter_config"] = json!({
        "properties": {"rate_limiter_config": {"properties": {"bandwidth": bucket, "ops": bucket}}},
    });
}

/// A condition of the body of `vm.create`: without descriptors there must be paths. A reply has neither when descriptors
/// came.
pub(super) fn create() -> Value {
    let none = json!({"type": "null"});
    // What the guest boots is on its own disk, found by a firmware, or in files of the host's.
    let payload = json!({
        "if": path("firmware"),
        "then": {"properties": {"kernel": none, "initramfs": none, "cmdline": none, "boot_disk": none}},
        "else": {
            "if": path("boot_disk"),
            "then": {"properties": {"kernel": none, "initramfs": none}},
            "else": path("kernel"),
        },
    });
    json!({
        "if": {"properties": {"fds": {"maxProperties": 0}}},
        "then": {
            "required": ["payload"],
            "properties": {"payload": payload, "disks": {"items": path("path")}},
        },
    })
}

/// The sizes of memory that is made of pages of `page` bytes.
fn multiples(page: u64) -> Value {
    let multiple = json!({"multipleOf": page});
    json!({"size": multiple, "hotplug_size": multiple, "hotplugged_size": multiple})
}

/// A text that must be there.
fn path(field: &str) -> Value {
    json!({"required": [field], "properties": {field: {"type": "string"}}})
}

/// Says which values are taken where it is neither all of the type's nor a range.
fn add_values(schemas: &mut Map<String, Value>) {
    let sizes: Vec<u32> = (2..=15).map(|power| 1 << power).collect();
    for name in ["DiskConfig", ADD_DISK, "NetConfig", ADD_NET, "FsConfig"] {
        schemas[name]["properties"]["queue_size"]["enum"] = json!(sizes);
    }
    for name in ["DiskConfig", ADD_DISK] {
        schemas[name]["properties"]["image_type"]["enum"] = json!(["Qcow2", "Raw", "Unknown"]);
    }
    schemas["MemoryConfig"]["properties"]["hugepage_size"]["enum"] =
        json!([2 << 20, 1 << 30, null]);
    for name in ["NetConfig", ADD_NET] {
        for field in ["ip", "mask"] {
            let address = &mut schemas[name]["properties"][field];
            address["if"] = json!({"format": "ipv4"});
            address["else"] = json!({"format": "ipv6"});
        }
    }
}
