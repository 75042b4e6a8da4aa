//! `--console`, `--console-port` and the debug console, and what all consoles share.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString, Pairs};
use super::section::{Section, check_id, check_path};

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

/// Checks that a path is there for the modes that need one, and for no other. The path of a pseudo-terminal is what
/// vm.info tells: what was told there can be given again.
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
            Some(_) if field == "file" && mode == ConsoleOutputMode::Pty => {}
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

/// Ports that a console can have beside it.
const MAX_PORTS: usize = 30;

/// Longest name of a port in bytes.
const MAX_PORT_NAME: usize = 64;

/// The virtio console, `hvc0` in a Linux guest. `--console off|null|tty|pty|file=PATH|socket=PATH`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where its bytes go to and come from.
    pub mode: ConsoleOutputMode,
    /// File of mode `File`. In mode `Pty`, vm.info tells here which pseudo-terminal it is; when given, it means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub file: Option<PathBuf>,
    /// Socket of mode `Socket`, which is made. It has one client at a time, who sees the last output again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub socket: Option<PathBuf>,
    /// Name of the device. [`VmConfig::assign_ids`](super::VmConfig::assign_ids) gives it one when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^(?!__)[!-~]+$")]
    pub id: Option<String>,
    /// Whether a virtual IOMMU is in front. Only `false`.
    pub iommu: bool,
    /// PCI segment. Only 0.
    #[schema(format = "int16")]
    pub pci_segment: u16,
    /// PCI slot. Not supported: slots are given in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uint8")]
    pub pci_device_id: Option<u8>,
    /// Further ports, which carry bytes between a program of the guest and one of the host. The guest finds them by their
    /// names, no two of which are the same. They need no console.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 30, extensions(("x-podvisor-addition" = json!(true))))]
    pub ports: Option<Vec<ConsolePortConfig>>,
}

impl Section for ConsoleConfig {
    const UNSUPPORTED: &'static [&'static str] = &["iommu", "pci_segment", "pci_device_id"];

    fn check(&self) -> Result<(), ConfigError> {
        check_mode(self.mode, self.file.as_deref(), self.socket.as_deref())?;
        check_id(self.id.as_deref())?;
        let ports = self.ports.as_deref().unwrap_or_default();
        if ports.len() > MAX_PORTS {
            return Err(ConfigError::invalid(
                "ports",
                format!("of {} ports", ports.len()),
                format!("expected at most {MAX_PORTS} ports"),
            ));
        }
        for (index, port) in ports.iter().enumerate() {
            let within = format!("ports[{index}]");
            Section::validate(port).map_err(|error| error.within(&within))?;
            if ports[..index].iter().any(|other| other.name == port.name) {
                return Err(ConfigError::invalid(
                    &format!("{within}.name"),
                    format!("{:?}", port.name),
                    "expected a name that no other port has",
                ));
            }
        }
        Ok(())
    }
}

impl OptionString for ConsoleConfig {
    const JSON_ONLY: &'static [&'static str] = &["mode", "ports"];
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

/// A port that the guest finds by its name: `/dev/virtio-ports/NAME` in Linux.
/// `--console-port name=NAME,socket=PATH|file=PATH|tty|pty|null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConsolePortConfig {
    /// The name: 1 to 64 printable ASCII characters without blanks and slashes.
    #[schema(min_length = 1, max_length = 64, pattern = "^[!-.0-~]+$")]
    pub name: String,
    /// Where its bytes go to and come from; not `Off`.
    #[schema(inline = false)]
    pub mode: ConsoleOutputMode,
    /// File of mode `File`. In mode `Pty`, vm.info tells here which pseudo-terminal it is; when given, it means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub file: Option<PathBuf>,
    /// Socket of mode `Socket`, which is made. It has one client at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub socket: Option<PathBuf>,
}

impl Default for ConsolePortConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            mode: ConsoleOutputMode::Socket,
            file: None,
            socket: None,
        }
    }
}

impl Section for ConsolePortConfig {
    const UNSUPPORTED: &'static [&'static str] = &[];

    fn check(&self) -> Result<(), ConfigError> {
        let name = &self.name;
        if name.is_empty() {
            return Err(ConfigError::missing("name", "name=NAME"));
        }
        let fits = name.len() <= MAX_PORT_NAME
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if !fits {
            return Err(ConfigError::invalid(
                "name",
                format!("{name:?}"),
                format!(
                    "expected 1 to {MAX_PORT_NAME} printable ASCII characters without blanks and slashes"
                ),
            ));
        }
        if self.mode == ConsoleOutputMode::Off {
            return Err(ConfigError::invalid(
                "mode",
                "Off",
                "expected Socket, File, Tty, Pty or Null",
            ));
        }
        check_mode(self.mode, self.file.as_deref(), self.socket.as_deref())
    }
}

impl OptionString for ConsolePortConfig {
    const JSON_ONLY: &'static [&'static str] = &["mode"];
    const WORDS: &'static [&'static str] = &["null", "tty", "pty"];

    fn complete(pairs: &mut Pairs) {
        complete_mode(pairs);
    }
}

impl FromStr for ConsolePortConfig {
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
