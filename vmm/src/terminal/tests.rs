use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::*;

use super::*;

/// Raw mode is one per process.
pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pseudo-terminal: the user's side, and the side that programs have.
pub(crate) fn open_pty() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both descriptors have a place, and the other arguments may be null.
    #[allow(unsafe_code)]
    unsafe {
        assert_eq!(
            libc::openpty(&mut master, &mut slave, null_mut(), null(), null()),
            0
        );
        (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

pub(crate) fn is_raw(terminal: &impl AsFd) -> bool {
    let settings = settings(terminal.as_fd()).unwrap().unwrap();
    settings.c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
}

#[test]
fn raw_mode_keeps_output_processing_and_ends_with_its_guard() {
    let _lock = one_at_a_time();
    let (_master, slave) = open_pty();
    let before = settings(slave.as_fd()).unwrap().unwrap();
    let guard = RawTerminal::enter(slave.as_fd()).unwrap().unwrap();
    assert!(is_raw(&slave));
    let during = settings(slave.as_fd()).unwrap().unwrap();
    assert_eq!(during.c_oflag, before.c_oflag);
    assert_ne!(during.c_oflag & libc::OPOST, 0);
    assert_eq!(during.c_iflag & (libc::ICRNL | libc::IXON), 0);
    drop(guard);
    let after = settings(slave.as_fd()).unwrap().unwrap();
    assert_eq!(
        (after.c_iflag, after.c_lflag, after.c_cflag, after.c_cc),
        (before.c_iflag, before.c_lflag, before.c_cflag, before.c_cc)
    );
}

#[test]
fn what_is_not_a_terminal_stays_as_it_is() {
    let null = File::open("/dev/null").unwrap();
    assert!(RawTerminal::enter(null.as_fd()).unwrap().is_none());
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(RawTerminal::enter(reader.as_fd()).unwrap().is_none());
}

/// Forks a process that enters raw mode and ends by `end`, and tells whether the terminal was in raw mode before its
/// end, and after it.
fn raw_before_and_after(end: impl FnOnce()) -> (bool, bool) {
    let _lock = one_at_a_time();
    let (_master, slave) = open_pty();
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the child uses only this thread, and ends without going back to the test harness.
    #[allow(unsafe_code)]
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let guard = RawTerminal::enter(slave.as_fd());
        std::mem::forget(guard);
        let was_raw = [u8::from(is_raw(&slave))];
        let _ = std::io::Write::write(&mut &writer, &was_raw);
        end();
        // SAFETY: no pointers; it ends the process.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(99)
        }
    }
    drop(writer);
    let mut was_raw = [0];
    std::io::Read::read_exact(&mut &reader, &mut was_raw).unwrap();
    let mut status = 0;
    // SAFETY: `status` is a place for the status of a child that was forked above.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(waited, child);
    (was_raw[0] == 1, is_raw(&slave))
}

#[test]
fn process_killed_by_sigkill_leaves_the_terminal_raw() {
    // The one way out that nobody can see to: it shows that the tests below see the difference.
    let ends = raw_before_and_after(|| {
        // SAFETY: no pointers.
        #[allow(unsafe_code)]
        unsafe {
            libc::raise(libc::SIGKILL);
        }
    });
    assert_eq!(ends, (true, true));
}

#[test]
fn exit_ends_raw_mode() {
    assert_eq!(
        raw_before_and_after(|| std::process::exit(3)),
        (true, false)
    );
}

#[test]
fn abort_ends_raw_mode() {
    assert_eq!(
        raw_before_and_after(|| std::process::abort()),
        (true, false)
    );
}

#[test]
fn fatal_signals_end_raw_mode() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGSEGV, libc::SIGQUIT] {
        let ends = raw_before_and_after(|| {
            // SAFETY: no pointers.
            #[allow(unsafe_code)]
            unsafe {
                libc::raise(signal);
            }
        });
        assert_eq!(ends, (true, false), "signal {signal}");
    }
}

#[test]
fn fault_ends_raw_mode() {
    let ends = raw_before_and_after(|| {
        // SAFETY: the page may not be accessed, so that the read is a fault, which is what is tested. It ends the child.
        #[allow(unsafe_code)]
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            page.cast::<u8>().read_volatile();
        }
    });
    assert_eq!(ends, (true, false));
}

#[test]
fn panic_hook_ends_raw_mode() {
    let ends = raw_before_and_after(|| {
        install_panic_hook(|| {});
        let _ = std::panic::catch_unwind(|| panic!("a test panics"));
    });
    assert_eq!(ends, (true, false));
}

fn feed(typed: &[&[u8]]) -> (Vec<u8>, Vec<EscapeAction>) {
    let (mut guest, mut actions) = (Vec::new(), Vec::new());
    let mut filter = EscapeFilter::default();
    for part in typed {
        filter.feed(part, |key| guest.push(key), |action| actions.push(action));
    }
    (guest, actions)
}

#[test]
fn keys_without_escape_go_to_the_guest() {
    let all: Vec<u8> = (0..=255).filter(|key| *key != 1).collect();
    assert_eq!(feed(&[&all]), (all, vec![]));
}

#[test]
fn escape_commands_are_found_also_when_they_arrive_in_parts() {
    let (guest, actions) = feed(&[b"a\x01x\x01", b"pb\x01h\x01?"]);
    assert_eq!(guest, b"ab");
    use EscapeAction::{Help, PowerButton, Quit};
    assert_eq!(actions, [Quit, PowerButton, Help, Help]);
}

#[test]
fn doubled_escape_sends_one() {
    assert_eq!(feed(&[b"\x01\x01x\x01a"]).0, b"\x01x\x01");
}

#[test]
fn escape_before_another_key_is_sent_with_it() {
    assert_eq!(feed(&[b"\x01dx"]), (b"\x01dx".to_vec(), vec![]));
}

proptest! {
    #[test]
    fn escape_is_found_wherever_the_typed_keys_are_split(
        typed in prop::collection::vec(prop_oneof![Just(1_u8), Just(b'x'), Just(b'h'), any::<u8>()], 0..64),
        split in any::<prop::sample::Index>(),
    ) {
        let (first, rest) = typed.split_at(split.index(typed.len() + 1));
        let (guest, actions) = feed(&[first, rest]);
        prop_assert_eq!((guest.clone(), actions.clone()), feed(&[&typed]));
        prop_assert!(guest.len() + actions.len() <= typed.len());
    }
}

#[test]
fn signals_are_covered_once_however_often_raw_mode_is_entered() {
    let _lock = one_at_a_time();
    let (_master, slave) = open_pty();
    for _ in 0..3 {
        let guard = RawTerminal::enter(slave.as_fd()).unwrap();
        assert!(guard.is_some() && is_raw(&slave));
        drop(guard);
        assert!(!is_raw(&slave));
    }
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: `action` is a place for one sigaction, and is used after sigaction has filled it.
    #[allow(unsafe_code)]
    let handler = unsafe {
        assert_eq!(
            libc::sigaction(libc::SIGABRT, std::ptr::null(), action.as_mut_ptr()),
            0
        );
        action.assume_init().sa_sigaction
    };
    assert_eq!(handler, on_fatal_signal as *const () as usize);
    let before = BEFORE[5].load(Ordering::Acquire);
    // SAFETY: it was set with the handler, and is never freed.
    #[allow(unsafe_code)]
    let before = unsafe { (*before).sa_sigaction };
    assert_ne!(before, handler);
    assert_eq!(FATAL_SIGNALS[5], libc::SIGABRT);
}
