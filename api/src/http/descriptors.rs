//! Which descriptor belongs to what.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;

use axum::http::StatusCode;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::answer::Refusal;
use super::intake::Arrived;
use super::limits::MAX_DESCRIPTORS;
use crate::config::{ConfigError, VmConfig};
use crate::request::{Descriptors, INITRAMFS, KERNEL};

/// Indexes into the descriptors of a request, in their order of arrival, by what they are for.
#[derive(Debug, Default)]
pub(super) struct Map(BTreeMap<String, Vec<usize>>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;

        impl<'de> Visitor<'de> for MapVisitor {
            type Value = Map;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from ids to lists of indexes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Map, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((id, indexes)) = access.next_entry::<String, _>()? {
                    if map.contains_key(&id) {
                        return Err(de::Error::custom(format!("{id:?} is given more than once")));
                    }
                    map.insert(id, indexes);
                }
                Ok(Map(map))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

/// The field `fds` of a device that is added.
#[derive(Debug, serde::Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of numbers, or a map from the device's id to one"
)]
pub(super) enum DeviceFds {
    Map(Map),
    List(Vec<i64>),
}

/// The descriptors of a request while it is decided whose they are. Those that nobody takes are closed.
#[derive(Debug)]
pub(super) struct Passed(Vec<Option<OwnedFd>>);

impl Passed {
    pub(super) fn new(arrived: Arrived) -> Result<Self, Refusal> {
        let Arrived {
            descriptors,
            surplus,
            truncated,
        } = arrived;
        if truncated {
            let problem = "not all descriptors could be received: the VMM has too many open";
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, problem));
        }
        if surplus > 0 {
            let count = descriptors.len() + surplus;
            let problem = format!("expected at most {MAX_DESCRIPTORS}");
            return Err(invalid("fds", &format!("of {count} descriptors"), &problem));
        }
        Ok(Self(descriptors.into_iter().map(Some).collect()))
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    /// Takes the one at `index`, which is named by `field`.
    fn take(&mut self, field: &str, index: usize) -> Result<OwnedFd, Refusal> {
        let count = self.count();
        let problem = match (self.0.get_mut(index), count) {
            (Some(slot), _) => match slot.take() {
                Some(descriptor) => return Ok(descriptor),
                None => "expected each descriptor to be named once".to_owned(),
            },
            (None, 0) => {
                "expected descriptors beside the request (SCM_RIGHTS), and none came".to_owned()
            }
            (None, count) => {
                format!("expected an index below {count}, as so many descriptors came")
            }
        };
        Err(invalid(field, &index.to_string(), &problem))
    }

    fn take_all(&mut self) -> Vec<OwnedFd> {
        self.0.drain(..).flatten().collect()
    }

    fn take_listed(&mut self, field: &str, indexes: &[usize]) -> Result<Vec<OwnedFd>, Refusal> {
        if indexes.is_empty() {
            return Err(invalid(field, "[]", "expected one index or more"));
        }
        let indexes = indexes.iter().enumerate();
        indexes
            .map(|(position, &index)| self.take(&format!("{field}[{position}]"), index))
            .collect()
    }

    /// Those of a machine, as its `fds` say.
    pub(super) fn for_machine(
        mut self,
        config: &VmConfig,
        map: &Map,
    ) -> Result<Descriptors, Refusal> {
        for (index, net) in config.net.iter().enumerate() {
            if let Some(fds) = &net.fds {
                let problem = "expected descriptors beside the request (SCM_RIGHTS), named by the machine's fds, as \
                               in {\"ID\": [0]}";
                return Err(invalid(
                    &format!("net[{index}].fds"),
                    &format!("{fds:?}"),
                    problem,
                ));
            }
        }
        let mut descriptors = Descriptors::none();
        for (id, indexes) in &map.0 {
            let field = format!("fds.{id}");
            check_owner(config, id, &field)?;
            descriptors.insert(id, self.take_listed(&field, indexes)?);
        }
        Ok(descriptors)
    }

    /// That of a disk that is added: the one that its `fds` name. Its name may be one that it has yet to get.
    pub(super) fn for_disk(
        mut self,
        id: Option<&str>,
        fds: Option<DeviceFds>,
    ) -> Result<Descriptors, Refusal> {
        let descriptors = match fds {
            None => Vec::new(),
            Some(DeviceFds::Map(map)) => self.take_mapped(id, &map)?,
            Some(DeviceFds::List(numbers)) => {
                let indexes: Result<Vec<_>, _> = numbers
                    .iter()
                    .map(|&number| usize::try_from(number))
                    .collect();
                let shown = format!("{numbers:?}");
                let indexes = indexes
                    .map_err(|_| invalid("fds", &shown, "expected indexes, which begin at 0"))?;
                self.take_listed("fds", &indexes)?
            }
        };
        Ok(of(id, descriptors))
    }

    /// Those of a network that is added. As in Cloud Hypervisor all that came belong to it, and a list says no more than
    /// how many there are: its numbers are those that the descriptors have in the client.
    pub(super) fn for_net(
        mut self,
        id: Option<&str>,
        fds: Option<DeviceFds>,
    ) -> Result<Descriptors, Refusal> {
        let descriptors = match fds {
            Some(DeviceFds::Map(map)) => self.take_mapped(id, &map)?,
            Some(DeviceFds::List(numbers)) if numbers.len() != self.count() => {
                let problem = format!(
                    "expected as many as came beside the request (SCM_RIGHTS), {}",
                    self.count()
                );
                return Err(invalid("fds", &format!("{numbers:?}"), &problem));
            }
            None | Some(DeviceFds::List(_)) => self.take_all(),
        };
        Ok(of(id, descriptors))
    }

    /// Those that a map with the name of the device alone lists.
    fn take_mapped(&mut self, id: Option<&str>, map: &Map) -> Result<Vec<OwnedFd>, Refusal> {
        let mut descriptors = Vec::new();
        for (name, indexes) in &map.0 {
            let field = format!("fds.{name}");
            if id != Some(name) {
                let problem = match id {
                    Some(id) => format!("expected the id of the device, {id:?}"),
                    None => "expected the device to have that id, and it has none".to_owned(),
                };
                return Err(invalid(&field, &format!("{indexes:?}"), &problem));
            }
            descriptors = self.take_listed(&field, indexes)?;
        }
        Ok(descriptors)
    }
}

/// The descriptors of one device.
fn of(id: Option<&str>, descriptors: Vec<OwnedFd>) -> Descriptors {
    let mut all = Descriptors::none();
    if !descriptors.is_empty() {
        all.insert(id.unwrap_or(Descriptors::UNNAMED), descriptors);
    }
    all
}

/// Refuses a name in `fds` that is not that of one thing that is backed by a descriptor.
fn check_owner(config: &VmConfig, id: &str, field: &str) -> Result<(), Refusal> {
    let named = |name: &Option<String>| name.as_deref() == Some(id);
    let is_backed = config.disks.iter().any(|disk| named(&disk.id))
        || config.net.iter().any(|net| named(&net.id));
    let is_payload = matches!(id, KERNEL | INITRAMFS);
    let problem = if config.device_ids().any(|(_, device)| device == id) && is_payload {
        "expected a name of one thing: a device has that id, too"
    } else if is_backed || is_payload {
        return Ok(());
    } else {
        "expected the id of a disk or a network, kernel or initramfs"
    };
    Err(invalid(field, &format!("{id:?}"), problem))
}

fn invalid(field: &str, value: &str, problem: &str) -> Refusal {
    ConfigError::invalid(field, value, problem).into()
}
