//! A pseudo-terminal whose client comes and goes.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::LineFault;
use super::poll::{self, check};

/// The master side.
///
/// A master whose slave nobody has open is always ready with a hang-up, so it cannot be waited for. Its slave's opens
/// are watched for instead.
pub(super) struct Pty {
    master: File,
    path: PathBuf,
    /// An inotify instance that watches the slave's opens.
    opens: File,
    connected: bool,
}

impl Pty {
    pub(super) fn open() -> Result<Self, LineFault> {
        let fail = |action| {
            move |source| LineFault::Host {
                mode: "pty",
                action,
                source,
            }
        };
        let master = open_master().map_err(fail("open a pseudo-terminal"))?;
        let path = slave_path(&master).map_err(fail("name the pseudo-terminal"))?;
        // The settings stay with the pair. Once opened and closed, the slave counts as hung up.
        set_raw(&path).map_err(fail("set the pseudo-terminal to raw mode"))?;
        let opens = watch_opens(&path).map_err(fail("watch the pseudo-terminal"))?;
        let mut pty = Self {
            master,
            path,
            opens,
            connected: false,
        };
        pty.arrive();
        Ok(pty)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn master(&self) -> &File {
        &self.master
    }

    pub(super) fn opens(&self) -> BorrowedFd<'_> {
        self.opens.as_fd()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// The slave was opened, and may be closed again.
    pub(super) fn arrive(&mut self) {
        let mut events = [0; 1024];
        while self.opens.read(&mut events).is_ok_and(|count| count > 0) {}
        // A client that has gone already may have left input: with that, it counts as being there.
        let ready = poll::now(self.master.as_fd(), libc::POLLIN);
        self.connected = ready & libc::POLLHUP == 0 || ready & libc::POLLIN != 0;
    }

    pub(super) fn disconnect(&mut self) {
        self.connected = false;
    }
}

fn open_master() -> io::Result<File> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: posix_openpt takes no pointer, and a descriptor it returns is new and ours.
    #[allow(unsafe_code)]
    let master = unsafe { OwnedFd::from_raw_fd(check(libc::posix_openpt(flags))?) };
    // SAFETY: neither takes a pointer, and the descriptor is open.
    #[allow(unsafe_code)]
    unsafe {
        check(libc::grantpt(master.as_raw_fd()))?;
        check(libc::unlockpt(master.as_raw_fd()))?;
    }
    Ok(master.into())
}

fn slave_path(master: &File) -> io::Result<PathBuf> {
    let mut name = [0; 64];
    // SAFETY: the pointer and the length are those of the array.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: on success the array holds a string that ends in a NUL.
    #[allow(unsafe_code)]
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(std::ffi::OsStr::from_bytes(name.to_bytes()).into())
}

fn set_raw(path: &Path) -> io::Result<()> {
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)?;
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: `settings` is a place for one termios, and is used only after tcgetattr has filled it.
    #[allow(unsafe_code)]
    unsafe {
        check(libc::tcgetattr(slave.as_raw_fd(), settings.as_mut_ptr()))?;
        libc::cfmakeraw(settings.as_mut_ptr());
        check(libc::tcsetattr(
            slave.as_raw_fd(),
            libc::TCSANOW,
            settings.as_ptr(),
        ))?;
    }
    Ok(())
}

fn watch_opens(path: &Path) -> io::Result<File> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a descriptor that inotify_init1 returns is new and ours.
    #[allow(unsafe_code)]
    let opens = unsafe {
        File::from_raw_fd(check(libc::inotify_init1(
            libc::IN_NONBLOCK | libc::IN_CLOEXEC,
        ))?)
    };
    // SAFETY: the path is a string that ends in a NUL and outlives the call.
    #[allow(unsafe_code)]
    check(unsafe { libc::inotify_add_watch(opens.as_raw_fd(), path.as_ptr(), libc::IN_OPEN) })?;
    Ok(opens)
}
