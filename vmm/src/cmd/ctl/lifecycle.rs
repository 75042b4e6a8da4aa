//! Verbs that lead a VM from its creation to its end.

use std::fs;
use std::io::{self, Read};
use std::os::fd::RawFd;

use clap::{Subcommand, ValueHint};
use serde_json::{Map, Value, json};

use super::UsageError;
use super::call::{Call, Shown};
use super::descriptor::duplicate_all;

/// The name of standard input where a file is asked for.
const STDIN: &str = "-";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a VM, without booting it, from a configuration in JSON
    Create {
        /// File of the configuration; - is standard input
        #[arg(value_name = "FILE", default_value = STDIN, value_hint = ValueHint::FilePath)]
        file: String,
        /// Pass open descriptor N for the disk or network of that id, for kernel or for initramfs. May be repeated
        #[arg(long = "fd", value_name = "ID=N", value_parser = passed)]
        fds: Vec<(String, RawFd)>,
    },
    /// Boot the VM
    Boot,
    /// Let the VM stand still
    Pause,
    /// Let a paused VM run on
    Resume,
    /// Press the power button: the guest is asked to shut down
    PowerButton,
    /// Start the VM anew, without asking the guest
    Reboot,
    /// End the VM now, without asking the guest; it can be booted again
    Shutdown,
    /// Forget the VM, ending it if it runs
    Delete,
    /// Raise a non-maskable interrupt
    Nmi,
    /// End the VMM, and the VM with it
    ShutdownVmm,
}

impl Verb {
    pub(super) fn into_call(self) -> Result<Call, UsageError> {
        Ok(Call::put(match self {
            Self::Create { file, fds } => return create(&file, fds, io::stdin()),
            Self::Boot => "vm.boot",
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::PowerButton => "vm.power-button",
            Self::Reboot => "vm.reboot",
            Self::Shutdown => "vm.shutdown",
            Self::Delete => "vm.delete",
            Self::Nmi => "vm.nmi",
            Self::ShutdownVmm => "vmm.shutdown",
        }))
    }
}

/// Creates the VM of `file`, or of `stdin`, whose descriptors are `fds` by the ids of their devices.
pub(super) fn create(
    file: &str,
    fds: Vec<(String, RawFd)>,
    mut stdin: impl Read,
) -> Result<Call, UsageError> {
    let descriptors = duplicate_all(fds.iter().map(|(_, fd)| *fd))?;
    let mut text = String::new();
    let (name, read) = if file == STDIN {
        ("standard input", stdin.read_to_string(&mut text).map(drop))
    } else {
        (file, fs::read_to_string(file).map(|read| text = read))
    };
    let name = || name.to_owned();
    read.map_err(|source| UsageError::File {
        file: name(),
        source,
    })?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|source| UsageError::Json {
            file: name(),
            source,
        })?;
    if !fds.is_empty() {
        if config.contains_key("fds") {
            return Err(UsageError::TwoMaps { file: name() });
        }
        let mut indexes: Map<String, Value> = Map::new();
        for (index, (id, _)) in fds.into_iter().enumerate() {
            let of_device = indexes.entry(id).or_insert_with(|| json!([]));
            if let Value::Array(of_device) = of_device {
                of_device.push(index.into());
            }
        }
        config.insert("fds".to_owned(), indexes.into());
    }
    let body = Some(config.into());
    Ok(Call::put_shown(
        "vm.create",
        body,
        descriptors,
        Shown::Nothing,
    ))
}

/// An id and the number of an open descriptor.
fn passed(text: &str) -> Result<(String, RawFd), String> {
    // The id may have such a sign, the number has not.
    let pair = text.rsplit_once('=').filter(|(id, _)| !id.is_empty());
    let number = pair.and_then(|(id, fd)| Some((id.to_owned(), fd.parse().ok()?)));
    number
        .filter(|(_, fd)| *fd > 2)
        .ok_or_else(|| "expected ID=N, with N the number of a descriptor above 2".to_owned())
}
