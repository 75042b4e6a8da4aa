//! What all parts of a configuration have in common.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ConfigError;

/// How many open descriptors come with a configuration for the device of a name, for the kernel or for the initial RAM
/// disk. A device that has no name yet is asked for by an empty one.
pub type Passed<'a> = &'a dyn Fn(&str) -> usize;

/// No descriptors come.
pub(crate) const NONE_PASSED: Passed<'static> = &|_| 0;

/// A part of the configuration that is checked on its own.
pub(crate) trait Section: Serialize + DeserializeOwned + Default {
    /// Fields that Cloud Hypervisor knows and Podvisor takes at their default value only.
    const UNSUPPORTED: &'static [&'static str];

    /// Checks the supported fields against each other and against what Podvisor can do.
    fn check(&self) -> Result<(), ConfigError>;

    /// Checks that what the part is backed by is named once: by a path, by a name or by descriptors that come with it.
    fn check_backing(&self, _passed: Passed<'_>) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Checks everything that can be said of this part alone. Errors name the field without the part.
    fn validate(&self) -> Result<(), ConfigError> {
        self.validate_with(NONE_PASSED)
    }

    /// The same for a part that comes with descriptors.
    fn validate_with(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        self.refuse_unsupported()?;
        self.check()?;
        self.check_backing(passed)
    }

    /// Refuses a value other than the default in any of [`Section::UNSUPPORTED`].
    ///
    /// Values are compared in their JSON form: one list of names is then enough for fields of all types.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        if Self::UNSUPPORTED.is_empty() {
            return Ok(());
        }
        let (given, default) = (to_json(self), to_json(&Self::default()));
        for &field in Self::UNSUPPORTED {
            let (given, default) = (given.get(field), default.get(field));
            if given != default {
                return Err(ConfigError::Unsupported {
                    field: field.to_owned(),
                    value: shown(given),
                    default: shown(default),
                });
            }
        }
        Ok(())
    }
}

/// The JSON form; `null` for what JSON cannot say, which none of the types here contains.
fn to_json(section: &impl Serialize) -> Value {
    serde_json::to_value(section).unwrap_or(Value::Null)
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(value) => value.to_string(),
    }
}

/// A part that Cloud Hypervisor has and Podvisor does not, kept as it came so that the refusal can quote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unsupported(Value);

impl Unsupported {
    /// Reads such a part where it is a list; `null` and `[]` count as not given.
    pub(crate) fn absent_when_empty<'de, D>(deserializer: D) -> Result<Option<Self>, D::Error>
    where
        D: serde::Deserializer<'de>,
    {
        let value = Value::deserialize(deserializer)?;
        let empty = match &value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        Ok((!empty).then_some(Self(value)))
    }
}

/// The identifier of a device: how API calls and logs name it.
pub(crate) fn check_id(id: Option<&str>) -> Result<(), ConfigError> {
    let Some(id) = id else { return Ok(()) };
    let fits = (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits || id.starts_with("__") {
        return Err(ConfigError::invalid(
            "id",
            format!("{id:?}"),
            "expected 1 to 64 printable ASCII characters without blanks, not starting with \"__\"",
        ));
    }
    Ok(())
}

/// Largest size of a split virtqueue (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// Size of a split virtqueue: a power of two (virtio 1.2, 2.7). A request needs a header, data and a status, so fewer
/// than four descriptors are of no use.
pub(crate) fn check_queue_size(queue_size: u16) -> Result<(), ConfigError> {
    if !queue_size.is_power_of_two() || !(4..=MAX_QUEUE_SIZE).contains(&queue_size) {
        return Err(ConfigError::invalid(
            "queue_size",
            queue_size,
            format!("expected a power of two from 4 to {MAX_QUEUE_SIZE}"),
        ));
    }
    Ok(())
}

/// A path that the kernel can take.
pub(crate) fn check_path(field: &str, path: &std::path::Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(ConfigError::invalid(
            field,
            format!("{path:?}"),
            "expected a path that is not empty and has no NUL byte",
        ));
    }
    Ok(())
}
