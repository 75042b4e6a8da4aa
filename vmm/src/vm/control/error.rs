//! Why a machine did not run, or did not end well.

use std::io;
use std::time::Duration;

use api::request::ApiError;

use crate::cmd::check::kvm::software_kvm;
use crate::exit_status::ExitStatus;
use crate::kvm::capabilities::NotUsable;
use crate::vcpu::Failure;
use crate::vm::build::BuildError;
use crate::wire::WireError;

/// Why a machine did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// KVM cannot be used.
    #[error("KVM cannot be used")]
    Kvm(#[from] NotUsable),
    /// Something that the configuration names could not be opened.
    #[error(transparent)]
    Wire(Box<WireError>),
    /// The machine could not be built.
    #[error(transparent)]
    Build(Box<BuildError>),
    /// A vCPU failed.
    #[error("{failure}{}", because(.software))]
    Vcpu {
        /// What is known about it.
        failure: Box<Failure>,
        /// Why this host's KVM is a software one, if it is.
        software: Option<String>,
    },
    /// The guest triple-faults again and again, or must not be started again.
    #[error("the guest crashed the processor and was not started again: {failure}{}", because(.software))]
    TripleFault {
        /// What is known about the vCPU.
        failure: Box<Failure>,
        /// Why this host's KVM is a software one, if it is.
        software: Option<String>,
    },
    /// The guest did not turn itself off in time.
    #[error("the guest did not turn itself off within {} s of the power button, and was ended{}", .0.as_secs_f32(), because(&software_kvm()))]
    ShutdownTimeout(Duration),
    /// A second signal.
    #[error("the guest was ended by a second signal before it had turned itself off{}", because(&software_kvm()))]
    SecondSignal,
    /// The host lacks something.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl From<WireError> for RunError {
    fn from(error: WireError) -> Self {
        Self::Wire(Box::new(error))
    }
}

impl From<BuildError> for RunError {
    fn from(error: BuildError) -> Self {
        Self::Build(Box::new(error))
    }
}

fn because(software: &Option<String>) -> String {
    match software {
        Some(reason) => format!("\n{reason}"),
        None => String::new(),
    }
}

impl RunError {
    /// The exit status that tells this error's kind.
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Kvm(_) => ExitStatus::KvmNotUsable,
            _ if self.is_configuration() => ExitStatus::Configuration,
            _ => ExitStatus::Failure,
        }
    }

    /// The answer to the request `verb` that failed so.
    pub(super) fn answer(&self, verb: &'static str) -> ApiError {
        ApiError::of(verb, self.is_configuration(), self)
    }

    /// Whether the configuration is at fault, and not the host or the VMM.
    fn is_configuration(&self) -> bool {
        match self {
            Self::Wire(error) => error.is_configuration(),
            Self::Build(error) => error.is_configuration(),
            _ => false,
        }
    }

    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_that_cannot_be_used_has_a_status_of_its_own() {
        let error = RunError::Kvm(NotUsable::Version { found: 11 });
        assert_eq!(error.exit_status() as u8, 4);
    }

    #[test]
    fn reason_of_a_software_kvm_stands_on_a_line_of_its_own() {
        assert_eq!(because(&Some("it is slow".to_owned())), "\nit is slow");
        assert_eq!(because(&None), "");
    }
}
