//! The user's terminal: raw mode, its end on every way out, and the escape key.
//!
//! In raw mode each key goes to the guest as it is typed, Ctrl-C too. Output processing stays on, so that the VMM's own
//! messages keep their line ends.
//!
//! The settings come back when [`RawTerminal`] is dropped, and also, once [`RawTerminal::enter`] was called, at
//! `exit`, at a panic (with [`install_panic_hook`]) and at the signals that end a process. Nothing can be done about
//! SIGKILL; `stty sane` mends the terminal then.

mod escape;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};

pub use escape::{EscapeAction, EscapeFilter, HELP};

#[cfg(test)]
pub(crate) mod tests;

/// Signals that end the process and are not fetched from a signalfd, or not yet.
const FATAL_SIGNALS: [libc::c_int; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGTERM,
    libc::SIGSYS,
    libc::SIGXCPU,
];

/// The settings to go back to, and where. A signal handler reads it, so there is no lock around it; it is leaked, so
/// that the handler never finds it freed.
struct Saved {
    terminal: RawFd,
    settings: libc::termios,
}

static SAVED: AtomicPtr<Saved> = AtomicPtr::new(std::ptr::null_mut());
static RAW: AtomicBool = AtomicBool::new(false);
static EXITS_COVERED: Once = Once::new();

/// A terminal in raw mode, for as long as this lives.
#[derive(Debug)]
#[must_use = "the terminal leaves raw mode when this is dropped"]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts `terminal` into raw mode; `None` if it is not a terminal. There is one raw terminal at a time: the settings
    /// of the first are those that come back. A process in the background is stopped here until it is in the
    /// foreground, as the terminal does with any that changes its settings.
    ///
    /// # Errors
    ///
    /// The settings could not be read or changed.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Some(settings) = settings(terminal)? else {
            return Ok(None);
        };
        // A descriptor of its own: it stays valid whatever becomes of the caller's.
        let own = terminal.try_clone_to_owned()?.into_raw_fd();
        let saved = Box::new(Saved {
            terminal: own,
            settings,
        });
        SAVED.store(Box::into_raw(saved), Ordering::Release);
        RAW.store(true, Ordering::Release);
        EXITS_COVERED.call_once(cover_exits);
        let guard = Self(());
        set(own, &raw(settings))?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Ends raw mode if it is on. Safe to call from a signal handler, any number of times.
pub fn restore() {
    if !RAW.swap(false, Ordering::AcqRel) {
        return;
    }
    let saved = SAVED.load(Ordering::Acquire);
    // SAFETY: RAW is set only after SAVED points to a value, which is never freed nor changed.
    #[allow(unsafe_code)]
    let Some(saved) = (unsafe { saved.as_ref() }) else {
        return;
    };
    set_from_background(saved.terminal, &saved.settings);
}

/// Writes out what is buffered, and must not panic.
type BeforePanic = Box<dyn Fn() + Send + Sync>;

static BEFORE_PANIC: Mutex<Option<BeforePanic>> = Mutex::new(None);
static PANICS_COVERED: Once = Once::new();

/// Before a panic's message is printed, calls `before` (which may write out what is buffered, and must not panic) and
/// ends raw mode. The panic goes on as it would have. A later call replaces `before`.
pub fn install_panic_hook(before: impl Fn() + Send + Sync + 'static) {
    *BEFORE_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(before));
    PANICS_COVERED.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Held by another thread only if that panics too, or is about to replace it.
            if let Ok(before) = BEFORE_PANIC.try_lock()
                && let Some(before) = &*before
            {
                before();
            }
            restore();
            next(panic);
        }));
    });
}

/// The settings of `terminal`, or none if it is not one.
fn settings(terminal: BorrowedFd<'_>) -> io::Result<Option<libc::termios>> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the descriptor is open and `settings` is a place for one termios.
    #[allow(unsafe_code)]
    let result = unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), settings.as_mut_ptr()) };
    if result == 0 {
        // SAFETY: tcgetattr succeeded, and then it has filled the structure.
        #[allow(unsafe_code)]
        return Ok(Some(unsafe { settings.assume_init() }));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EINVAL | libc::ENODEV) => Ok(None),
        _ => Err(error),
    }
}

/// `settings` with all processing of input off.
fn raw(mut settings: libc::termios) -> libc::termios {
    settings.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    settings.c_cflag &= !(libc::CSIZE | libc::PARENB);
    settings.c_cflag |= libc::CS8;
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    settings
}

/// Async-signal-safe.
fn set(terminal: RawFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a valid termios; a descriptor that is not a terminal is an error and nothing more.
    #[allow(unsafe_code)]
    let result = unsafe { libc::tcsetattr(terminal, libc::TCSANOW, settings) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets `settings` even from the background, where the terminal would stop the process by SIGTTOU, and so keep it from
/// ending. There is nobody to tell about a terminal that is gone. Async-signal-safe.
fn set_from_background(terminal: RawFd, settings: &libc::termios) {
    let mut ttou = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are places for a sigset_t, filled by the calls that come first.
    #[allow(unsafe_code)]
    unsafe {
        libc::sigemptyset(ttou.as_mut_ptr());
        libc::sigaddset(ttou.as_mut_ptr(), libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, ttou.as_ptr(), before.as_mut_ptr());
    }
    let _ = set(terminal, settings);
    // SAFETY: `before` was filled above.
    #[allow(unsafe_code)]
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
    }
}

extern "C" fn at_exit() {
    restore();
}

/// What each of [`FATAL_SIGNALS`] did before, leaked as [`SAVED`] is.
static BEFORE: [AtomicPtr<libc::sigaction>; FATAL_SIGNALS.len()] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; FATAL_SIGNALS.len()];

/// Ends raw mode, and lets the signal do what it would have done before.
extern "C" fn on_fatal_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _: *mut libc::c_void,
) {
    restore();
    let before = FATAL_SIGNALS.iter().zip(&BEFORE);
    for (_, before) in before.filter(|(number, _)| **number == signal) {
        // SAFETY: sigaction and raise are async-signal-safe. `before` holds the action that was there when this handler
        // was installed, and the kernel passes a valid siginfo to a handler that was installed with SA_SIGINFO.
        #[allow(unsafe_code)]
        unsafe {
            libc::sigaction(signal, before.load(Ordering::Acquire), std::ptr::null_mut());
            // A fault comes again by itself once this returns, with its address. A signal that was sent does not; it is
            // blocked while its handler runs, and takes effect on return.
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    }
}

/// Restores the terminal at `exit` and at fatal signals that are not ignored.
fn cover_exits() {
    // SAFETY: at_exit calls only what is allowed in its place, and is never unloaded.
    #[allow(unsafe_code)]
    unsafe {
        libc::atexit(at_exit);
    }
    for (signal, before) in FATAL_SIGNALS.into_iter().zip(&BEFORE) {
        // SAFETY: all-zero is a valid sigaction; the structures passed are valid for the calls, and the handler is
        // async-signal-safe. `before` is set first, so that the handler finds it.
        #[allow(unsafe_code)]
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            // A signal the user ignores, as `nohup` does, stays ignored.
            if libc::sigaction(signal, std::ptr::null(), &mut old) != 0
                || old.sa_sigaction == libc::SIG_IGN
            {
                continue;
            }
            before.store(Box::into_raw(Box::new(old)), Ordering::Release);
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = on_fatal_signal as *const () as libc::sighandler_t;
            new.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
            libc::sigemptyset(&mut new.sa_mask);
            libc::sigaction(signal, &new, std::ptr::null_mut());
        }
    }
}
