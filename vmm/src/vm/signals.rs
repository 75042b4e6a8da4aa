//! Signals as a file descriptor: those that ask the process to end, and the one of a terminal that has another size.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::{block_signal, create_sigset};

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGWINCH];

/// What came since it was last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How often the process was asked to end.
    pub terminations: usize,
    /// The terminal has another size.
    pub resized: bool,
}

/// SIGTERM, SIGINT and SIGWINCH, read instead of taken.
#[derive(Debug)]
pub struct Signals {
    file: File,
}

impl Signals {
    /// Keeps the signals from the calling thread and from those it starts later. To be called before any thread is
    /// started: a thread that does not block them ends the process.
    ///
    /// # Errors
    ///
    /// The host refused.
    pub fn block() -> io::Result<()> {
        for signal in SIGNALS {
            match block_signal(signal) {
                Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        Ok(())
    }

    /// Makes a write beyond the file size that the process may reach (RLIMIT_FSIZE) fail with EFBIG, as any other write fails,
    /// in place of ending the process by SIGXFSZ.
    pub fn ignore_file_limit() {
        // SAFETY: ignoring a signal runs no handler.
        #[expect(unsafe_code)]
        let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // The number is that of a signal which can be ignored: the host has no reason to refuse.
        debug_assert_ne!(before, libc::SIG_ERR);
    }

    /// Blocks the signals and opens a descriptor that reads them.
    ///
    /// # Errors
    ///
    /// The host refused.
    pub fn new() -> io::Result<Self> {
        Self::block()?;
        let set = create_sigset(&SIGNALS)?;
        // SAFETY: the set is initialized, and -1 asks for a new descriptor.
        #[expect(unsafe_code)]
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned this descriptor, and nobody else has it.
        #[expect(unsafe_code)]
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file })
    }

    /// What came since the last call.
    pub fn take(&mut self) -> Taken {
        const LEN: usize = size_of::<libc::signalfd_siginfo>();
        const NUMBER: usize = std::mem::offset_of!(libc::signalfd_siginfo, ssi_signo);
        let mut infos = [0; 8 * LEN];
        // It is non-blocking: no signal is an error, and none.
        let len = self.file.read(&mut infos).unwrap_or(0);
        let mut taken = Taken::default();
        for info in infos[..len].chunks_exact(LEN) {
            if info[NUMBER..].starts_with(&(libc::SIGWINCH as u32).to_ne_bytes()) {
                taken.resized = true;
            } else {
                taken.terminations += 1;
            }
        }
        taken
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_counted_once_and_none_is_taken() {
        let mut signals = Signals::new().unwrap();
        for signal in SIGNALS {
            // SAFETY: the signal goes to this thread, which has it blocked.
            #[expect(unsafe_code)]
            let result = unsafe { libc::raise(signal) };
            assert_eq!(result, 0);
        }
        let expected = Taken {
            terminations: 2,
            resized: true,
        };
        assert_eq!(signals.take(), expected);
        assert_eq!(signals.take(), Taken::default());
    }
}
