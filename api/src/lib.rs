//! How the outside asks Podvisor for something.
//!
//! - [`config`]: what a virtual machine is made of. One set of types takes the values of the command line
//!   (`--disk path=root.img,readonly=on`) and the JSON of Cloud Hypervisor's `/api/v1`.
//! - [`request`]: what can be asked of the VMM, and what it answers.
//! - [`event`]: what it tells without being asked.
//! - [`metrics`]: what it measures.
//! - [`http`]: the server that takes requests from outside.
//! - [`client`]: the same calls from the other side.
//!
//! The crate knows nothing of KVM, of devices or of guest memory: it names and checks, others act.

pub mod client;
pub mod config;
pub mod event;
pub mod http;
pub mod metrics;
pub mod openapi;
pub mod request;

/// The version of Cloud Hypervisor whose `/api/v1` this is.
pub const CLOUD_HYPERVISOR_VERSION: &str = "54.0.0";
