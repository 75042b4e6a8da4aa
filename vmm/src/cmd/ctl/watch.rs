//! Verbs that tell something and change nothing.

use clap::Subcommand;

use super::call::{Call, Shown};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Tell whether the VMM answers, and which it is
    Ping,
    /// Tell what the VM is made of and does
    Info,
    /// Tell what the VM's devices have counted
    Counters,
    /// Tell what happens from now on, until interrupted or the VMM ends
    Events,
    /// Print all measurements, in the format of OpenMetrics
    Metrics,
    /// Print the OpenAPI document of the API
    Openapi,
}

impl Verb {
    pub(super) fn into_call(self) -> Call {
        match self {
            Self::Ping => Call::get("vmm.ping", Shown::Ping),
            Self::Info => Call::get("vm.info", Shown::Info),
            Self::Counters => Call::get("vm.counters", Shown::Counters),
            Self::Events => Call::Events,
            Self::Metrics => Call::Metrics,
            Self::Openapi => Call::get("openapi.json", Shown::Document),
        }
    }
}
