//! What the reader of a disk and the VMM say to each other on their socket.
//!
//! The VMM begins with a [`Start`]. The reader then asks for bytes of the disk, which the VMM answers by a zero and the bytes or
//! by a one, and gives what it has found: each message is one byte that tells its kind, four of its length, and its body.
//! Numbers are little-endian.

use std::io::{self, Read, Write};

/// Bytes of the body of any message.
pub(super) const MAX_BODY: usize = 128 << 10;
/// Bytes of the disk that one message asks for.
pub(super) const MAX_READ: usize = 128 << 10;

/// What is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// Size of its sectors in bytes.
    pub(super) sector: u64,
    /// Most bytes of a kernel.
    pub(super) max_kernel: u64,
    /// Most bytes of initial RAM disks.
    pub(super) max_initrd: u64,
}

impl Start {
    pub(super) const LEN: usize = 32;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let numbers = [self.size, self.sector, self.max_kernel, self.max_initrd];
        let mut bytes = [0; Self::LEN];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let number = |index: usize| {
            let bytes = bytes[8 * index..].first_chunk();
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        Self {
            size: number(0),
            sector: number(1),
            max_kernel: number(2),
            max_initrd: number(3),
        }
    }
}

/// What the reader says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// It needs bytes of the disk.
    Read { offset: u64, len: u32 },
    /// The next bytes of the kernel.
    Kernel(Vec<u8>),
    /// The next bytes of the initial RAM disk.
    Initrd(Vec<u8>),
    /// Name of the entry; the command line comes next.
    Title(String),
    /// The command line: all has been said.
    Done(String),
    /// The disk cannot be booted.
    Failed(String),
}

const READ: u8 = 1;
const KERNEL: u8 = 2;
const INITRD: u8 = 3;
const TITLE: u8 = 4;
const DONE: u8 = 5;
const FAILED: u8 = 6;

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// The socket's, and [`io::ErrorKind::InvalidData`] for what is no message.
    pub(super) fn receive(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, len @ ..] = head;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_BODY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; len];
        from.read_exact(&mut body)?;
        let text = |body| String::from_utf8(body).map_err(|_| io::ErrorKind::InvalidData.into());
        match kind {
            READ => {
                let body: [u8; 12] = body.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
                let [a, b, c, d, e, f, g, h, len @ ..] = body;
                Ok(Self::Read {
                    offset: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                    len: u32::from_le_bytes(len),
                })
            }
            KERNEL => Ok(Self::Kernel(body)),
            INITRD => Ok(Self::Initrd(body)),
            TITLE => text(body).map(Self::Title),
            DONE => text(body).map(Self::Done),
            FAILED => text(body).map(Self::Failed),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Asks for `len` bytes of the disk.
pub(super) fn ask(to: &mut impl Write, offset: u64, len: u32) -> io::Result<()> {
    let mut body = [0; 12];
    body[..8].copy_from_slice(&offset.to_le_bytes());
    body[8..].copy_from_slice(&len.to_le_bytes());
    send(to, READ, &body)
}

/// Gives bytes of the kernel.
pub(super) fn kernel(to: &mut impl Write, piece: &[u8]) -> io::Result<()> {
    send(to, KERNEL, piece)
}

/// Gives bytes of the initial RAM disk.
pub(super) fn initrd(to: &mut impl Write, piece: &[u8]) -> io::Result<()> {
    send(to, INITRD, piece)
}

/// Says that all was given.
pub(super) fn done(to: &mut impl Write, title: &str, cmdline: &str) -> io::Result<()> {
    send(to, TITLE, bounded(title).as_bytes())?;
    send(to, DONE, bounded(cmdline).as_bytes())
}

/// Says why the disk cannot be booted.
pub(super) fn failed(to: &mut impl Write, reason: &str) -> io::Result<()> {
    send(to, FAILED, bounded(reason).as_bytes())
}

fn bounded(text: &str) -> &str {
    let end = (0..=MAX_BODY.min(text.len())).rev();
    let mut ends = end.filter(|end| text.is_char_boundary(*end));
    &text[..ends.next().unwrap_or(0)]
}

fn send(to: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::with_capacity(5 + body.len());
    message.push(kind);
    message.extend_from_slice(&len.to_le_bytes());
    message.extend_from_slice(body);
    to.write_all(&message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let mut bytes = Vec::new();
        ask(&mut bytes, 1 << 40, 77).unwrap();
        kernel(&mut bytes, b"k").unwrap();
        initrd(&mut bytes, b"").unwrap();
        done(&mut bytes, "title", "root=/dev/vda1").unwrap();
        failed(&mut bytes, &"\u{e9}".repeat(MAX_BODY)).unwrap();
        let from = &mut bytes.as_slice();
        let mut receive = || Message::receive(from).unwrap();
        assert_eq!(
            receive(),
            Message::Read {
                offset: 1 << 40,
                len: 77
            }
        );
        assert_eq!(receive(), Message::Kernel(b"k".to_vec()));
        assert_eq!(receive(), Message::Initrd(Vec::new()));
        assert_eq!(receive(), Message::Title("title".to_owned()));
        assert_eq!(receive(), Message::Done("root=/dev/vda1".to_owned()));
        let Message::Failed(reason) = receive() else {
            panic!("not a failure");
        };
        assert_eq!(reason.len(), MAX_BODY);
        let start = Start {
            size: 1,
            sector: 2,
            max_kernel: 3,
            max_initrd: u64::MAX,
        };
        assert_eq!(Start::from_bytes(start.to_bytes()), start);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Message::receive(&mut bytes.as_slice());
        }
    }
}
