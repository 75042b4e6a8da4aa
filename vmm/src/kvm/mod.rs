//! KVM: everything that is an ioctl.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`capabilities`] | /dev/kvm opened, and what Podvisor needs of it |
//! | [`vm`] | the machine's file descriptor, its interrupt controller |
//! | [`memory`] | guest RAM and its slots |
//! | [`irq`] | interrupt lines and MSI-X vectors as irqfds, and their routes |
//! | [`notify`] | notification addresses as ioeventfds |
//! | [`vcpu`] | one vCPU and its first state |

pub mod capabilities;
pub mod irq;
pub mod memory;
pub mod notify;
pub mod vcpu;
pub mod vm;

use std::io;

/// An ioctl that KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct KvmError {
    call: &'static str,
    #[source]
    source: io::Error,
}

impl KvmError {
    /// The error of the ioctl `call`; made for `map_err`.
    pub(crate) fn of(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self {
            call,
            source: source.into(),
        }
    }
}

/// A KVM error as the I/O error that device traits speak of.
fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
