//! How the process that reads a disk gives up what it does not need, which is nearly all.

use std::io;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Address space of the process: some buffers, and what a file system's library keeps of it.
const MAX_MEMORY: u64 = 1 << 30;

/// What it may still ask of the kernel: to read and write what is open, to get and give back memory, and to end.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // What a panic ends in.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    /// The kernel refused.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Landlock.
    #[error("cannot give up the access to files")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls.
    #[error("cannot filter system calls")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter cannot be made.
    #[error("cannot make the filter of system calls")]
    Filter(#[from] seccompiler::BackendError),
}

/// Gives up everything but memory and the descriptors that are open, for good. A forbidden system call ends the process.
///
/// # Errors
///
/// [`ConfineError`]; only a kernel without Landlock, which is one of two walls, is no error.
pub(super) fn confine() -> Result<(), ConfineError> {
    for (resource, limit) in [
        (libc::RLIMIT_AS, MAX_MEMORY),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, 0),
        (libc::RLIMIT_NPROC, 0),
    ] {
        set_limit(resource, limit)?;
    }
    // Nobody of the same user looks into it.
    control(libc::PR_SET_DUMPABLE, 0, "hide the process's memory")?;
    control(libc::PR_SET_NO_NEW_PRIVS, 1, "give up gaining rights")?;
    // No rule is added: no file is left. What an older kernel does not know is left to the filter.
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .restrict_self()?;
    // Last, as it forbids all of the above. No descriptor is opened after it.
    set_limit(libc::RLIMIT_NOFILE, 0)?;
    let rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        seccompiler::TargetArch::x86_64,
    )?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

/// Closes all descriptors but 0, 1 and 2: the VMM may have been started with some for others.
///
/// # Errors
///
/// The kernel is older than 5.9.
pub(super) fn close_others() -> Result<(), ConfineError> {
    // SAFETY: the call takes no pointer. Nothing in this process uses a descriptor above 2: it has just begun.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    checked(result, "close descriptors")
}

fn set_limit(resource: libc::__rlimit_resource_t, limit: u64) -> Result<(), ConfineError> {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: the kernel reads one rlimit, which lives through the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::setrlimit(resource, &raw const limit) };
    checked(result.into(), "limit the process")
}

fn control(
    option: libc::c_int,
    value: libc::c_ulong,
    what: &'static str,
) -> Result<(), ConfineError> {
    let zero: libc::c_ulong = 0;
    // SAFETY: neither of the options that are used here takes a pointer.
    #[allow(unsafe_code)]
    let result = unsafe { libc::prctl(option, value, zero, zero, zero) };
    checked(result.into(), what)
}

/// Has the kernel end the process after `time`, or not at all after none, in the place of what it was told before. Gives the
/// seconds that were left of that.
pub(super) fn alarm(time: std::time::Duration) -> libc::c_uint {
    let seconds = libc::c_uint::try_from(time.as_secs()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the call takes no pointer; nothing in this process handles the signal.
    #[allow(unsafe_code)]
    unsafe {
        libc::alarm(seconds)
    }
}

fn checked(result: libc::c_long, what: &'static str) -> Result<(), ConfineError> {
    if result < 0 {
        let source = io::Error::last_os_error();
        return Err(ConfineError::Host { what, source });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    const ATTEMPT: &str = "PODVISOR_TEST_ATTEMPT";

    /// Not a test by itself: what [`attempt`] runs in a process of its own. Ends with status 42 after an attempt that was
    /// answered, whatever the answer.
    #[test]
    #[ignore = "run by the tests below"]
    fn confined_process() {
        let Ok(attempt) = std::env::var(ATTEMPT) else {
            return;
        };
        confine().unwrap();
        let code = match attempt.as_str() {
            "nothing" => 42,
            "memory" => {
                // SAFETY: the mapping is new, and nothing refers to what is in it.
                #[allow(unsafe_code)]
                let mapped = unsafe {
                    libc::mmap(
                        std::ptr::null_mut(),
                        2 << 30,
                        libc::PROT_READ,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                        -1,
                        0,
                    )
                };
                if mapped == libc::MAP_FAILED { 42 } else { 43 }
            }
            call => {
                let call = match call {
                    "open" => libc::SYS_openat,
                    "socket" => libc::SYS_socket,
                    "execve" => libc::SYS_execve,
                    "clone" => libc::SYS_clone,
                    "ptrace" => libc::SYS_ptrace,
                    "ioctl" => libc::SYS_ioctl,
                    "kill" => libc::SYS_kill,
                    other => panic!("unknown attempt {other}"),
                };
                // SAFETY: with these arguments none of the calls touches memory: a kernel that ran one would refuse them.
                #[allow(unsafe_code)]
                unsafe {
                    libc::syscall(call, -1, 0, 0, 0, 0, 0)
                };
                42
            }
        };
        // SAFETY: ends the process at once.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(code)
        }
    }

    fn attempt(what: &str) -> std::process::ExitStatus {
        let own = std::env::current_exe().unwrap();
        let mut command = Command::new(own);
        command
            .args(["--exact", "boot_disk::confine::tests::confined_process"])
            .args(["--ignored", "--test-threads=1"])
            .env(ATTEMPT, what)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().unwrap()
    }

    #[test]
    fn confined_process_goes_on() {
        assert_eq!(attempt("nothing").code(), Some(42));
    }

    #[test]
    fn forbidden_calls_end_the_process() {
        for call in [
            "open", "socket", "execve", "clone", "ptrace", "ioctl", "kill",
        ] {
            assert_eq!(attempt(call).signal(), Some(libc::SIGSYS), "{call}");
        }
    }

    #[test]
    fn memory_is_limited() {
        assert_eq!(attempt("memory").code(), Some(42));
    }
}
