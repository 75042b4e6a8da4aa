//! `--serial`: the 16550 serial port.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::console::{check_mode, complete_mode};
use super::option::{self, OptionString, Pairs};
use super::section::Section;
use super::{ConfigError, ConsoleOutputMode};

/// The serial port. `--serial tty|null|off|pty|file=PATH|socket=PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SerialConfig {
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
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self::from(ConsoleOutputMode::Null)
    }
}

impl From<ConsoleOutputMode> for SerialConfig {
    fn from(mode: ConsoleOutputMode) -> Self {
        Self {
            mode,
            file: None,
            socket: None,
        }
    }
}

impl Section for SerialConfig {
    const UNSUPPORTED: &'static [&'static str] = &[];

    fn check(&self) -> Result<(), ConfigError> {
        check_mode(self.mode, self.file.as_deref(), self.socket.as_deref())
    }
}

impl OptionString for SerialConfig {
    const JSON_ONLY: &'static [&'static str] = &["mode"];
    const WORDS: &'static [&'static str] = &["off", "null", "tty", "pty"];

    fn complete(pairs: &mut Pairs) {
        complete_mode(pairs);
    }
}

impl FromStr for SerialConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
}
