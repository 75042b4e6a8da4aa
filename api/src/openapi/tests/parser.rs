//! What the document says of a field, and what the parser does.

use super::*;
use crate::config::{
    BalloonConfig, ConsoleConfig, CpusConfig, DebugConsoleConfig, DiskConfig, FsConfig,
    MemoryConfig, NetConfig, PayloadConfig, PlatformConfig, RateLimitGroupConfig, RngConfig,
    Section, SerialConfig, VmConfig, VsockConfig,
};
use crate::request::{
    CoredumpConfig, RemoveDeviceConfig, ResizeConfig, ResizeDiskConfig, SetRateLimiterConfig,
};

/// Calls a function for each section with its schema and a value of it that is accepted.
macro_rules! for_each_section {
    ($check:ident) => {
        let document = document();
        let schema = |name: &str| &document["components"]["schemas"][name];
        $check::<VmConfig>(schema("VmConfig"), json!({"payload": {"kernel": "/k"}}));
        $check::<CpusConfig>(schema("CpusConfig"), json!({"max_vcpus": 254}));
        $check::<MemoryConfig>(schema("MemoryConfig"), json!({}));
        $check::<PayloadConfig>(schema("PayloadConfig"), json!({"kernel": "/k"}));
        $check::<DiskConfig>(schema("DiskConfig"), json!({"path": "/d"}));
        $check::<RateLimitGroupConfig>(
            schema("RateLimitGroupConfig"),
            json!({"id": "g", "rate_limiter_config": {}}),
        );
        $check::<NetConfig>(schema("NetConfig"), json!({}));
        $check::<FsConfig>(schema("FsConfig"), json!({"tag": "t", "socket": "/s"}));
        $check::<RngConfig>(schema("RngConfig"), json!({}));
        $check::<VsockConfig>(schema("VsockConfig"), json!({"cid": 3, "socket": "/s"}));
        $check::<BalloonConfig>(schema("BalloonConfig"), json!({}));
        $check::<SerialConfig>(schema("SerialConfig"), json!({}));
        $check::<ConsoleConfig>(schema("ConsoleConfig"), json!({}));
        $check::<DebugConsoleConfig>(schema("DebugConsoleConfig"), json!({}));
        $check::<PlatformConfig>(schema("PlatformConfig"), json!({}));
    };
}

/// The fields that the parser reads, each with its schema.
fn fields(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = schema["properties"].as_object().unwrap();
    // Descriptors come beside what the parser reads.
    fields.iter().filter(|(name, _)| *name != "fds")
}

/// A section that is accepted, with what a field needs beside it.
fn beside(mut accepted: Value, field: &str) -> Value {
    match field {
        "hugepage_size" => {
            accepted["hugepages"] = json!(true);
            accepted["size"] = json!(1_u64 << 30);
        }
        "hotplug_size" => accepted["size"] = json!(8 << 20),
        "hotplugged_size" => {
            accepted["size"] = json!(8 << 20);
            accepted["hotplug_method"] = json!("VirtioMem");
            accepted["hotplug_size"] = json!((1_u64 << 45) - (128 << 20));
        }
        // Another place of the kernel.
        "boot_disk" => accepted["kernel"] = Value::Null,
        _ => {}
    }
    accepted
}

/// Whether a section takes a value for a field.
fn takes<T: Section>(accepted: &Value, field: &str, value: &Value) -> bool {
    let mut section = accepted.clone();
    section[field] = value.clone();
    serde_json::from_value::<T>(section).is_ok_and(|section| section.validate().is_ok())
}

#[test]
fn null_is_taken_where_the_document_says_so() {
    fn check<T: Section>(schema: &Value, _: Value) {
        for (name, field) in fields(schema) {
            let null = Value::Null;
            let choices = field["oneOf"].as_array().into_iter().flatten();
            let said = match field["enum"].as_array() {
                Some(values) => values.contains(&null),
                None => {
                    let types = field["type"].as_array();
                    types.is_some_and(|types| types.contains(&json!("null")))
                        || choices.into_iter().any(|choice| choice["type"] == "null")
                }
            };
            let taken = serde_json::from_value::<T>(json!({ name: null }))
                .is_ok_and(|section| section.refuse_unsupported().is_ok());
            assert_eq!(taken, said, "{name}: null");
        }
    }
    for_each_section!(check);
}

