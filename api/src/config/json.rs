//! JSON of a request's body.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer,
    MapAccess, Visitor,
};

use super::ConfigError;
use super::objects::Objects;

/// Reads a document.
///
/// # Errors
/// What is wrong first, with the path of the field.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, ConfigError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(Objects(&mut deserializer))
        .map_err(|error| ConfigError::json(&error.path().to_string(), error.inner()))?;
    deserializer
        .end()
        .map_err(|error| ConfigError::json("", &error))?;
    Ok(value)
}

/// An object of the fields of `T` and one more, `fds`.
pub(crate) struct WithFds<T, F> {
    pub(crate) value: T,
    /// `None` when it is not there, or `null`.
    pub(crate) fds: Option<F>,
}

const FDS: &str = "fds";

impl<'de, T: Deserialize<'de>, F: Deserialize<'de>> Deserialize<'de> for WithFds<T, F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SplitVisitor(PhantomData))
    }
}

struct SplitVisitor<T, F>(PhantomData<(T, F)>);

impl<'de, T: Deserialize<'de>, F: Deserialize<'de>> Visitor<'de> for SplitVisitor<T, F> {
    type Value = WithFds<T, F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let mut fds = None;
        let others = Others { map, fds: &mut fds };
        let value = T::deserialize(MapAccessDeserializer::new(others))?;
        Ok(WithFds {
            value,
            fds: fds.flatten(),
        })
    }
}

/// The entries of `map` without `fds`, which is kept.
struct Others<'a, A, F> {
    map: A,
    fds: &'a mut Option<Option<F>>,
}

impl<'de, A: MapAccess<'de>, F: Deserialize<'de>> MapAccess<'de> for Others<'_, A, F> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let mut seed = seed;
        while let Some(key) = self.map.next_key_seed(OtherKey(seed))? {
            seed = match key {
                Ok(key) => return Ok(Some(key)),
                Err(seed) => seed,
            };
            let value = self.map.next_value()?;
            if self.fds.replace(value).is_some() {
                return Err(de::Error::duplicate_field(FDS));
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// A key, or the seed again when the key is `fds`.
struct OtherKey<K>(K);

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for OtherKey<K> {
    type Value = Result<K::Value, K>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        if key == FDS {
            return Ok(Err(self.0));
        }
        self.0.deserialize(key.into_deserializer()).map(Ok)
    }
}
