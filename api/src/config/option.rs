//! Option strings: `key=value,key=value`.
//!
//! A string is split into pairs, keys are checked against the type's own serde fields, and the pairs are fed to the
//! type's serde code. There is no second list of keys.
//!
//! - A value with a comma is quoted, `path="a,b"`, or is a list, `[1,3-4]`. In quotes, `""` is one quote.
//! - An empty value, `mac=`, means the default, as in Cloud Hypervisor.

mod de;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ConfigError;
use super::section::{NONE_PASSED, Passed, Section};
use de::{OptionError, PairsDeserializer};

/// A type that can be given as an option string.
pub(crate) trait OptionString: Section + Serialize + DeserializeOwned {
    /// Keys that are spelled differently on the command line: (command line, JSON path).
    const RENAMES: &'static [(&'static str, &'static str)] = &[];
    /// Fields that cannot be given on the command line.
    const JSON_ONLY: &'static [&'static str] = &[];
    /// Words that can be given without a value.
    const WORDS: &'static [&'static str] = &[];

    /// Adds what the command line leaves out and JSON spells out.
    fn complete(_pairs: &mut Pairs) {}
}

/// The pairs of an option string, in their order.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    pairs: Vec<(String, String)>,
    words: Vec<String>,
}

impl Pairs {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let pair = self.pairs.iter().find(|(name, _)| name == key);
        pair.map(|(_, value)| value.as_str())
    }

    /// Adds a pair.
    pub(crate) fn push(&mut self, key: &str, value: &str) {
        self.pairs.push((key.to_owned(), value.to_owned()));
    }

    /// Takes out the value of a key.
    fn take(&mut self, key: &str) -> Option<String> {
        let index = self.pairs.iter().position(|(name, _)| name == key)?;
        Some(self.pairs.remove(index).1)
    }

    /// Takes out the words that stand without a value.
    pub(crate) fn take_words(&mut self) -> Vec<String> {
        std::mem::take(&mut self.words)
    }

    fn refuse_duplicates(&self) -> Result<(), ConfigError> {
        for (index, (key, _)) in self.pairs.iter().enumerate() {
            if self.pairs[..index]
                .iter()
                .any(|(earlier, _)| earlier == key)
            {
                return Err(ConfigError::DuplicateKey { key: key.clone() });
            }
        }
        Ok(())
    }
}

/// Reads a type from an option string and checks it.
///
/// # Errors
/// What is wrong first; the field is named as on the command line.
pub(crate) fn parse<T: OptionString>(text: &str) -> Result<T, ConfigError> {
    let keys = Keys::of::<T>();
    let pairs = keys.split(text)?;
    read(text, &keys, pairs, NONE_PASSED)
}

/// Reads a type that may be backed by a descriptor, whose number is given as `fd=N` beside the keys of the type, and
/// checks it.
///
/// # Errors
/// What is wrong first; the field is named as on the command line.
pub(crate) fn parse_with_fd<T: OptionString>(text: &str) -> Result<(T, Option<i32>), ConfigError> {
    let keys = Keys {
        beside: &[FD],
        ..Keys::of::<T>()
    };
    let mut pairs = keys.split(text)?;
    let fd = pairs.take(FD).map(|value| number_of_open(&value));
    let fd = fd.transpose()?;
    let value = read(text, &keys, pairs, &|_| usize::from(fd.is_some()))?;
    Ok((value, fd))
}

/// Splits an option string into keys and values, whatever the keys are.
///
/// # Errors
/// What is not `key=value`, or has a quote or bracket that is not closed.
pub fn split_pairs(text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let mut pairs = Pairs::default();
    for item in split_outside(text, ',')? {
        let Some((key, value)) = item.split_once('=') else {
            return Err(ConfigError::Syntax {
                found: item.to_owned(),
                problem: "expected key=value".to_owned(),
            });
        };
        pairs.push(key.trim(), &unquoted(value));
    }
    pairs.refuse_duplicates()?;
    Ok(pairs.pairs)
}

const FD: &str = "fd";

fn number_of_open(value: &str) -> Result<i32, ConfigError> {
    let number = value.parse().ok().filter(|number| *number > 2);
    let problem = "expected the number of a descriptor above 2, as 0 to 2 are the terminal's";
    number.ok_or_else(|| ConfigError::invalid(FD, value, problem))
}

/// Reads a type from the pairs that `text` consists of. So many descriptors are `passed` with it.
fn read<T: OptionString>(
    text: &str,
    keys: &Keys,
    mut pairs: Pairs,
    passed: Passed<'_>,
) -> Result<T, ConfigError> {
    T::complete(&mut pairs);
    pairs.refuse_duplicates()?;
    let deserializer = PairsDeserializer::new(&pairs.pairs, T::RENAMES);
    let value = T::deserialize(deserializer).map_err(|error| match error {
        OptionError::Config(error) => error,
        OptionError::Problem(problem) => ConfigError::Syntax {
            found: text.to_owned(),
            problem,
        },
    })?;
    value
        .validate_with(passed)
        .map_err(|error| error.map_field(|field| keys.on_command_line(field, &pairs)))?;
    Ok(value)
}

/// The keys of a type as they are spelled on the command line.
struct Keys {
    fields: &'static [&'static str],
    renames: &'static [(&'static str, &'static str)],
    json_only: &'static [&'static str],
    unsupported: &'static [&'static str],
    words: &'static [&'static str],
    /// Keys that are no fields of the type.
    beside: &'static [&'static str],
}

