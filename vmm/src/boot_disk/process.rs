//! The VMM's side of reading a disk: a process that is started once, and what is taken of what it says.
//!
//! It may say anything, as the guest's disk may have taken it over. Nothing but lengths is believed: a reading ends after a time,
//! at a size, and with the process if it says what it must not.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use devices::virtio::block::Disk;

use super::messages::{MAX_READ, Message, Start};

/// How long the process may work on one disk. What the VMM itself needs to read the disk does not count.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the disk that are read for it.
const MAX_DISK_BYTES: u64 = 8 << 30;
/// Longest command line that is taken: more than any kernel does.
const MAX_CMDLINE: usize = 4096;
/// Longest text for people.
const MAX_TEXT: usize = 16 << 10;
/// The subcommand that the process is started by.
pub const SUBCOMMAND: &str = "read-boot-disk";

/// Sizes in bytes that a guest of some memory can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the kernel.
    pub kernel: u64,
    /// Of all initial RAM disks together.
    pub initrd: u64,
}

impl Limits {
    /// Those of a guest with `ram_size` bytes: what is larger does not fit into it, nor in low RAM.
    pub fn of_guest(ram_size: u64) -> Self {
        const MAX_KERNEL: u64 = 256 << 20;
        const MAX_INITRD: u64 = 2 << 30;
        Self {
            kernel: ram_size.min(MAX_KERNEL),
            initrd: ram_size.min(MAX_INITRD),
        }
    }
}

/// What a disk boots.
#[derive(Debug)]
pub struct Booted {
    /// Which entry, and where it was found. For people.
    pub title: String,
    /// The kernel, in memory.
    pub kernel: File,
    /// The initial RAM disks, one after the other, in memory.
    pub initramfs: Option<File>,
    /// The command line: neither empty of sense nor checked, but without control characters.
    pub cmdline: String,
}

