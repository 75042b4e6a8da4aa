//! `--console` and the debug console, and what all consoles share.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString, Pairs};
use super::section::{Section, check_path};

/// Where a console's bytes go to and come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ConsoleMode)]
pub enum ConsoleOutputMode {
    /// There is no such device.
    #[default]
    Off,
    /// A pseudo-terminal that is made for it.
    Pty,
    /// Standard input and output.
    Tty,
    /// A file; there is no input.
    File,
    /// A Unix socket that a client can connect to.
    Socket,
    /// Nowhere; there is no input.
    Null,
}

/// Completes `tty` to `mode=tty`, and `file=PATH` by `mode=file`: on the command line the mode is the key.
pub(crate) fn complete_mode(pairs: &mut Pairs) {
    for mode in pairs.take_words() {
        pairs.push("mode", &mode);
    }
    for key in ["file", "socket"] {
        if pairs.get(key).is_some() {
            pairs.push("mode", key);
        }
    }
}

/// Checks that a path is there for the modes that need one, and for no other.
pub(crate) fn check_mode(
    mode: ConsoleOutputMode,
    file: Option<&Path>,
    socket: Option<&Path>,
) -> Result<(), ConfigError> {
    let paths = [
        ("file", file, ConsoleOutputMode::File),
        ("socket", socket, ConsoleOutputMode::Socket),
    ];
    for (field, path, needed_by) in paths {
        match path {
            None if mode == needed_by => {
                return Err(ConfigError::missing(field, &format!("{field}=PATH")));
            }
            Some(path) if mode != needed_by => {
                return Err(ConfigError::invalid(
                    field,
                    format!("{path:?}"),
                    format!("expected only with mode {needed_by:?}, not with {mode:?}"),
                ));
            }
            Some(path) => check_path(field, path)?,
            None => {}
        }
    }
    Ok(())
}

/// The virtio console. Only `off`, the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where its bytes go to. Only `Off`.
    pub mode: ConsoleOutputMode,
    /// File of mode `File`. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Socket of mode `Socket`. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Name of the device. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether a virtual IOMMU is in front. Only `false`.
    pub iommu: bool,
    /// PCI segment. Only 0.
    #[schema(format = "int16")]
    pub pci_segment: u16,
    /// PCI slot. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uint8")]
    pub pci_device_id: Option<u8>,
}

impl Section for ConsoleConfig {
    const UNSUPPORTED: &'static [&'static str] = &[
        "mode",
        "file",
        "socket",
        "id",
        "iommu",
        "pci_segment",
        "pci_device_id",
    ];

    fn check(&self) -> Result<(), ConfigError> {
        check_mode(self.mode, self.file.as_deref(), self.socket.as_deref())
    }
}

impl OptionString for ConsoleConfig {
    const JSON_ONLY: &'static [&'static str] = &["mode"];
    const WORDS: &'static [&'static str] = &["off", "null", "tty", "pty"];

    fn complete(pairs: &mut Pairs) {
        complete_mode(pairs);
    }
}

impl FromStr for ConsoleConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}

/// The debug console, one byte of port I/O. Only off, the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DebugConsoleConfig {
    /// Where its bytes go to. Only `Off`.
    pub mode: ConsoleOutputMode,
    /// File of mode `File`. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// I/O port. Only 0xe9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iobase: Option<u16>,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleOutputMode::Off,
            file: None,
            iobase: Some(0xe9),
        }
    }
}

impl Section for DebugConsoleConfig {
    const UNSUPPORTED: &'static [&'static str] = &["mode", "file", "iobase"];

    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}