impl Keys {
    fn of<T: OptionString>() -> Self {
        Self {
            fields: de::fields_of::<T>(),
            renames: T::RENAMES,
            json_only: T::JSON_ONLY,
            unsupported: T::UNSUPPORTED,
            words: T::WORDS,
            beside: &[],
        }
    }

    /// Each key that can be given, with the JSON field it ends up in.
    fn all(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.fields
            .iter()
            .filter(|field| !self.json_only.contains(field))
            .flat_map(|&field| {
                let renamed = self
                    .renames
                    .iter()
                    .filter(move |(_, path)| first_segment(path) == field)
                    .map(move |&(key, _)| (key, field));
                let unchanged = (!self
                    .renames
                    .iter()
                    .any(|(_, path)| first_segment(path) == field))
                .then_some((field, field));
                renamed.chain(unchanged)
            })
            .chain(self.beside.iter().map(|&key| (key, key)))
    }

    /// The keys worth naming to somebody who mistyped one: those of which a value other than the default is taken.
    fn known(&self) -> String {
        let words = self.words.iter().copied();
        words.chain(self.supported()).collect::<Vec<_>>().join(", ")
    }

    /// The keys of which a value other than the default is taken.
    fn supported(&self) -> impl Iterator<Item = &'static str> {
        self.all()
            .filter(|(_, field)| !self.unsupported.contains(field))
            .map(|(key, _)| key)
    }

    /// How the command line spells a JSON field: the key that was given for it or, when none was, the first there is.
    fn on_command_line(&self, field: &str, pairs: &Pairs) -> String {
        let keys = || self.all().filter(|(_, of)| *of == field);
        let key = keys()
            .find(|(key, _)| pairs.get(key).is_some())
            .or_else(|| keys().next());
        key.map_or(field, |(key, _)| key).to_owned()
    }

    /// What was expected instead of `item`, which is neither a pair nor one of the words.
    fn expected(&self, item: &str) -> String {
        if self.all().any(|(known, _)| known == item) {
            return format!("expected {item}=VALUE");
        }
        if self.words.is_empty() {
            let first = self.supported().next().unwrap_or("key");
            let known = self.known();
            return format!("expected key=value, as in {first}={item}; known keys: {known}");
        }
        let words = self.words.iter().map(|word| (*word).to_owned());
        let pairs = self.supported().map(|key| format!("{key}=VALUE"));
        let all: Vec<_> = words.chain(pairs).collect();
        format!("expected one of {}", all.join(", "))
    }

    /// Splits an option string into pairs of known keys.
    fn split(&self, text: &str) -> Result<Pairs, ConfigError> {
        let mut pairs = Pairs::default();
        if text.trim().is_empty() && self.words.is_empty() {
            return Ok(pairs);
        }
        for item in split_outside(text, ',')? {
            let item = item.trim();
            let Some((key, value)) = item.split_once('=') else {
                if self.words.contains(&item) {
                    pairs.words.push(item.to_owned());
                    continue;
                }
                if item.is_empty() && self.words.is_empty() {
                    return Err(ConfigError::Syntax {
                        found: text.to_owned(),
                        problem: "expected key=value between the commas".to_owned(),
                    });
                }
                return Err(ConfigError::Syntax {
                    found: item.to_owned(),
                    problem: self.expected(item),
                });
            };
            if !self.all().any(|(known, _)| known == key) {
                return Err(ConfigError::UnknownKey {
                    key: key.to_owned(),
                    known: self.known(),
                });
            }
            // A mode has no default that it could mean.
            if value.trim().is_empty() && !self.words.is_empty() {
                return Err(ConfigError::Syntax {
                    found: item.to_owned(),
                    problem: self.expected(key),
                });
            }
            pairs.push(key, value);
        }
        pairs.refuse_duplicates()?;
        pairs.pairs.retain(|(_, value)| !value.trim().is_empty());
        Ok(pairs)
    }
}

fn first_segment(path: &str) -> &str {
    path.split_once('.').map_or(path, |(first, _)| first)
}

/// Splits at a separator that is neither in quotes nor in brackets.
fn split_outside(text: &str, separator: char) -> Result<Vec<&str>, ConfigError> {
    let unbalanced = |what: &str| ConfigError::Syntax {
        found: text.to_owned(),
        problem: format!("expected {what}; a value with such a character is put in quotes"),
    };
    let mut pieces = Vec::new();
    let (mut start, mut depth, mut quoted) = (0, 0_usize, false);
    for (index, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => {
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| unbalanced("a [ before each ]"))?;
            }
            _ if character == separator && depth == 0 => {
                pieces.push(&text[start..index]);
                start = index + character.len_utf8();
            }
            _ => {}
        }
    }
    if quoted {
        return Err(unbalanced("a closing quote"));
    }
    if depth != 0 {
        return Err(unbalanced("a ] for each ["));
    }
    pieces.push(&text[start..]);
    Ok(pieces)
}

/// A value without the quotes around it or around parts of it.
fn unquoted(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.trim().chars().peekable();
    let mut quoted = false;
    while let Some(character) = characters.next() {
        if character != '"' {
            plain.push(character);
        } else if quoted && characters.next_if_eq(&'"').is_some() {
            plain.push('"');
        } else {
            quoted = !quoted;
        }
    }
    plain
}
