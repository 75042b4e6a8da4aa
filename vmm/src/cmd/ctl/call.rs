//! One call: what is sent, and what becomes of the answer.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::client::{Client, Method, Response};
use serde_json::Value;

use super::error::{Failure, UsageError};
use super::show;

/// What is asked of the VMM.
#[derive(Debug)]
pub(super) enum Call {
    /// A request with one answer.
    Api {
        method: Method,
        /// Its name in the API, as in `vm.boot`.
        verb: &'static str,
        body: Option<Value>,
        descriptors: Vec<OwnedFd>,
        shown: Shown,
    },
    /// What is measured.
    Metrics,
    /// Events, until the VMM ends.
    Events,
}

/// What the answer is to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Ping,
    Info,
    Counters,
    /// Where a device is; nothing when the machine is not booted.
    Device,
    /// Itself.
    Document,
    Nothing,
}

impl Call {
    pub(super) fn get(verb: &'static str, shown: Shown) -> Self {
        Self::Api {
            method: Method::Get,
            verb,
            body: None,
            descriptors: Vec::new(),
            shown,
        }
    }

    /// A verb that takes nothing.
    pub(super) fn put(verb: &'static str) -> Self {
        Self::put_shown(verb, None, Vec::new(), Shown::Nothing)
    }

    pub(super) fn put_with(verb: &'static str, body: Value) -> Self {
        Self::put_shown(verb, Some(body), Vec::new(), Shown::Nothing)
    }

    /// A verb that adds a device, of which `descriptors` are part.
    pub(super) fn add(verb: &'static str, body: Value, descriptors: Vec<OwnedFd>) -> Self {
        Self::put_shown(verb, Some(body), descriptors, Shown::Device)
    }

    pub(super) fn put_shown(
        verb: &'static str,
        body: Option<Value>,
        descriptors: Vec<OwnedFd>,
        shown: Shown,
    ) -> Self {
        Self::Api {
            method: Method::Put,
            verb,
            body,
            descriptors,
            shown,
        }
    }

    /// Makes the call and writes its answer to `output`: as JSON, or for a person.
    pub(super) fn make(
        self,
        client: &Client,
        json: bool,
        output: &mut impl Write,
    ) -> Result<(), Failure> {
        match self {
            Self::Api {
                method,
                verb,
                body,
                descriptors,
                shown,
            } => {
                let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                let response = client.call(method, verb, body.as_ref(), &borrowed)?;
                print(shown, response.success()?, json, output)
            }
            Self::Metrics if json => Err(UsageError::NoJson.into()),
            Self::Metrics => {
                output.write_all(client.metrics()?.as_bytes())?;
                Ok(output.flush()?)
            }
            Self::Events => {
                for event in client.events()? {
                    let event = event?;
                    if json {
                        writeln!(output, "{}", show::json(&event))?;
                    } else {
                        writeln!(output, "{}", show::event(&event))?;
                    }
                    output.flush()?;
                }
                Ok(())
            }
        }
    }
}

/// Writes what a call that was carried out answers.
fn print(
    shown: Shown,
    response: Response,
    json: bool,
    output: &mut impl Write,
) -> Result<(), Failure> {
    if response.body.is_empty() {
        return Ok(());
    }
    let text = match shown {
        _ if json => response.body,
        Shown::Ping => show::ping(&response.json()?),
        Shown::Info => show::info(&response.json()?),
        Shown::Counters => show::counters(&response.json()?),
        Shown::Device => show::device(&response.json()?),
        Shown::Document | Shown::Nothing => response.body,
    };
    writeln!(output, "{}", text.trim_end())?;
    Ok(output.flush()?)
}
