//! What the process's exit status means.

use std::process::ExitCode;

use api::config::ConfigError;

use crate::cmd::ctl::UsageError;
use crate::cmd::outside::OutsideError;
use crate::logging::LogError;
use crate::vm::control::{Outcome, RunError};

/// The exit statuses. A panic aborts the process, which is status 134 (SIGABRT) to a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest turned itself off, or the machine was ended on request.
    Success = 0,
    /// The VMM failed, or had to end a guest that did not end itself.
    Failure = 1,
    /// The configuration cannot work: a bad value, a file that is not there or is of another kind.
    Configuration = 2,
    /// The guest's kernel panicked.
    GuestPanic = 3,
    /// This host's KVM cannot be used.
    KvmNotUsable = 4,
}

impl ExitStatus {
    /// The status for `error`, by the first error in its chain that says what kind it is.
    pub fn of(error: &anyhow::Error) -> Self {
        error
            .chain()
            .find_map(|cause| {
                if let Some(error) = cause.downcast_ref::<RunError>() {
                    return Some(error.exit_status());
                }
                if let Some(error) = cause.downcast_ref::<OutsideError>() {
                    return error.is_configuration().then_some(Self::Configuration);
                }
                let configuration =
                    cause.is::<ConfigError>() || cause.is::<LogError>() || cause.is::<UsageError>();
                configuration.then_some(Self::Configuration)
            })
            .unwrap_or(Self::Failure)
    }
}

impl From<Outcome> for ExitStatus {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => Self::Success,
            Outcome::Panicked => Self::GuestPanic,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn bad_value_is_a_configuration_error_however_deep_it_lies() {
        let error = "size=0"
            .parse::<api::config::MemoryConfig>()
            .context("--memory")
            .unwrap_err();
        assert_eq!(ExitStatus::of(&error), ExitStatus::Configuration);
    }

    #[test]
    fn error_of_no_known_kind_is_a_failure() {
        assert_eq!(ExitStatus::of(&anyhow::anyhow!("?")), ExitStatus::Failure);
    }
}
