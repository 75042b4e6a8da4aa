//! Sizes in bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// A number of bytes.
///
/// A number in JSON. On the command line a number with an optional `K`, `M`, `G` or `T`: powers of 1024.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ByteSize(pub u64);

/// The suffixes and the powers of two they stand for, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl ByteSize {
    /// Name under which serde announces the type: how the option parser knows that suffixes are allowed.
    pub(crate) const SERDE_NAME: &'static str = "ByteSize";
    pub(crate) const EXPECTED: &'static str =
        "expected a number of bytes, with K, M, G or T for powers of 1024, below 2^64";

    /// `count` times 1024 × 1024 bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unit = text.chars().next_back().and_then(|last| {
            let last = last.to_ascii_uppercase();
            UNITS.iter().find(|(suffix, _)| *suffix == last)
        });
        let (digits, shift) = match unit {
            Some((suffix, shift)) => (&text[..text.len() - suffix.len_utf8()], *shift),
            None => (text, 0),
        };
        let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .parse::<u64>()
            .ok()
            .filter(|_| only_digits)
            .and_then(|count| count.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| ConfigError::Syntax {
                found: text.to_owned(),
                problem: Self::EXPECTED.to_owned(),
            })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in UNITS {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}
