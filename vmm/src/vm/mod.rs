//! The machine: how it is built, runs, pauses and ends.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`build`] | the list of what a machine is made of, in the order it is put together |
//! | [`Running`], [`Paused`] | a machine in either state, and the way from one to the other |
//! | [`control`] | the loop that owns the machine from the first build to the end |
//! | [`ram`] | guest memory, and how it grows |
//! | [`notices`] | what its vCPUs and devices tell that loop |
//! | [`signals`] | SIGTERM and SIGINT for that loop |
//! | [`inbox`] | requests to that loop |

mod attached;
pub mod build;
pub mod control;
mod coredump;
mod hotplug;
pub mod inbox;
mod machine;
pub mod notices;
mod paused;
pub mod ram;
mod running;
pub mod signals;
mod transport;
mod vcpus;

pub use control::{Definition, Options, Outcome, RunError, run};
pub use inbox::{Inbox, Mailbox};
pub use paused::{GenerationError, Paused};
pub use running::Running;
