//! What a virtual machine is made of.
//!
//! The types have the names, fields and defaults of Cloud Hypervisor's `/api/v1` document, so that its clients can
//! be used as they are. Each type is declared once, by its serde fields:
//!
//! - JSON is read by [`VmConfig::from_json`]. Sizes are numbers of bytes there.
//! - A command-line value such as `size=512M,shared=on` is read by the type's `FromStr`, which feeds the pairs to the
//!   same serde code. The few keys that are spelled differently on the command line (`boot` for `boot_vcpus`) are
//!   named next to the type.
//!
//! A key that nobody knows is an error. A key that Cloud Hypervisor knows and Podvisor does not implement is accepted
//! at its default value and refused, by name, at any other.
//!
//! ```
//! use api::config::DiskConfig;
//!
//! let disk: DiskConfig = "path=/var/lib/root.img,readonly=on".parse()?;
//! assert!(disk.readonly);
//!
//! let error = "pth=/var/lib/root.img".parse::<DiskConfig>().unwrap_err();
//! assert!(error.to_string().starts_with("unknown key \"pth\"; known keys: path, readonly"));
//! # Ok::<(), api::config::ConfigError>(())
//! ```

mod args;
mod balloon;
mod console;
mod cpus;
mod disk;
mod endpoint;
mod error;
mod error_policy;
mod fs;
pub(crate) mod json;
mod mac;
mod memory;
mod net;
mod objects;
mod option;
mod payload;
mod platform;
mod rate_limiter;
mod rng;
mod section;
mod serial;
mod size;
mod vm;
mod vsock;
mod watchdog;

pub use args::VmArgs;
pub use balloon::BalloonConfig;
pub use console::{ConsoleConfig, ConsoleOutputMode, ConsolePortConfig, DebugConsoleConfig};
pub use cpus::{
    CoreScheduling, CpuAffinity, CpuFeatures, CpuProfile, CpuTopology, CpusConfig, MAX_VCPUS,
};
pub use disk::{AddedDisk, DiskConfig, ImageType, LockGranularity, VirtQueueAffinity};
pub use endpoint::EndpointConfig;
pub use error::ConfigError;
pub use error_policy::{ReadErrorPolicy, WriteErrorPolicy};
pub use fs::FsConfig;
pub use mac::MacAddr;
pub use memory::{HotplugMethod, MemoryConfig};
pub use net::{NetConfig, VhostMode};
pub use option::split_pairs;
pub use payload::PayloadConfig;
pub use platform::{PlatformConfig, Transport};
pub(crate) use rate_limiter::unlimited_as_none;
pub use rate_limiter::{RateLimitGroupConfig, RateLimiterConfig, TokenBucket};
pub use rng::RngConfig;
pub(crate) use section::Section;
pub use section::{Passed, Unsupported};
pub use serial::SerialConfig;
pub use size::ByteSize;
pub use vm::VmConfig;
pub use vsock::VsockConfig;
pub use watchdog::WatchdogAction;

#[cfg(test)]
mod tests;
