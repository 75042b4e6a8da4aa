//! Why a request was not carried out.

use std::error::Error;

use super::VmState;
use crate::config::ConfigError;

/// Why a [`Request`](super::Request) was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// There is no machine. 404.
    #[error("{verb} needs a VM, and there is none: create one first (vm.create)")]
    NotCreated {
        /// What was asked for, as in `vm.pause`.
        verb: &'static str,
    },
    /// There is one already. 409.
    #[error("{verb} is not possible: there is a VM already; delete it first (vm.delete)")]
    AlreadyCreated {
        /// What was asked for.
        verb: &'static str,
    },
    /// The machine's state does not allow it. 405.
    #[error("{verb} is not possible while the VM is {state}, expected {expected}")]
    WrongState {
        /// What was asked for.
        verb: &'static str,
        /// What the machine does.
        state: VmState,
        /// The states that allow it, in words.
        expected: &'static str,
    },
    /// No device has that name. 404.
    #[error("no device has the id {id:?}")]
    UnknownDevice {
        /// The name as given.
        id: String,
    },
    /// Another device has that name. 409.
    #[error("{field} {value:?} belongs to another device of the VM")]
    Taken {
        /// The field, as in `id`.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// A value that cannot be used. 400.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// It cannot work with the values that it was given, such as a file that is not there; nothing was changed. 400.
    #[error("{verb} cannot be done")]
    Refused {
        /// What was asked for.
        verb: &'static str,
        /// What is wrong, from the outermost cause to the innermost.
        causes: Vec<String>,
    },
    /// The guest has not done yet what it was asked for before. 429.
    #[error("{verb} has to wait: {what}")]
    Pending {
        /// What was asked for.
        verb: &'static str,
        /// What is waited for.
        what: String,
    },
    /// Part of the API, and not part of this VMM. 501.
    #[error("{verb} is not supported: {reason}")]
    NotSupported {
        /// What was asked for.
        verb: &'static str,
        /// Why.
        reason: String,
    },
    /// It was tried and failed; nothing was changed. 500.
    #[error("{verb} failed")]
    Failed {
        /// What was asked for.
        verb: &'static str,
        /// What went wrong, from the outermost cause to the innermost.
        causes: Vec<String>,
    },
    /// The VMM ended before it could answer. 500.
    #[error("the VMM has ended")]
    Gone,
}

impl ApiError {
    /// A failure of `verb` by `error`, with all its causes.
    pub fn failed(verb: &'static str, error: &dyn Error) -> Self {
        let causes = chain(error);
        Self::Failed { verb, causes }
    }

    /// A refusal of `verb` for its values, with all that `error` says of them.
    pub fn refused(verb: &'static str, error: &dyn Error) -> Self {
        let causes = chain(error);
        Self::Refused { verb, causes }
    }

    /// The answer to `verb`, which ended in `error`: a refusal if its own values are at fault, else a failure.
    pub fn of(verb: &'static str, values_at_fault: bool, error: &dyn Error) -> Self {
        if values_at_fault {
            Self::refused(verb, error)
        } else {
            Self::failed(verb, error)
        }
    }

    /// The status code of its HTTP response.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) | Self::Refused { .. } => 400,
            Self::NotCreated { .. } | Self::UnknownDevice { .. } => 404,
            Self::WrongState { .. } => 405,
            Self::AlreadyCreated { .. } | Self::Taken { .. } => 409,
            Self::Pending { .. } => 429,
            Self::Failed { .. } | Self::Gone => 500,
            Self::NotSupported { .. } => 501,
        }
    }

    /// All that is to be said, from the error itself to its innermost cause: the body of its HTTP response.
    pub fn messages(&self) -> Vec<String> {
        let mut messages = vec![self.to_string()];
        if let Self::Failed { causes, .. } | Self::Refused { causes, .. } = self {
            messages.extend(causes.iter().cloned());
        }
        messages
    }
}

fn chain(error: &dyn Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        causes.push(error.to_string());
        source = error.source();
    }
    causes
}
