//! What can be asked of a machine that exists.
//!
//! A [`Request`] is one verb of the API. Whoever owns the machine implements [`Service`]; the command line, signals and
//! the REST server are all callers of it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::VmConfig;

/// One thing to do with the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Stop all vCPUs and devices, keeping their state. `vm.pause`.
    Pause,
    /// Let a paused machine run on. `vm.resume`.
    Resume,
    /// Press the ACPI power button: the guest is asked to shut down. `vm.power-button`.
    PowerButton,
    /// End the machine now, without asking the guest. `vm.shutdown`.
    Shutdown,
    /// Start the machine anew, without asking the guest. `vm.reboot`.
    Reboot,
    /// Tell what the machine is and does. `vm.info`.
    Info,
}

impl Request {
    /// The verb as it is spelled in a path of the REST API.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::PowerButton => "vm.power-button",
            Self::Shutdown => "vm.shutdown",
            Self::Reboot => "vm.reboot",
            Self::Info => "vm.info",
        }
    }
}

/// The answer to a [`Request`] that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Reply {
    /// What [`Request::Info`] asked for.
    Info(Box<VmInfo>),
    /// It is done; there is nothing to tell.
    Done,
}

/// What the machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// What it is made of.
    pub config: VmConfig,
    /// What it does.
    pub state: VmState,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// It has not started yet.
    Created,
    /// Its vCPUs run.
    Running,
    /// It has ended.
    Shutdown,
    /// Its vCPUs and devices stand still.
    Paused,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Shutdown => "shut down",
            Self::Paused => "paused",
        })
    }
}

/// Why a [`Request`] was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ApiError {
    /// The machine's state does not allow it.
    #[error("{verb} is not possible while the machine is {state}")]
    WrongState {
        /// What was asked for, as in `vm.pause`.
        verb: String,
        /// What the machine does.
        state: VmState,
    },
    /// The machine ended before it could answer.
    #[error("the machine has ended")]
    Gone,
    /// It was tried and failed.
    #[error("{verb} failed: {reason}")]
    Failed {
        /// What was asked for, as in `vm.pause`.
        verb: String,
        /// What went wrong, in words.
        reason: String,
    },
}

/// Something that carries out requests, one at a time and in their order.
pub trait Service: Send + Sync {
    /// Carries out one request and waits for its end.
    ///
    /// # Errors
    /// Why it was not carried out. The machine is as it was before, or has ended.
    fn call(&self, request: Request) -> Result<Reply, ApiError>;
}
