//! Saved state: versioned data apart from the live device.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why a section could not be turned back into state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The section belongs to another kind of device.
    #[error("saved state is of kind {found:?}, expected {expected:?}")]
    Kind {
        /// The kind the section names.
        found: String,
        /// The kind the device restores.
        expected: &'static str,
    },
    /// The section was written by a version this build cannot read.
    #[error("saved state of {kind:?} has version {found}, this build reads up to {supported}")]
    Version {
        /// The section's kind.
        kind: &'static str,
        /// The version the section names.
        found: u16,
        /// The newest version this build reads.
        supported: u16,
    },
    /// The bytes are not the fields of the kind.
    #[error("saved state of {kind:?} cannot be decoded")]
    Decode {
        /// The section's kind.
        kind: &'static str,
        /// What the decoder met.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// The fields are readable and no device could hold them.
    #[error("saved state of {kind:?}: {field} is {value}, expected {expected}")]
    Field {
        /// The section's kind.
        kind: &'static str,
        /// The field's name.
        field: &'static str,
        /// What the field holds.
        value: String,
        /// What would be accepted.
        expected: String,
    },
}

/// The saved state of one device: its kind, the version of its fields, and the fields as a MessagePack map by name, so
/// that a later version can add fields and still read this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    kind: String,
    version: u16,
    payload: Vec<u8>,
}

impl Section {
    /// Encodes `state`.
    pub fn new(kind: &'static str, version: u16, state: &impl Serialize) -> Self {
        Self {
            kind: kind.to_owned(),
            version,
            // Encoding into memory fails only for a type that refuses to be serialized, which no state does.
            payload: rmp_serde::to_vec_named(state).expect("device state encodes into memory"),
        }
    }

    /// The kind of device this section belongs to.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Decodes the fields, for the device `kind` in versions 1 to `supported`.
    ///
    /// # Errors
    ///
    /// [`StateError`] names the kind and what does not fit.
    pub fn decode<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        supported: u16,
    ) -> Result<T, StateError> {
        if self.kind != kind {
            return Err(StateError::Kind {
                found: self.kind.clone(),
                expected: kind,
            });
        }
        if self.version == 0 || self.version > supported {
            return Err(StateError::Version {
                kind,
                found: self.version,
                supported,
            });
        }
        rmp_serde::from_slice(&self.payload).map_err(|source| StateError::Decode { kind, source })
    }
}

/// A device whose state can be taken out and put into a fresh device of the same configuration.
///
/// There are no default bodies: each device decides what its state is.
pub trait Persist {
    /// The state as of now. The device is quiescent: its machine is paused, and its queues were handed back.
    fn save(&self) -> Section;

    /// Puts `section` into this device, which has not run yet.
    ///
    /// # Errors
    ///
    /// [`StateError`]; the device is then unchanged.
    fn restore(&mut self, section: &Section) -> Result<(), StateError>;
}
