//! Podvisor, a virtual machine monitor on KVM: it joins the configuration, the architecture and the devices.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`kvm`] | everything that is an ioctl of KVM |
//! | [`vcpu`] | vCPU threads and their exits |
//! | [`vm`] | how a machine is built, runs, pauses and ends |
//! | [`gdb`] | a debugger for the guest |
//! | [`wire`] | from configuration to opened resources, one file per device kind |
//! | [`boot_disk`] | what a guest's own disk boots, read by a process of its own |
//! | [`terminal`] | the user's terminal: raw mode and the escape key |
//! | [`unix_socket`] | sockets that only their owner may connect to |
//! | [`cmd`] | the command line, one file per subcommand |
//! | [`exit_status`] | what the process's exit status means |

pub mod boot_disk;
pub mod cmd;
pub mod exit_status;
pub mod gdb;
pub mod kvm;
pub mod logging;
pub mod terminal;
pub mod unix_socket;
pub mod vcpu;
pub mod vm;
pub mod wire;
