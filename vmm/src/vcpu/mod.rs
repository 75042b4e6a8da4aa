//! vCPUs at run time: a thread each, what happens on an exit, and what is said when one fails.

mod exits;
mod failure;
mod kick;
mod measure;
mod thread;

use std::sync::Arc;

use devices::bus::Bus;
use kvm_bindings::kvm_debug_exit_arch;

pub use failure::{Failure, Reason};
pub use thread::{Asked, VcpuThread};

/// Why a vCPU runs no more.
#[derive(Debug)]
pub enum End {
    /// KVM passed on the guest's wish for a reset.
    Reset,
    /// KVM passed on the guest's wish to be turned off.
    PowerOff,
    /// An exception in the guest's handling of an exception in its handling of an exception: a processor resets.
    TripleFault(Box<Failure>),
    /// The vCPU cannot go on.
    Failed(Box<Failure>),
}

/// Who is told when a vCPU leaves the guest for longer. Called on the vCPU's thread.
pub trait Watch: Send + Sync {
    /// vCPU number `vcpu` has ended.
    fn ended(&self, vcpu: u32, end: End);

    /// vCPU number `vcpu` stopped at a breakpoint or after a step, and stays out of the guest until it is resumed.
    fn stopped(&self, vcpu: u32, at: kvm_debug_exit_arch);
}

/// The two address spaces that a vCPU's exits go to.
#[derive(Clone, Default)]
pub struct Buses {
    /// I/O ports.
    pub pio: Arc<Bus>,
    /// Physical addresses that are not RAM.
    pub mmio: Arc<Bus>,
}
