//! The OpenAPI document of the REST API.
//!
//! [`document`] makes it from the types that the API reads and writes. [`DOCUMENT`] is the same as committed in
//! `resources/openapi.json`, ready to be served; a test compares the two, and another compares the document with that of
//! Cloud Hypervisor. After a change of the types:
//!
//! ```text
//! cargo run -p api --example openapi > resources/openapi.json
//! ```
//!
//! Extensions used in it:
//! - `x-podvisor-addition`: Cloud Hypervisor does not have this path or field.
//! - `x-podvisor-only-default`: of this field only the default is accepted, in the spellings that its `enum` lists.

pub(crate) mod foreign;
mod paths;
mod rules;
mod schemas;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

/// The document as committed, in JSON.
pub const DOCUMENT: &str = include_str!("../../resources/openapi.json");

/// Marks what Cloud Hypervisor does not have.
const ADDITION: &str = "x-podvisor-addition";

/// Makes the document: OpenAPI 3.1, with all schemas in `components`.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Podvisor API",
            "description": "Builds and drives one virtual machine, over HTTP on a Unix socket. The paths, fields and \
                            defaults are those of the Cloud Hypervisor API; what only Podvisor has is marked \
                            x-podvisor-addition.",
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            "version": env!("CARGO_PKG_VERSION"),
        },
        "servers": [{"url": "http://localhost/api/v1"}],
        "paths": paths::paths(),
        "components": {
            "schemas": schemas::schemas(),
            "responses": paths::error_responses(),
        },
    })
}

fn schema_ref(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}
