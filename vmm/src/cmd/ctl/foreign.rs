//! Bodies of verbs that Podvisor has no configuration type for.
//!
//! The VMM judges them. What is given as `key=value` becomes JSON by what the API's document says of the verb's fields; a key
//! that it does not know, or a value that does not fit, goes as the text that was given.

use std::convert::Infallible;
use std::str::FromStr;

use api::config::{ByteSize, split_pairs};
use api::openapi::DOCUMENT;
use serde_json::{Map, Value};

use super::UsageError;

/// JSON, `key=value,...` or a bare value, as it was given.
#[derive(Clone, Debug)]
pub(super) struct Foreign(String);

impl FromStr for Foreign {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl Foreign {
    /// The body of `verb`. A value without a key is that of `bare`, if the verb has such a key.
    pub(super) fn body(self, verb: &str, bare: Option<&str>) -> Result<Value, UsageError> {
        let Self(text) = self;
        let problem = |problem: String| UsageError::Text {
            text: text.clone(),
            problem,
        };
        if text.trim_start().starts_with('{') {
            let object: Result<Map<_, _>, _> = serde_json::from_str(&text);
            return object
                .map(Value::Object)
                .map_err(|error| problem(error.to_string()));
        }
        if let Some(bare) = bare
            && !text.contains('=')
        {
            return Ok(Map::from_iter([(bare.to_owned(), text.into())]).into());
        }
        let pairs = split_pairs(&text).map_err(|error| problem(error.to_string()))?;
        let fields = Fields::of(verb);
        let typed = |(key, value): (String, String)| {
            let value = fields.read(&key, value);
            (key, value)
        };
        Ok(pairs.into_iter().map(typed).collect())
    }
}

/// The fields of a verb's body by name, as the API's document describes them.
struct Fields(Value);

impl Fields {
    fn of(verb: &str) -> Self {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
        let content = &document["paths"][format!("/{verb}")]["put"]["requestBody"]["content"];
        let reference = content["application/json"]["schema"]["$ref"].as_str();
        let schema = reference
            .and_then(|reference| reference.strip_prefix('#'))
            .and_then(|pointer| document.pointer(pointer));
        Self(schema.map_or(Value::Null, |schema| schema["properties"].clone()))
    }

    /// What `text` is as the value of `key`.
    fn read(&self, key: &str, text: String) -> Value {
        let of_type = &self.0[key]["type"];
        let is = |name: &str| match of_type {
            Value::Array(names) => names.iter().any(|known| known == name),
            known => known == name,
        };
        let value = if is("integer") {
            text.parse().ok().map(|size: ByteSize| size.bytes().into())
        } else if is("boolean") {
            match text.as_str() {
                "on" | "true" => Some(true.into()),
                "off" | "false" => Some(false.into()),
                _ => None,
            }
        } else if is("array") {
            serde_json::from_str(&text).ok().filter(Value::is_array)
        } else {
            None
        };
        value.unwrap_or(Value::String(text))
    }
}
