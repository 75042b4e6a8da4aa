//! Tests of the document.

mod differences;
mod explained;
mod parser;

use std::collections::BTreeSet;

use super::*;

#[test]
fn committed_document_is_current() {
    let committed: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    assert!(
        committed == document(),
        "resources/openapi.json is stale; make it anew with\n\
         cargo run -p api --example openapi > resources/openapi.json"
    );
}

#[test]
fn every_reference_has_a_target_and_every_component_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    references(&document, &mut used);
    let mut declared = BTreeSet::new();
    for kind in ["schemas", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            declared.insert(format!("#/components/{kind}/{name}"));
        }
    }
    assert_eq!(used, declared);
}

#[test]
fn descriptions_have_no_links_of_rustdoc() {
    fn walk(value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(text)) = fields.get("description") {
                    assert!(!text.contains("[`") && !text.contains("]("), "{text}");
                    assert!(!text.is_empty());
                }
                fields.values().for_each(walk);
            }
            Value::Array(items) => items.iter().for_each(walk),
            _ => {}
        }
    }
    walk(&document());
}

#[test]
fn only_verbs_that_are_not_supported_answer_nothing_but_errors() {
    let document = document();
    for (path, item) in document["paths"].as_object().unwrap() {
        for operation in ["get", "put"].iter().filter_map(|method| item.get(method)) {
            let responses = operation["responses"].as_object().unwrap();
            let succeeds = responses.contains_key("200") || responses.contains_key("204");
            assert!(succeeds || responses.contains_key("501"), "{path}");
        }
    }
}

fn references(value: &Value, used: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get("$ref") {
                used.insert(target.clone());
            }
            fields.values().for_each(|value| references(value, used));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, used)),
        _ => {}
    }
}
