//! Tests of the config types through their two faces.

mod command_line;
mod flags;
mod json;
mod properties;
mod rules;

use super::*;

/// The error text of an option string that must not be accepted.
fn refusal<T>(text: &str) -> String
where
    T: std::str::FromStr<Err = ConfigError> + std::fmt::Debug,
{
    text.parse::<T>().unwrap_err().to_string()
}

/// A machine that is accepted, for tests to spoil.
fn bootable() -> VmConfig {
    VmConfig {
        payload: PayloadConfig {
            kernel: Some("/boot/vmlinuz".into()),
            ..PayloadConfig::default()
        },
        ..VmConfig::default()
    }
}
