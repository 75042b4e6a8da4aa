//! A debugger for the guest: gdb's remote serial protocol on a Unix socket.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `server` | the thread that takes one debugger after the other |
//! | `target` | the guest as the protocol's library wants to see it |
//! | `request` | what that thread asks of the one that owns the machine |
//! | `breakpoints` | breakpoints and watchpoints, and which of them a vCPU stopped at |
//! | `registers` | registers as gdb and as KVM have them |
//!
//! A machine that boots waits at its first instruction for a debugger to let it run. Each vCPU is a thread of one process.
//! While the debugger holds it, the vCPUs stand still and the devices go on, and `vm.info` tells the state `BreakPoint`. The
//! API is served all the time. A pause by the API and a stop by the debugger are apart: the vCPUs run when neither is in
//! force. A debugger that goes away, by `detach` or otherwise, leaves a guest that runs, without its breakpoints.
//!
//! A guest that starts anew runs on; hardware breakpoints stay, and those in its memory are gone with the memory.

pub mod breakpoints;
mod registers;
pub mod request;
pub mod server;
mod target;
