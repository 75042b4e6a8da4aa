//! Getting a vCPU's thread out of KVM_RUN.
//!
//! A signal alone is not enough: one that arrives just before KVM_RUN is lost. Its handler therefore sets
//! `immediate_exit` in the vCPU's shared page, which makes the next KVM_RUN return at once.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

thread_local! {
    static SHARED_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn leave_guest(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let page = SHARED_PAGE.get();
    if !page.is_null() {
        // SAFETY: the pointer is set only while the vCPU's page is mapped, and by the thread that runs this handler.
        // The byte is written through the pointer that the thread's own accesses are derived from.
        #[expect(unsafe_code)]
        unsafe {
            ptr::write_volatile(&raw mut (*page).immediate_exit, 1);
        }
    }
}

/// Installs the handler, once in the life of the process.
///
/// # Errors
///
/// The host refused the handler.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), c_int>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            register_signal_handler(SIGRTMIN(), leave_guest).map_err(|error| error.errno())
        })
        .map_err(io::Error::from_raw_os_error)
}

/// Makes KVM_RUN of `thread` return, the running one or else the next.
pub(super) fn kick(thread: &JoinHandle<()>) {
    // The signal number is valid, and a thread that was not joined can be signalled even after its end.
    let _ = thread.kill(SIGRTMIN());
}

/// The calling thread's vCPU, as long as this lives.
pub(super) struct Kickable;

impl Kickable {
    /// Lets kicks of the calling thread reach `vcpu`.
    pub(super) fn new(vcpu: &mut VcpuFd) -> Self {
        SHARED_PAGE.set(vcpu.get_kvm_run());
        allow();
        Self
    }
}

/// Lets the signal through in the calling thread, also if the process was started with it blocked.
fn allow() {
    // The signal number is valid.
    let _ = unblock_signal(SIGRTMIN());
}

impl Drop for Kickable {
    fn drop(&mut self) {
        SHARED_PAGE.set(ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::signal::{block_signal, get_blocked_signals};

    use super::*;

    #[test]
    fn kick_that_the_process_was_started_with_blocked_is_let_through() {
        block_signal(SIGRTMIN()).unwrap();
        allow();
        assert!(!get_blocked_signals().unwrap().contains(&SIGRTMIN()));
    }
}
