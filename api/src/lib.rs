//! How the outside asks Podvisor for something.
//!
//! - [`config`]: what a virtual machine is made of. One set of types takes the values of the command line
//!   (`--disk path=root.img,readonly=on`) and the JSON of Cloud Hypervisor's `/api/v1`.
//! - [`request`]: what can be asked of a machine that exists.
//!
//! The crate knows nothing of KVM, of devices or of guest memory: it names and checks, others act.

pub mod config;
pub mod request;
