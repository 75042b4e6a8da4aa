//! The document beside that of Cloud Hypervisor.
//!
//! `cloud_hypervisor.json` has the facts of Cloud Hypervisor's document: of each path its method, operation id, body and
//! reply; of each field its type, format, bounds, default, and whether it is required. The same facts are read from ours.

use std::collections::BTreeMap;

use super::explained::{EXPLAINED, Row};
use super::*;

const CLOUD_HYPERVISOR: &str = include_str!("cloud_hypervisor.json");

#[test]
fn every_difference_from_cloud_hypervisor_is_explained() {
    let theirs: Value = serde_json::from_str(CLOUD_HYPERVISOR).unwrap();
    let differences = differences(&flat(&theirs), &flat(&facts(&document())));
    let mut used = vec![false; EXPLAINED.len()];
    let mut unexplained = Vec::new();
    for (fact, theirs, ours) in &differences {
        let fits =
            |row: &Row| matches(row.0, fact) && matches(row.1, theirs) && matches(row.2, ours);
        match EXPLAINED.iter().position(fits) {
            Some(row) => used[row] = true,
            None => unexplained.push(format!("{fact}: {theirs} there, {ours} here")),
        }
    }
    assert!(
        unexplained.is_empty(),
        "not explained:\n{}",
        unexplained.join("\n")
    );
    for (row, used) in EXPLAINED.iter().zip(used) {
        assert!(used, "there is no such difference: {row:?}");
    }
}

#[test]
fn a_changed_default_is_a_difference() {
    let theirs: Value = serde_json::from_str(CLOUD_HYPERVISOR).unwrap();
    let mut document = document();
    document["components"]["schemas"]["DiskConfig"]["properties"]["num_queues"]["default"] =
        json!(3);
    let differences = differences(&flat(&theirs), &flat(&facts(&document)));
    let expected = (
        "DiskConfig.num_queues default".into(),
        "1".into(),
        "3".into(),
    );
    assert!(differences.contains(&expected), "{differences:?}");
}

/// Whether `text` fits `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len())
                .filter(|&index| text.is_char_boundary(index))
                .any(|index| matches(rest, &text[index..]))
        }),
    }
}

type Flat = BTreeMap<String, String>;

/// Facts that are not the same: name, value there, value here.
fn differences(theirs: &Flat, ours: &Flat) -> Vec<(String, String, String)> {
    let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let value = |facts: &Flat, name: &String| facts.get(name).cloned().unwrap_or("-".to_owned());
    names
        .into_iter()
        .map(|name| (name.clone(), value(theirs, name), value(ours, name)))
        .filter(|(_, theirs, ours)| theirs != ours)
        .collect()
}

/// One line per fact, as in `DiskConfig.num_queues default`. Of what only one side has, the type alone is a fact.
fn flat(facts: &Value) -> Flat {
    let mut flat = Flat::new();
    let mut add = |name: &str, facts: &Value| {
        for (fact, value) in facts.as_object().unwrap() {
            let value = value.as_str().map_or(value.to_string(), str::to_owned);
            flat.insert(format!("{name} {fact}"), value);
        }
    };
    for (path, facts) in facts["paths"].as_object().unwrap() {
        add(path, facts);
    }
    for (name, fields) in facts["schemas"].as_object().unwrap() {
        for (field, facts) in fields.as_object().unwrap() {
            let dot = if field.is_empty() { "" } else { "." };
            add(&format!("{name}{dot}{field}"), facts);
        }
    }
    flat
}

/// The facts of a document of ours.
fn facts(document: &Value) -> Value {
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut facts = json!({"paths": {}, "schemas": {}});
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "delete", "patch"] {
            if let Some(operation) = item.get(method) {
                facts["paths"][path] = operation_facts(schemas, method, operation);
            }
        }
    }
    for (name, schema) in schemas {
        let fields = &mut facts["schemas"][name];
        if let Some(values) = schema["enum"].as_array() {
            let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            fields[""] = json!({"type": "string", "enum": values.join(" ")});
        } else if let Some(properties) = schema["properties"].as_object() {
            let required = schema["required"].as_array();
            for (field, property) in properties {
                fields[field] = field_facts(schemas, property);
                if required.is_some_and(|names| names.iter().any(|name| name == field)) {
                    fields[field]["required"] = json!(true);
                }
            }
        } else {
            fields[""] = field_facts(schemas, schema);
        }
    }
    facts
}

type Schemas = serde_json::Map<String, Value>;

fn operation_facts(schemas: &Schemas, method: &str, operation: &Value) -> Value {
    let mut facts = json!({"method": method});
    if let Some(id) = operation.get("operationId") {
        facts["id"] = id.clone();
    }
    let json = |of: &Value| type_of(schemas, &of["content"]["application/json"]["schema"]);
    if let Some(body) = operation.get("requestBody") {
        facts["body"] = json!(json(body));
    }
    let reply = &operation["responses"]["200"];
    if reply["content"].get("application/json").is_some() {
        facts["reply"] = json!(json(reply));
    }
    facts
}

fn field_facts(schemas: &Schemas, schema: &Value) -> Value {
    let mut facts = json!({"type": type_of(schemas, schema)});
    let mut inner = schema;
    while let Some(next) = inner.get("items").or_else(|| values_of(inner)) {
        inner = next;
    }
    if let Some(format) = inner.get("format") {
        facts["format"] = format.clone();
    }
    for fact in [
        "minimum",
        "maximum",
        "default",
        "deprecated",
        "x-podvisor-only-default",
        "x-podvisor-addition",
    ] {
        if let Some(value) = schema.get(fact) {
            facts[fact] = value.clone();
        }
    }
    let target = reference(schema).map(|name| &schemas[name]);
    if let Some(default) = target.and_then(|target| target.get("default")) {
        facts["default"] = default.clone();
    }
    let null = json!("null");
    let takes_null = schema["type"]
        .as_array()
        .is_some_and(|types| types.contains(&null))
        || schema["oneOf"]
            .as_array()
            .is_some_and(|choices| choices.iter().any(|choice| choice["type"] == null));
    if takes_null {
        facts["null"] = json!(true);
    }
    facts
}

/// The name of the schema that a field refers to, be it optional or not.
fn reference(schema: &Value) -> Option<&str> {
    let choice = schema["oneOf"]
        .as_array()
        .map_or(schema, |choices| &choices[0]);
    choice["$ref"]
        .as_str()?
        .strip_prefix("#/components/schemas/")
}

/// The schema of a map's values.
fn values_of(schema: &Value) -> Option<&Value> {
    schema
        .get("additionalProperties")
        .filter(|values| values.is_object())
}

fn type_of(schemas: &Schemas, schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        let named = if schemas[name].get("enum").is_some() {
            "string"
        } else {
            name
        };
        return named.to_owned();
    }
    if let Some(items) = schema.get("items") {
        return format!("array of {}", type_of(schemas, items));
    }
    if let Some(values) = values_of(schema) {
        return format!("map of {}", type_of(schemas, values));
    }
    match &schema["type"] {
        Value::Array(types) => types[0].as_str().unwrap_or_default().to_owned(),
        name => name.as_str().unwrap_or("anything").to_owned(),
    }
}