#[test]
fn ranges_are_those_of_the_parser() {
    fn check<T: Section>(schema: &Value, accepted: Value) {
        let numbers = fields(schema).filter(|(_, field)| field.get("enum").is_none());
        for (name, field) in numbers {
            let accepted = beside(accepted.clone(), name);
            if let Some(minimum) = field["minimum"].as_i64() {
                assert!(
                    takes::<T>(&accepted, name, &json!(minimum)),
                    "{name}: {minimum}"
                );
                assert!(
                    !takes::<T>(&accepted, name, &json!(minimum - 1)),
                    "{name}: below"
                );
            }
            if let Some(maximum) = field["maximum"].as_i64() {
                assert!(
                    takes::<T>(&accepted, name, &json!(maximum)),
                    "{name}: {maximum}"
                );
                assert!(
                    !takes::<T>(&accepted, name, &json!(maximum + 1)),
                    "{name}: above"
                );
            }
            if let Some(factor) = field["multipleOf"].as_i64() {
                let minimum = field["minimum"].as_i64().unwrap();
                let value = json!(minimum + factor / 2);
                assert!(!takes::<T>(&accepted, name, &value), "{name}: {value}");
            }
        }
    }
    for_each_section!(check);
}

#[test]
fn lengths_are_those_of_the_parser() {
    fn check<T: Section>(schema: &Value, accepted: Value) {
        for (name, field) in fields(schema) {
            let accepted = beside(accepted.clone(), name);
            let text = |length: u64| json!("a".repeat(length as usize));
            if let Some(longest) = field["maxLength"].as_u64() {
                assert!(
                    takes::<T>(&accepted, name, &text(longest)),
                    "{name}: {longest}"
                );
                assert!(
                    !takes::<T>(&accepted, name, &text(longest + 1)),
                    "{name}: longer"
                );
            }
            if let Some(shortest) = field["minLength"].as_u64() {
                assert!(
                    !takes::<T>(&accepted, name, &text(shortest - 1)),
                    "{name}: shorter"
                );
            }
        }
    }
    for_each_section!(check);
}

#[test]
fn listed_values_are_taken_and_no_others() {
    fn check<T: Section>(schema: &Value, accepted: Value) {
        for (name, field) in fields(schema) {
            let Some(values) = field["enum"].as_array() else {
                continue;
            };
            let accepted = beside(accepted.clone(), name);
            for value in values {
                assert!(takes::<T>(&accepted, name, value), "{name}: {value}");
            }
            for other in [
                json!(true),
                json!(false),
                json!(3),
                json!("Full"),
                json!(["x"]),
                json!(65536),
            ] {
                let listed = values.contains(&other);
                assert_eq!(
                    takes::<T>(&accepted, name, &other),
                    listed,
                    "{name}: {other}"
                );
            }
        }
    }
    for_each_section!(check);
}

#[test]
fn fields_that_are_taken_at_their_default_are_listed_and_marked() {
    fn check<T: Section>(schema: &Value, _: Value) {
        let marked: BTreeSet<_> = fields(schema)
            .filter(|(_, field)| field.get("x-podvisor-only-default").is_some())
            .map(|(name, _)| name.as_str())
            // The old names of two fields.
            .filter(|name| !["serial_number", "uuid"].contains(name))
            .collect();
        assert_eq!(marked, T::UNSUPPORTED.iter().copied().collect());
    }
    for_each_section!(check);
}

#[test]
fn fields_are_those_of_the_parser_and_no_other_is_known() {
    fn check<T: Section>(schema: &Value, _: Value) {
        assert_eq!(schema["additionalProperties"], false);
        let refused = |name: &str| {
            let error = serde_json::from_value::<T>(json!({ name: 1 })).err();
            error.is_some_and(|error| error.to_string().starts_with("unknown field"))
        };
        assert!(refused("nobody_knows"));
        for (name, _) in fields(schema) {
            assert!(!refused(name), "{name}");
        }
    }
    for_each_section!(check);
}

#[test]
fn examples_are_accepted() {
    let document = document();
    let example = |path: &str| {
        document["paths"][path]["put"]["requestBody"]["content"]["application/json"]["example"]
            .clone()
    };
    let config = serde_json::to_vec(&example("/vm.create")).unwrap();
    VmConfig::from_json(&config).unwrap();
    let disk: DiskConfig = serde_json::from_value(example("/vm.add-disk")).unwrap();
    disk.validate().unwrap();
    let net: NetConfig = serde_json::from_value(example("/vm.add-net")).unwrap();
    net.validate().unwrap();
    let vsock: VsockConfig = serde_json::from_value(example("/vm.add-vsock")).unwrap();
    vsock.validate().unwrap();
    let _: ResizeConfig = serde_json::from_value(example("/vm.resize")).unwrap();
    let _: ResizeDiskConfig = serde_json::from_value(example("/vm.resize-disk")).unwrap();
    let limits: SetRateLimiterConfig =
        serde_json::from_value(example("/vm.set-rate-limiter")).unwrap();
    limits.validate().unwrap();
    let _: RemoveDeviceConfig = serde_json::from_value(example("/vm.remove-device")).unwrap();
    let _: CoredumpConfig = serde_json::from_value(example("/vm.coredump")).unwrap();
}
