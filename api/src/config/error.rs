//! What can be wrong with a configuration.

use thiserror::Error;

/// One thing that is wrong with a configuration, with the name of the field it is about.
///
/// Fields are named as the person wrote them: `boot` in `--cpus boot=0`, `cpus.boot_vcpus` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that no option of this name has.
    #[error("unknown key {key:?}; known keys: {known}")]
    UnknownKey {
        /// The key as given.
        key: String,
        /// The keys that can be given, separated by a comma and a blank.
        known: String,
    },
    /// A key that was given more than once.
    #[error("key {key:?} is given more than once")]
    DuplicateKey {
        /// The key as given.
        key: String,
    },
    /// An option string that is not `key=value,key=value`.
    #[error("{found:?}: {problem}")]
    Syntax {
        /// The piece that could not be read.
        found: String,
        /// What was expected.
        problem: String,
    },
    /// A required field was not given.
    #[error("{field} is missing: expected {expected}")]
    Missing {
        /// Name of the field.
        field: String,
        /// What was expected.
        expected: String,
    },
    /// A value that the field does not take.
    #[error("bad value {value} for {field}: {problem}")]
    Invalid {
        /// Name of the field.
        field: String,
        /// The value as given.
        value: String,
        /// What was expected.
        problem: String,
    },
    /// A value that Cloud Hypervisor takes and this release of Podvisor does not.
    #[error(
        "{field} is known to the Cloud Hypervisor API but not supported by podvisor: \
         {value} was given, only the default ({default}) is accepted"
    )]
    Unsupported {
        /// Name of the field.
        field: String,
        /// The value as given.
        value: String,
        /// The only value that is accepted.
        default: String,
    },
    /// JSON that is malformed or does not fit the types.
    #[error("{field}: {problem}")]
    Json {
        /// Path of the field, `disks[0].path`, or `the document`.
        field: String,
        /// What the JSON parser says of it.
        problem: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(
        field: &str,
        value: impl std::fmt::Display,
        problem: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            field: field.to_owned(),
            value: value.to_string(),
            problem: problem.into(),
        }
    }

    pub(crate) fn missing(field: &str, expected: &str) -> Self {
        Self::Missing {
            field: field.to_owned(),
            expected: expected.to_owned(),
        }
    }

    /// What the JSON parser says of the field at `path`, which ends in `?` where a name was being read.
    pub(crate) fn json(path: &str, problem: &serde_json::Error) -> Self {
        let known = path.trim_end_matches(['?', '.']);
        Self::Json {
            field: if known.is_empty() {
                "the document"
            } else {
                known
            }
            .to_owned(),
            problem: problem.to_string(),
        }
    }

    /// Gives the field another name, computed from the one it has.
    pub(crate) fn map_field(mut self, name: impl FnOnce(&str) -> String) -> Self {
        match &mut self {
            Self::Missing { field, .. }
            | Self::Invalid { field, .. }
            | Self::Unsupported { field, .. }
            | Self::Json { field, .. } => *field = name(field),
            Self::UnknownKey { .. } | Self::DuplicateKey { .. } | Self::Syntax { .. } => {}
        }
        self
    }

    /// Puts the name of the section in front of the field's name.
    pub(crate) fn within(self, section: &str) -> Self {
        self.map_field(|field| format!("{section}.{field}"))
    }
}
