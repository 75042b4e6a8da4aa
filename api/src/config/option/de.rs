//! The serde side of option strings: pairs in, any config type out.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::{first_segment, split_outside, unquoted};
use crate::config::{ByteSize, ConfigError};

/// Most entries that the ranges of one list may have.
const MAX_LIST: usize = 65536;

/// Why a value could not be read.
#[derive(Debug)]
pub(super) enum OptionError {
    /// What is wrong with the value; the key is not known yet.
    Problem(String),
    /// The whole story.
    Config(ConfigError),
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(problem) => f.write_str(problem),
            Self::Config(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OptionError {}

impl de::Error for OptionError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Problem(message.to_string())
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Problem(format!("expected {expected}"))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Problem(format!("expected {expected}"))
    }
}

impl From<ConfigError> for OptionError {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Syntax { problem, .. } => Self::Problem(problem),
            error => Self::Config(error),
        }
    }
}

fn problem<T>(text: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError::Problem(text.into()))
}

/// One pair on its way into a struct: the key as written, the rest of its JSON path, the value.
#[derive(Clone, Copy)]
struct Entry<'a> {
    key: &'a str,
    path: &'a str,
    value: &'a str,
}

/// Pairs that become a struct. A JSON path of several segments becomes structs within it.
pub(super) struct PairsDeserializer<'a> {
    entries: Vec<Entry<'a>>,
}

impl<'a> PairsDeserializer<'a> {
    pub(super) fn new(pairs: &'a [(String, String)], renames: &'a [(&'a str, &'a str)]) -> Self {
        let path = |key: &'a str| {
            let renamed = renames.iter().find(|(name, _)| *name == key);
            renamed.map_or(key, |(_, path)| *path)
        };
        let entries = pairs
            .iter()
            .map(|(key, value)| Entry {
                key,
                path: path(key),
                value,
            })
            .collect();
        Self { entries }
    }
}