/// A disk that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootDiskError {
    /// The process cannot be started.
    #[error("cannot start the process that reads it")]
    Start(#[source] io::Error),
    /// What is on the disk.
    #[error("{0}")]
    Refused(String),
    /// It leads in circles, or the host is very slow.
    #[error("it was not read within {} s", PATIENCE.as_secs())]
    Time,
    /// Something crashed the process.
    #[error("the process that reads it ended ({0}): what is on the disk is damaged or crafted")]
    Ended(ExitStatus),
    /// The process said what it must not.
    #[error("the process that reads it {0}: what is on the disk is crafted")]
    Misbehaved(&'static str),
    /// The host lacks something.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// The process that reads disks. It ends with this value.
pub struct Reader {
    child: Child,
    socket: UnixStream,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("pid", &self.child.id())
            .finish()
    }
}

impl Reader {
    /// Starts the process, which is `program`'s: podvisor's own, found at `/proc/self/exe`.
    ///
    /// # Errors
    ///
    /// [`BootDiskError::Start`].
    pub fn start(program: &Path) -> Result<Self, BootDiskError> {
        let (socket, theirs) = UnixStream::pair().map_err(BootDiskError::Start)?;
        let child = Command::new(program)
            .arg0("podvisor")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's signals are for the VMM.
            .process_group(0)
            .spawn()
            .map_err(BootDiskError::Start)?;
        Ok(Self { child, socket })
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Finds what `disk` boots.
    ///
    /// # Errors
    ///
    /// [`BootDiskError`]. After any but [`BootDiskError::Refused`] the process is not to be used any more.
    pub fn read(&mut self, disk: &dyn Disk, limits: Limits) -> Result<Booted, BootDiskError> {
        let start = Start {
            size: disk.size(),
            sector: disk.block_sizes().logical.into(),
            max_kernel: limits.kernel,
            max_initrd: limits.initrd,
        };
        let mut talk = Talk {
            socket: &self.socket,
            left: PATIENCE,
        };
        let result = talk
            .write_all(&start.to_bytes())
            .map_err(|error| talk.failed(&error))
            .and_then(|()| listen(&mut talk, disk, limits));
        match result {
            Err(Unheard::Gone) => {
                // It may have closed the socket and live on.
                let _ = self.child.kill();
                let status = self.child.wait();
                Err(status.map_or_else(BootDiskError::Start, BootDiskError::Ended))
            }
            Err(Unheard::Known(error)) => Err(error),
            Ok(booted) => Ok(booted),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and that is the wish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why there was no answer.
enum Unheard {
    /// The process closed its end.
    Gone,
    Known(BootDiskError),
}

impl From<BootDiskError> for Unheard {
    fn from(error: BootDiskError) -> Self {
        Self::Known(error)
    }
}

/// Serves the process until it has told what it found.
fn listen(talk: &mut Talk<'_>, disk: &dyn Disk, limits: Limits) -> Result<Booted, Unheard> {
    let misbehaved = |what| Unheard::Known(BootDiskError::Misbehaved(what));
    let mut kernel = Growing::new(limits.kernel)?;
    let mut initrd = Growing::new(limits.initrd)?;
    let mut title = String::new();
    let mut buffer = Vec::new();
    let mut left = MAX_DISK_BYTES;
    loop {
        let message = Message::receive(talk).map_err(|error| talk.failed(&error))?;
        match message {
            Message::Read { offset, len } => {
                let len = len as usize;
                let end = offset.checked_add(len as u64);
                if len > MAX_READ || end.is_none_or(|end| end > disk.size()) {
                    return Err(misbehaved("asks for what is not on the disk"));
                }
                left = left
                    .checked_sub(len as u64)
                    .ok_or_else(|| misbehaved("asks for more than a boot can need"))?;
                buffer.clear();
                buffer.resize(1 + len, 0);
                if let Err(error) =
                    devices::virtio::block::read_exact(disk, &mut buffer[1..], offset)
                {
                    tracing::warn!(offset, len, %error, "the boot disk cannot be read");
                    buffer.clear();
                    buffer.push(1);
                }
                talk.write_all(&buffer)
                    .map_err(|error| talk.failed(&error))?;
            }
            Message::Kernel(piece) => kernel.add(&piece)?,
            Message::Initrd(piece) => initrd.add(&piece)?,
            Message::Title(text) => title = shown(&text),
            Message::Failed(reason) => {
                return Err(BootDiskError::Refused(shown(&reason)).into());
            }
            Message::Done(cmdline) => {
                if kernel.len == 0 {
                    let empty = format!("the kernel of entry {title:?} is empty");
                    return Err(BootDiskError::Refused(empty).into());
                }
                let cmdline = cmdline.trim().to_owned();
                if cmdline.len() > MAX_CMDLINE || cmdline.contains(char::is_control) {
                    let wrong = format!(
                        "the command line of entry {title:?} has {} bytes or control characters; expected at most {MAX_CMDLINE} bytes of text",
                        cmdline.len()
                    );
                    return Err(BootDiskError::Refused(wrong).into());
                }
                return Ok(Booted {
                    title,
                    kernel: kernel.finish()?,
                    initramfs: (initrd.len > 0).then(|| initrd.finish()).transpose()?,
                    cmdline,
                });
            }
        }
    }
}

/// Text that can be shown: of bounded length, in one line.
fn shown(text: &str) -> String {
    let kept = text.chars().take(MAX_TEXT);
    kept.map(|character| {
        if character.is_control() {
            '\u{fffd}'
        } else {
            character
        }
    })
    .collect()
}

/// A file in memory.
struct Growing {
    file: File,
    len: u64,
    limit: u64,
}

impl Growing {
    fn new(limit: u64) -> Result<Self, BootDiskError> {
        // SAFETY: the name is a string that ends in a NUL.
        #[allow(unsafe_code)]
        let fd = unsafe { libc::memfd_create(c"boot-disk".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(BootDiskError::Host {
                what: "get memory for the kernel",
                source: io::Error::last_os_error(),
            });
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        #[allow(unsafe_code)]
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self {
            file,
            len: 0,
            limit,
        })
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), BootDiskError> {
        self.len += piece.len() as u64;
        if self.len > self.limit {
            return Err(BootDiskError::Misbehaved("gives more than was asked for"));
        }
        self.file.write_all(piece).map_err(host)
    }

    fn finish(mut self) -> Result<File, BootDiskError> {
        self.file.rewind().map_err(host)?;
        Ok(self.file)
    }
}

fn host(source: io::Error) -> BootDiskError {
    BootDiskError::Host {
        what: "keep the kernel in memory",
        source,
    }
}

/// The socket, until time is over.
struct Talk<'a> {
    socket: &'a UnixStream,
    left: Duration,
}

impl Talk<'_> {
    fn timed(&mut self, run: impl FnOnce(&UnixStream) -> io::Result<usize>) -> io::Result<usize> {
        if self.left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let begun = Instant::now();
        let result = run(self.socket);
        self.left = self.left.saturating_sub(begun.elapsed());
        result
    }

    fn failed(&self, error: &io::Error) -> Unheard {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => BootDiskError::Time.into(),
            io::ErrorKind::InvalidData => {
                BootDiskError::Misbehaved("says what cannot be understood").into()
            }
            _ => Unheard::Gone,
        }
    }
}

impl Read for Talk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.max(Duration::from_millis(1));
        self.timed(|mut socket| {
            socket.set_read_timeout(Some(left))?;
            socket.read(buffer)
        })
    }
}

impl Write for Talk<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.max(Duration::from_millis(1));
        self.timed(|mut socket| {
            socket.set_write_timeout(Some(left))?;
            socket.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "process/tests.rs"]
mod tests;
