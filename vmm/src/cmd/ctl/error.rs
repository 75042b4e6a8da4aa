//! Why a call was not made, or has no result.

use std::io;
use std::os::fd::RawFd;

use api::client::ClientError;
use thiserror::Error;

/// Arguments that cannot be used. Nothing was sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UsageError {
    /// A descriptor that cannot be passed on.
    #[error("fd {fd} cannot be passed on: expected one that the starting process opened")]
    Descriptor {
        /// Its number as given.
        fd: RawFd,
        /// What the host said.
        source: io::Error,
    },
    /// A file that cannot be read.
    #[error("cannot read {file}")]
    File {
        /// The file as given, or `standard input`.
        file: String,
        /// What the host said.
        source: io::Error,
    },
    /// A file that is not the configuration of a machine.
    #[error("{file} is not the JSON of a VM")]
    Json {
        /// The file as given, or `standard input`.
        file: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Descriptors that are named in two places.
    #[error("{file} has fds already, expected them either there or by --fd")]
    TwoMaps {
        /// The file as given, or `standard input`.
        file: String,
    },
    /// A text that is neither JSON nor pairs.
    #[error("bad value {text:?}: {problem}")]
    Text {
        /// The text as given.
        text: String,
        /// What was expected.
        problem: String,
    },
    /// `--json` of something that has no JSON.
    #[error("--json: metrics are OpenMetrics text, of which there is no JSON")]
    NoJson,
}

/// Why there is no result.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The VMM refused, or is not there.
    #[error(transparent)]
    Call(#[from] ClientError),
    /// Nobody can be told what it answered.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// What a person is told of `error`, line by line.
pub(super) fn lines(error: &ClientError) -> Vec<String> {
    let ClientError::Connect { path, source } = error else {
        return error.messages();
    };
    let problem = match source.kind() {
        io::ErrorKind::NotFound => {
            "there is no such socket: no VMM serves its API there".to_owned()
        }
        // Connecting to a file of another kind fails alike.
        io::ErrorKind::ConnectionRefused => {
            "nobody listens: it is no socket, or its VMM has ended".to_owned()
        }
        _ => source.to_string(),
    };
    vec![format!("--api-socket {}: {problem}", path.display())]
}