impl<'de> de::Deserializer<'de> for PairsDeserializer<'_> {
    type Error = OptionError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        visitor.visit_map(Fields {
            entries: self.entries,
            current: Vec::new(),
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The fields of a struct, one at a time; those with the same first segment go together.
struct Fields<'a> {
    entries: Vec<Entry<'a>>,
    current: Vec<Entry<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = OptionError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, OptionError> {
        let Some(first) = self.entries.first() else {
            return Ok(None);
        };
        let field = first_segment(first.path);
        let same = |entry: &Entry<'_>| first_segment(entry.path) == field;
        (self.current, self.entries) = self.entries.iter().partition(|entry| same(entry));
        seed.deserialize(field.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, OptionError> {
        let entries = std::mem::take(&mut self.current);
        match entries.as_slice() {
            [entry] if !entry.path.contains('.') => {
                seed.deserialize(Text(entry.value))
                    .map_err(|error| match error {
                        OptionError::Problem(problem) => OptionError::Config(ConfigError::invalid(
                            entry.key,
                            format!("{:?}", unquoted(entry.value)),
                            problem,
                        )),
                        error => error,
                    })
            }
            _ => {
                let entries = entries
                    .iter()
                    .map(|entry| Entry {
                        path: entry.path.split_once('.').map_or("", |(_, rest)| rest),
                        ..*entry
                    })
                    .collect();
                seed.deserialize(PairsDeserializer { entries })
            }
        }
    }
}

/// One value; the type that is wanted says how it is read.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl<'de> IntoDeserializer<'de, OptionError> for Text<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Text<'_> {
    fn integer<T: FromStr>(
        self,
        min: impl fmt::Display,
        max: impl fmt::Display,
    ) -> Result<T, OptionError> {
        let value = unquoted(self.0);
        value
            .parse()
            .or_else(|_| problem(format!("expected an integer from {min} to {max}")))
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
            visitor.$visit(self.integer::<$type>(<$type>::MIN, <$type>::MAX)?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Text<'_> {
    type Error = OptionError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        visitor.visit_string(unquoted(self.0))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        match unquoted(self.0).as_str() {
            "on" | "true" => visitor.visit_bool(true),
            "off" | "false" => visitor.visit_bool(false),
            _ => problem("expected on or off"),
        }
    }

    integers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, OptionError> {
        if name == ByteSize::SERDE_NAME {
            let size: ByteSize = unquoted(self.0).parse()?;
            return visitor.visit_newtype_struct(size.0.into_deserializer());
        }
        visitor.visit_newtype_struct(self)
    }

    /// `[1,3-4]`; one value needs no brackets.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionError> {
        let items = expand_ranges(&list_items(self.0)?)?;
        let items = items.iter().map(|item| Text(item));
        visitor.visit_seq(SeqDeserializer::new(items))
    }

    /// `2:4:1:1` or `0@[1,3]`: the fields in their order. Otherwise a list of the names of flags that are set.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionError> {
        for separator in [':', '@'] {
            let parts = split_outside(self.0, separator)?;
            if parts.len() == 1 {
                continue;
            }
            if parts.len() != fields.len() {
                return problem(format!("expected {}", fields.join(&separator.to_string())));
            }
            let parts = fields.iter().copied().zip(parts.into_iter().map(Text));
            return MapAccessDeserializer::new(de::value::MapDeserializer::new(parts))
                .deserialize_any(visitor);
        }
        let flags = list_items(self.0)?;
        let mut pairs = Vec::with_capacity(flags.len());
        for flag in flags {
            match fields.iter().find(|field| **field == flag) {
                Some(field) => pairs.push((*field, Text("on"))),
                // A struct of one flag is a list; one of several fields is written in their order.
                None if fields.len() == 1 => {
                    return problem(format!("expected a list of {}", fields.join(", ")));
                }
                None => return problem(format!("expected {}", fields.join(":"))),
            }
        }
        MapAccessDeserializer::new(de::value::MapDeserializer::new(pairs.into_iter()))
            .deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionError> {
        let plain = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
        let given = plain(&unquoted(self.0));
        match variants.iter().find(|variant| plain(variant) == given) {
            Some(variant) => visitor.visit_enum((*variant).into_deserializer()),
            None => {
                let names: Vec<_> = variants.iter().map(|name| kebab_case(name)).collect();
                problem(format!("expected one of {}", names.join(", ")))
            }
        }
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

/// The items of a list: brackets are needed only around several.
fn list_items(text: &str) -> Result<Vec<&str>, OptionError> {
    let text = text.trim();
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    let items = split_outside(inner, ',')?;
    Ok(items.into_iter().map(str::trim).collect())
}

/// Replaces `3-5` by `3`, `4`, `5`.
fn expand_ranges(items: &[&str]) -> Result<Vec<String>, OptionError> {
    let mut expanded = Vec::with_capacity(items.len());
    for item in items {
        let range = item.split_once('-').and_then(|(first, last)| {
            Some((first.parse::<u32>().ok()?, last.parse::<u32>().ok()?))
        });
        match range {
            None => expanded.push((*item).to_owned()),
            Some((first, last)) if first <= last && ((last - first) as usize) < MAX_LIST => {
                expanded.extend((first..=last).map(|index| index.to_string()));
            }
            Some(_) => return problem(format!("expected a range FIRST-LAST, not {item:?}")),
        }
        if expanded.len() > MAX_LIST {
            return problem(format!("expected at most {MAX_LIST} entries"));
        }
    }
    Ok(expanded)
}

fn kebab_case(name: &str) -> String {
    let mut kebab = String::with_capacity(name.len() + 2);
    for (index, character) in name.chars().enumerate() {
        if character.is_ascii_uppercase() && index > 0 {
            kebab.push('-');
        }
        kebab.push(character.to_ascii_lowercase());
    }
    kebab
}

/// The names of a struct's fields, as its serde code announces them.
pub(super) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let fields = Cell::new(&[] as &'static [&'static str]);
    // Ends in an error by design: the fields are all that is wanted of it.
    let _ = T::deserialize(FieldsProbe(&fields));
    fields.get()
}

struct FieldsProbe<'a>(&'a Cell<&'static [&'static str]>);

impl<'de> de::Deserializer<'de> for FieldsProbe<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.set(fields);
        Err(de::Error::custom("only the fields were wanted"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
