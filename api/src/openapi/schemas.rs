//! The schemas of bodies and replies, from their Rust types.
//!
//! Names, types, descriptions, defaults and most bounds are what `utoipa` derives from the serde types. What the derive
//! cannot see is asked of the types themselves: which fields are taken at their default only, and in which spellings.

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::{ADDITION, foreign, rules};
use crate::config::{
    BalloonConfig, ConsoleConfig, CpusConfig, DebugConsoleConfig, DiskConfig, FsConfig,
    MemoryConfig, NetConfig, PayloadConfig, PlatformConfig, RngConfig, Section, SerialConfig,
    VmConfig, VsockConfig,
};
use crate::request::{
    CoredumpConfig, Counters, PciDeviceInfo, PingInfo, RemoveDeviceConfig, ResizeConfig,
    ResizeDiskConfig, SetLinkConfig, SetRateLimiterConfig, VmInfo,
};

/// Marks a field that is taken at its default only. Its `enum` has all spellings of it.
const ONLY_DEFAULT: &str = "x-podvisor-only-default";

/// Name of the body of `vm.add-disk`, which names descriptors beside the disk.
pub(super) const ADD_DISK: &str = "AddDiskConfig";
/// Name of the body of `vm.add-net`, in which descriptors can be named in another way than in a machine.
pub(super) const ADD_NET: &str = "AddNetConfig";
/// Name of the body of every error.
pub(super) const ERROR: &str = "Error";

/// All schemas by their names.
pub(super) fn schemas() -> Map<String, Value> {
    let mut schemas = derived();
    only_defaults::<VmConfig>(&mut schemas);
    only_defaults::<CpusConfig>(&mut schemas);
    only_defaults::<MemoryConfig>(&mut schemas);
    only_defaults::<PayloadConfig>(&mut schemas);
    only_defaults::<DiskConfig>(&mut schemas);
    only_defaults::<NetConfig>(&mut schemas);
    only_defaults::<FsConfig>(&mut schemas);
    only_defaults::<RngConfig>(&mut schemas);
    only_defaults::<VsockConfig>(&mut schemas);
    only_defaults::<BalloonConfig>(&mut schemas);
    only_defaults::<SerialConfig>(&mut schemas);
    only_defaults::<ConsoleConfig>(&mut schemas);
    only_defaults::<DebugConsoleConfig>(&mut schemas);
    only_defaults::<PlatformConfig>(&mut schemas);
    for (schema, field) in [
        ("DiskConfig", "overlay"),
        ("DiskConfig", "werror"),
        ("DiskConfig", "rerror"),
        ("DeviceNode", "engine"),
        ("NetConfig", "link"),
    ] {
        schemas[schema]["properties"][field][ADDITION] = json!(true);
    }
    add_old_names(&mut schemas);
    mark_additions(&mut schemas);
    add_descriptors(&mut schemas);
    schemas["PlatformConfig"]["properties"]["transport"][ADDITION] = json!(true);
    schemas["Transport"][ADDITION] = json!(true);
    rules::add(&mut schemas);
    schemas.insert(
        ERROR.to_owned(),
        json!({
            "description": "What went wrong, from the outermost cause to the innermost.",
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
        }),
    );
    for schema in schemas.values_mut() {
        polish(schema);
    }
    schemas
}

/// Whatever the derive says.
fn derived() -> Map<String, Value> {
    let mut all = Vec::new();
    add::<VmConfig>(&mut all);
    add::<DiskConfig>(&mut all);
    add::<NetConfig>(&mut all);
    add::<FsConfig>(&mut all);
    add::<VsockConfig>(&mut all);
    add::<ResizeConfig>(&mut all);
    add::<ResizeDiskConfig>(&mut all);
    add::<SetLinkConfig>(&mut all);
    add::<SetRateLimiterConfig>(&mut all);
    add::<RemoveDeviceConfig>(&mut all);
    add::<CoredumpConfig>(&mut all);
    add::<PingInfo>(&mut all);
    add::<VmInfo>(&mut all);
    add::<PciDeviceInfo>(&mut all);
    all.push(("VmCounters".to_owned(), Counters::schema()));
    add::<foreign::DeviceConfig>(&mut all);
    add::<foreign::GenericVhostUserConfig>(&mut all);
    add::<foreign::PmemConfig>(&mut all);
    add::<foreign::ReceiveMigrationData>(&mut all);
    add::<foreign::RestoreConfig>(&mut all);
    add::<foreign::SendMigrationData>(&mut all);
    add::<foreign::VdpaConfig>(&mut all);
    add::<foreign::VmAddUserDevice>(&mut all);
    add::<foreign::VmResizeZone>(&mut all);
    add::<foreign::VmSnapshotConfig>(&mut all);
    all.into_iter()
        .map(|(name, schema)| (name, json!(schema)))
        .collect()
}

/// Adds a type and all types within it.
fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    T::schemas(all);
    all.push((T::name().into_owned(), T::schema()));
}

/// Marks the fields of which a section takes the default only, and lists the spellings that it takes for it.
fn only_defaults<T: Section + ToSchema>(schemas: &mut Map<String, Value>) {
    let defaults = json!(T::default());
    let schema = &mut schemas[T::name().as_ref()];
    for &field in T::UNSUPPORTED {
        let property = &mut schema["properties"][field];
        property[ONLY_DEFAULT] = json!(true);
        // A limit that limits nothing has endless spellings; `TokenBucket` tells them.
        if field != "rate_limiter_config" {
            let default = defaults.get(field).cloned().unwrap_or(Value::Null);
            let empty = if property.get("items").is_some() {
                json!([])
            } else {
                json!({})
            };
            property["enum"] = json!(accepted::<T>(field, [default, Value::Null, empty]));
        }
    }
}

