//! The document and what it says of the answers.

use super::*;
use crate::http::limits::MAX_BODY;
use crate::openapi::document;

#[test]
fn document_is_served() {
    let fixture = Fixture::new();
    assert_eq!(fixture.client().openapi().unwrap(), document());
}

#[test]
fn answers_have_the_codes_of_the_document() {
    let fixture = Fixture::new();
    let check = || {
        for call in Call::all() {
            let body = call.body.as_ref();
            let response = fixture
                .client()
                .call(call.method, &call.verb, body, &[])
                .unwrap();
            call.check(&response);
        }
    };
    // Without a machine, with one, and with one that runs.
    check();
    fixture.call(Method::Put, "vm.delete");
    fixture.create();
    check();
    fixture.call(Method::Put, "vm.delete");
    fixture.create();
    fixture.call(Method::Put, "vm.boot");
    check();
}

#[test]
fn refusals_of_bodies_are_in_the_document() {
    let fixture = Fixture::new();
    let too_large = json!("x".repeat(MAX_BODY));
    for call in Call::all()
        .iter()
        .filter(|call| call.responses.get("400").is_some())
    {
        let bodies = [json!([]), json!({"nobody_knows": 1})];
        let too_large = (call.verb == "vm.create").then_some(&too_large);
        for body in bodies.iter().chain(too_large) {
            let client = fixture.client();
            let response = client
                .call(call.method, &call.verb, Some(body), &[])
                .unwrap();
            call.check(&response);
            assert!(!response.is_success(), "{}: {body}", call.verb);
        }
    }
}

/// A call as the document has it.
struct Call {
    method: Method,
    verb: String,
    /// Its example, for calls that take a body.
    body: Option<Value>,
    responses: Value,
}

impl Call {
    /// All calls but those whose answer is no JSON.
    fn all() -> Vec<Self> {
        let document = document();
        let mut calls = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let verb = path.trim_start_matches('/').to_owned();
            if ["vm.events", "metrics"].contains(&verb.as_str()) {
                continue;
            }
            for (name, method) in [("get", Method::Get), ("put", Method::Put)] {
                let Some(operation) = item.get(name) else {
                    continue;
                };
                let content = &operation["requestBody"]["content"]["application/json"];
                calls.push(Self {
                    method,
                    verb: verb.clone(),
                    body: (!content.is_null())
                        .then(|| content.get("example").cloned().unwrap_or(json!({}))),
                    responses: operation["responses"].clone(),
                });
            }
        }
        calls
    }

    /// Checks that a response is one of those that the document has, with a body or without.
    fn check(&self, response: &Response) {
        let (verb, status) = (&self.verb, response.status.to_string());
        let declared = self.responses.get(&status);
        assert!(declared.is_some(), "{verb}: {response:?}");
        assert_eq!(
            response.body.is_empty(),
            status == "204",
            "{verb}: {response:?}"
        );
        if !response.is_success() {
            refusal(response, response.status);
        }
    }
}
