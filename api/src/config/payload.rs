//! `--kernel`, `--initramfs`, `--boot-disk`, `--cmdline`, `--firmware`: what the machine boots.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::section::{Passed, Section, check_id, check_path};
use crate::request::{INITRAMFS, KERNEL};

/// Longest command line that Linux takes on x86, without the NUL at its end.
const MAX_CMDLINE: usize = 2047;

/// What the machine boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PayloadConfig {
    /// File of the kernel: an ELF or a bzImage. Required, unless an open descriptor of it comes with the configuration, or
    /// there is a `boot_disk` or a firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub kernel: Option<PathBuf>,
    /// File of the initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub initramfs: Option<PathBuf>,
    /// Id of the disk whose own boot entry is booted: its kernel, initial RAM disk and command line are read from the disk at
    /// each start of the guest. Instead of `kernel` and `initramfs`; `cmdline` is appended to the command line of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub boot_disk: Option<String>,
    /// Command line of the kernel. At most 2047 characters, in ASCII.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2047, pattern = "^[\\x01-\\x7F]*$")]
    pub cmdline: Option<String>,
    /// File of a firmware to boot instead of a kernel: an ELF with a PVH entry, such as Cloud Hypervisor's build of edk2. It
    /// finds kernel, initial RAM disk and command line on the guest's disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, pattern = "^[^\\x00]+$")]
    pub firmware: Option<PathBuf>,
    /// File of an IGVM image to boot instead of a kernel. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub igvm: Option<PathBuf>,
    /// Data measured into a confidential guest. Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_data: Option<String>,
}

impl Section for PayloadConfig {
    const UNSUPPORTED: &'static [&'static str] = &["igvm", "host_data"];

    fn check(&self) -> Result<(), ConfigError> {
        if let Some(kernel) = &self.kernel {
            check_path("kernel", kernel)?;
        }
        if let Some(initramfs) = &self.initramfs {
            check_path("initramfs", initramfs)?;
        }
        check_id(self.boot_disk.as_deref())
            .map_err(|error| error.map_field(|_| "boot_disk".to_owned()))?;
        for (field, given) in [
            ("kernel", self.kernel.is_some()),
            ("initramfs", self.initramfs.is_some()),
            ("firmware", self.firmware.is_some()),
        ] {
            if let Some(boot_disk) = self.boot_disk.as_ref().filter(|_| given) {
                return Err(ConfigError::invalid(
                    "boot_disk",
                    format!("{boot_disk:?}"),
                    format!("expected none together with {field}: what is booted is on the disk"),
                ));
            }
        }
        if let Some(firmware) = &self.firmware {
            check_path("firmware", firmware)?;
            self.check_alone()?;
        }
        if let Some(cmdline) = &self.cmdline {
            if cmdline.len() > MAX_CMDLINE {
                return Err(ConfigError::invalid(
                    "cmdline",
                    format!("of {} bytes", cmdline.len()),
                    format!("expected at most {MAX_CMDLINE} bytes"),
                ));
            }
            if !cmdline.is_ascii() || cmdline.contains('\0') {
                return Err(ConfigError::invalid(
                    "cmdline",
                    format!("{cmdline:?}"),
                    "expected ASCII characters without NUL",
                ));
            }
        }
        Ok(())
    }

    fn check_backing(&self, passed: Passed<'_>) -> Result<(), ConfigError> {
        for (field, path) in [(KERNEL, &self.kernel), (INITRAMFS, &self.initramfs)] {
            match (path, passed(field)) {
                (_, 0) | (None, 1) => {}
                (Some(path), _) => {
                    return Err(ConfigError::invalid(
                        field,
                        format!("{path:?}"),
                        "expected either a path or a descriptor, not both",
                    ));
                }
                (None, count) => {
                    return Err(ConfigError::invalid(
                        field,
                        format!("of {count} descriptors"),
                        "expected one descriptor",
                    ));
                }
            }
        }
        if let Some(boot_disk) = &self.boot_disk {
            return match [KERNEL, INITRAMFS].iter().find(|field| passed(field) > 0) {
                Some(field) => Err(ConfigError::invalid(
                    "boot_disk",
                    format!("{boot_disk:?}"),
                    format!("expected none together with a descriptor of {field}"),
                )),
                None => Ok(()),
            };
        }
        if let Some(firmware) = &self.firmware {
            for field in [KERNEL, INITRAMFS] {
                if passed(field) > 0 {
                    return Err(beside_firmware(firmware, field));
                }
            }
        } else if self.kernel.is_none() && passed(KERNEL) == 0 {
            return Err(ConfigError::missing(
                "kernel",
                "the path of a kernel (an ELF file or a bzImage), --kernel on the command line, or boot_disk, --boot-disk",
            ));
        }
        Ok(())
    }
}

impl PayloadConfig {
    /// Checks that nothing is given that a firmware would not look at.
    fn check_alone(&self) -> Result<(), ConfigError> {
        let Self {
            kernel,
            initramfs,
            // Checked by itself.
            boot_disk: _,
            cmdline,
            firmware,
            igvm: _,
            host_data: _,
        } = self;
        let others = [
            (KERNEL, kernel.is_some()),
            (INITRAMFS, initramfs.is_some()),
            ("cmdline", cmdline.is_some()),
        ];
        match (firmware, others.into_iter().find(|(_, given)| *given)) {
            (Some(firmware), Some((field, _))) => Err(beside_firmware(firmware, field)),
            _ => Ok(()),
        }
    }
}

fn beside_firmware(firmware: &Path, field: &str) -> ConfigError {
    let problem =
        format!("expected no {field} beside it: a firmware finds what it boots on the disks");
    ConfigError::invalid("firmware", format!("{firmware:?}"), problem)
}
