//! `--api-socket` and `--event-monitor`: by which file or descriptor the outside is reached.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::option::{self, OptionString};
use super::section::{Section, check_path};

/// A file by its path, or a descriptor that the starting process opened: `PATH`, `path=PATH` or `fd=N`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointConfig {
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The number of the descriptor, at least 3: those below are the standard ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
}

impl Section for EndpointConfig {
    const UNSUPPORTED: &'static [&'static str] = &[];

    fn check(&self) -> Result<(), ConfigError> {
        match (&self.path, self.fd) {
            (Some(path), None) => check_path("path", path),
            (None, Some(fd)) if fd >= 3 => Ok(()),
            (None, Some(fd)) => Err(ConfigError::invalid(
                "fd",
                fd,
                "expected the number of an open descriptor, at least 3",
            )),
            (None, None) => Err(ConfigError::missing("path", "path=PATH or fd=N")),
            (Some(_), Some(fd)) => Err(ConfigError::invalid(
                "fd",
                fd,
                "expected either path or fd, not both",
            )),
        }
    }
}

impl OptionString for EndpointConfig {}

impl FromStr for EndpointConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.contains('=') {
            return option::parse(text);
        }
        Ok(Self {
            path: Some(text.into()),
            fd: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_given_with_or_without_its_key() {
        let expected = EndpointConfig {
            path: Some("/run/api.sock".into()),
            fd: None,
        };
        assert_eq!("/run/api.sock".parse(), Ok(expected.clone()));
        assert_eq!("path=/run/api.sock".parse(), Ok(expected));
        let by_descriptor: EndpointConfig = "fd=7".parse().unwrap();
        assert_eq!((by_descriptor.path, by_descriptor.fd), (None, Some(7)));
    }

    #[test]
    fn nonsense_is_refused_with_what_was_expected() {
        for (text, part) in [
            ("", "path=PATH or fd=N"),
            ("fd=1", "at least 3"),
            ("fd=3,path=/a", "not both"),
            ("file=/a", "known keys: path, fd"),
            ("path=", "path=PATH or fd=N"),
        ] {
            let error = text.parse::<EndpointConfig>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
