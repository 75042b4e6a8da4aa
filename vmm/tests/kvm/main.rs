//! Tests of the VMM on /dev/kvm with guests of a few instructions, which any KVM can run.

mod balloon;
mod code;
mod console;
mod coredump;
mod defined;
mod disk_errors;
mod firmware;
mod gdb;
mod guest;
mod hotplug;
mod lifecycle;
mod machine;
mod mmio;
mod net;
mod process;
mod virtio;
mod walk;
mod watchdog;