/// Those of `values` that a section takes for a field, which are all spellings of its default.
fn accepted<T: Section>(field: &str, values: [Value; 3]) -> Vec<Value> {
    let mut accepted = Vec::new();
    for value in values {
        let taken = serde_json::from_value::<T>(json!({ field: value }))
            .is_ok_and(|section| section.refuse_unsupported().is_ok());
        if taken && !accepted.contains(&value) {
            accepted.push(value);
        }
    }
    accepted
}

/// Adds the names that fields of the platform had before, of which only one can be given.
fn add_old_names(schemas: &mut Map<String, Value>) {
    let platform = &mut schemas["PlatformConfig"];
    let mut both = Vec::new();
    for (old, new) in [
        ("serial_number", "system_serial_number"),
        ("uuid", "system_uuid"),
    ] {
        let mut property = platform["properties"][new].clone();
        property["deprecated"] = json!(true);
        platform["properties"][old] = property;
        both.push(json!({"required": [old, new]}));
    }
    platform["not"] = json!({"anyOf": both});
}

/// Fields that are no part of Cloud Hypervisor's configuration.
const ADDITIONS: &[(&str, &str)] = &[
    ("BalloonConfig", "stats_polling_interval_s"),
    ("VmConfig", "watchdog_action"),
];

/// Marks the fields that are our own.
fn mark_additions(schemas: &mut Map<String, Value>) {
    for (schema, field) in ADDITIONS {
        schemas[*schema]["properties"][*field][ADDITION] = json!(true);
    }
}

/// Adds the field that tells which descriptors belong to what.
fn add_descriptors(schemas: &mut Map<String, Value>) {
    let map = json!({
        "description": "Descriptors that come with the request by SCM_RIGHTS: their indexes, from 0 in the order of \
                        arrival, by the id of their disk or network, or by \"kernel\" or \"initramfs\". Those that are \
                        not named are closed.",
        "type": ["object", "null"],
        "additionalProperties": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "minItems": 1,
        },
        ADDITION: true,
    });
    let either = |description: &str| {
        let mut fds = map.clone();
        fds["description"] = json!(description);
        fds["type"] = json!(["array", "object", "null"]);
        fds["items"] = json!({"type": "integer"});
        fds
    };

    let mut disk = schemas["DiskConfig"].clone();
    disk["description"] =
        json!("The body of `vm.add-disk`: a disk, and the descriptor of its image.");
    disk["properties"]["fds"] = either(
        "The descriptor of the image, which comes with the request by SCM_RIGHTS: a list of its index, or such a list \
         by the id of the disk.",
    );
    disk["properties"]["fds"]["items"]["minimum"] = json!(0);
    disk["properties"]["fds"]["minItems"] = json!(1);
    schemas.insert(ADD_DISK.to_owned(), disk);

    let mut net = schemas["NetConfig"].clone();
    net["description"] =
        json!("The body of `vm.add-net`: a network, and the descriptor of its tap.");
    net["properties"]["fds"] = either(
        "The descriptor of the tap, which comes with the request by SCM_RIGHTS: a list as long as there are \
         descriptors, whose numbers mean nothing, or a list of indexes by the id of the network.",
    );
    schemas.insert(ADD_NET.to_owned(), net);

    // A number of the VMM's own: only the command line can give it.
    schemas["NetConfig"]["properties"]["fds"]["readOnly"] = json!(true);
    let vm = &mut schemas["VmConfig"]["properties"];
    vm["fds"] = map;
    vm["fds"]["writeOnly"] = json!(true);
}

/// Puts a schema and all within it into the form of the document.
fn polish(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(polish),
        Value::Object(fields) => {
            // A default that says nothing is left out, and so is that of a struct, whose fields tell theirs.
            fields.retain(|name, value| {
                name != "default"
                    || !(value.is_null() || value.is_object() || value.is_array() || value == "")
            });
            // The description of an optional struct is that of the field.
            if let Some(described) = fields.get_mut("oneOf")
                && let Some(description) = described[0]
                    .as_object_mut()
                    .and_then(|choice| choice.remove("description"))
            {
                fields.entry("description").or_insert(description);
            }
            if let Some(Value::String(description)) = fields.get_mut("description") {
                *description = plain(description);
            }
            if fields.get("format") == Some(&json!("int64"))
                && fields.contains_key("minimum")
                && !fields.contains_key("maximum")
            {
                fields.insert("maximum".to_owned(), json!(u64::MAX));
            }
            fields.values_mut().for_each(polish);
        }
        _ => {}
    }
}

/// A doc comment without its line breaks and links.
fn plain(comment: &str) -> String {
    let paragraphs = comment.split("\n\n").map(|text| text.replace('\n', " "));
    let mut text = paragraphs.collect::<Vec<_>>().join("\n\n");
    while let Some(start) = text.find("[`") {
        let Some(end) = text[start..].find("`]").map(|end| start + end) else {
            break;
        };
        let target = text[end + 2..]
            .strip_prefix('(')
            .and_then(|rest| rest.find(')'))
            .map_or(0, |length| length + 2);
        text.replace_range(end + 1..end + 2 + target, "");
        text.remove(start);
    }
    text
}
