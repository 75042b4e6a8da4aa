//! Verbs that bring the state of a VM somewhere else.

use api::request::CoredumpConfig;
use clap::Subcommand;
use serde_json::json;

use super::UsageError;
use super::call::Call;
use super::foreign::Foreign;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write an ELF core of the guest's memory and registers
    Coredump {
        /// File that is made: file:///PATH
        #[arg(value_name = "URL")]
        destination_url: String,
    },
    /// Save the VM
    Snapshot {
        /// Directory to save it to: file:///PATH
        #[arg(value_name = "URL")]
        destination_url: String,
    },
    /// Restore a VM that was saved
    Restore {
        /// From where, and how: source_url=URL,... or JSON
        #[arg(value_name = "CONFIG")]
        source: Foreign,
    },
    /// Move the VM to another VMM
    SendMigration {
        /// To where, and how: URL, destination_url=URL,... or JSON
        #[arg(value_name = "CONFIG")]
        destination: Foreign,
    },
    /// Take the VM of another VMM
    ReceiveMigration {
        /// Where it comes, and how: URL, receiver_url=URL,... or JSON
        #[arg(value_name = "CONFIG")]
        receiver: Foreign,
    },
}

impl Verb {
    pub(super) fn into_call(self) -> Result<Call, UsageError> {
        let put = |verb, text: Foreign, bare| Ok(Call::put_with(verb, text.body(verb, bare)?));
        match self {
            Self::Coredump { destination_url } => {
                let body = json!(CoredumpConfig { destination_url });
                Ok(Call::put_with("vm.coredump", body))
            }
            Self::Snapshot { destination_url } => {
                let body = json!({"destination_url": destination_url});
                Ok(Call::put_with("vm.snapshot", body))
            }
            Self::Restore { source } => put("vm.restore", source, None),
            Self::SendMigration { destination } => {
                put("vm.send-migration", destination, Some("destination_url"))
            }
            Self::ReceiveMigration { receiver } => {
                put("vm.receive-migration", receiver, Some("receiver_url"))
            }
        }
    }
}
