//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ConfigError;

/// An Ethernet address, six bytes in the order of the wire, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    const EXPECTED: &'static str = "expected six hexadecimal bytes as in 52:54:00:12:34:56";

    /// The six bytes in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether the address can be that of one interface: neither a group address nor all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl FromStr for MacAddr {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ConfigError::Syntax {
            found: text.to_owned(),
            problem: Self::EXPECTED.to_owned(),
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(error)?;
            let digits = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if part.len() != 2 || !digits {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(error()),
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom(Self::EXPECTED))
    }
}
