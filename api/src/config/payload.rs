//! `--kernel`, `--initramfs`, `--cmdline`: what the machine boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::section::{Section, check_path};

/// Longest command line that Linux takes on x86, without the NUL at its end.
const MAX_CMDLINE: usize = 2047;

/// What the machine boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PayloadConfig {
    /// File of the kernel: an ELF or a bzImage. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// File of the initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Command line of the kernel. At most 2047 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// File of a firmware to boot instead of a kernel. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// File of an IGVM image to boot instead of a kernel. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub igvm: Option<PathBuf>,
    /// Data measured into a confidential guest. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_data: Option<String>,
}

impl Section for PayloadConfig {
    const UNSUPPORTED: &'static [&'static str] = &["firmware", "igvm", "host_data"];

    fn check(&self) -> Result<(), ConfigError> {
        match &self.kernel {
            None => {
                return Err(ConfigError::missing(
                    "kernel",
                    "the path of a kernel (an ELF file or a bzImage), --kernel on the command line",
                ));
            }
            Some(kernel) => check_path("kernel", kernel)?,
        }
        if let Some(initramfs) = &self.initramfs {
            check_path("initramfs", initramfs)?;
        }
        if let Some(cmdline) = &self.cmdline {
            if cmdline.len() > MAX_CMDLINE {
                return Err(ConfigError::invalid(
                    "cmdline",
                    format!("of {} bytes", cmdline.len()),
                    format!("expected at most {MAX_CMDLINE} bytes"),
                ));
            }
            if cmdline.bytes().any(|byte| byte == 0) {
                return Err(ConfigError::invalid(
                    "cmdline",
                    format!("{cmdline:?}"),
                    "expected no NUL byte",
                ));
            }
        }
        Ok(())
    }
}
