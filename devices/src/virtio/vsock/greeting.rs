//! The line that a program on the host begins with.

use std::io;
use std::os::unix::net::UnixStream;

use super::socket;

/// The longest such line: the word, a port, blanks and an end.
const LONGEST: usize = 32;

/// What a look at the line found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The program wants this port of the guest.
    Port(u32),
    /// The line is not complete.
    Incomplete,
    /// It is none.
    Invalid,
}

impl Greeting {
    /// Looks for `CONNECT PORT` and a newline, and takes them out of the socket if they are complete. What follows stays.
    pub(super) fn read(stream: &UnixStream) -> Self {
        let mut bytes = [0; LONGEST];
        let len = match socket::peek(stream, &mut bytes) {
            Ok(0) => return Self::Invalid,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Self::Incomplete,
            Err(_) => return Self::Invalid,
        };
        let Some(end) = bytes[..len].iter().position(|byte| *byte == b'\n') else {
            return if len == bytes.len() {
                Self::Invalid
            } else {
                Self::Incomplete
            };
        };
        let line = &mut bytes[..=end];
        if !matches!(socket::discard(stream, line), Ok(len) if len == line.len()) {
            return Self::Invalid;
        }
        parse(line).map_or(Self::Invalid, Self::Port)
    }
}

/// The port in the line, whose word may be in any case, with any blanks.
fn parse(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let connect = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?;
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    (connect && is_number && words.next().is_none())
        .then(|| port.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_names_a_port() {
        assert_eq!(parse(b"CONNECT 52\n"), Some(52));
        assert_eq!(parse(b"connect  4294967295 \r\n"), Some(u32::MAX));
        for line in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT x\n",
            b"CONNECT +1\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"GET / HTTP/1.1\n",
            b"CONNECT \xff\n",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
