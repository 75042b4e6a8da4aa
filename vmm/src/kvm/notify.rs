//! Notification addresses that signal an eventfd without an exit.

use std::io;
use std::sync::Arc;

use devices::virtio::{Doorbell, Notify};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::io_error;
use super::vm::Vm;

/// The ioeventfds of a machine.
pub struct IoEvents {
    vm: Arc<VmFd>,
}

impl IoEvents {
    /// Those of `vm`.
    pub fn new(vm: &Vm) -> Self {
        Self {
            vm: Arc::clone(vm.fd()),
        }
    }
}

impl Notify for IoEvents {
    fn bind(&self, doorbell: Doorbell, eventfd: &EventFd) -> io::Result<()> {
        match doorbell {
            Doorbell::Any(address) => {
                self.vm
                    .register_ioevent(eventfd, &IoEventAddress::Mmio(address), NoDatamatch)
            }
            Doorbell::Value { address, value } => {
                self.vm
                    .register_ioevent(eventfd, &IoEventAddress::Mmio(address), value)
            }
        }
        .map_err(io_error)
    }

    fn unbind(&self, doorbell: Doorbell, eventfd: &EventFd) -> io::Result<()> {
        match doorbell {
            Doorbell::Any(address) => {
                self.vm
                    .unregister_ioevent(eventfd, &IoEventAddress::Mmio(address), NoDatamatch)
            }
            Doorbell::Value { address, value } => {
                self.vm
                    .unregister_ioevent(eventfd, &IoEventAddress::Mmio(address), value)
            }
        }
        .map_err(io_error)
    }
}
