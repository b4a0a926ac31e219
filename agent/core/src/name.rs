//! Names, parsed once at the door.

use std::fmt;

use coracle_protocol::limits::{MAX_CONTAINER_NAME, MAX_WORKLOAD_NAME};
use serde::{Deserialize, Serialize};

/// A workload's name: lower-case letters, digits and single hyphens between them, at most 40.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadName(Box<str>);

/// A container's name within its workload: as [`WorkloadName`], at most 30.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerName(Box<str>);

/// The name of a volume, a config map, a secret, an endpoint, a type, a mount or a port: as
/// [`WorkloadName`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceName(Box<str>);

/// A name that breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name must be lower-case letters, digits and single hyphens between them, at most {limit}")]
pub struct InvalidName {
    limit: usize,
}

fn parse(text: &str, limit: usize) -> Result<Box<str>, InvalidName> {
    let word =
        |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if text.len() <= limit && text.split('-').all(word) {
        Ok(text.into())
    } else {
        Err(InvalidName { limit })
    }
}

impl WorkloadName {
    /// Checks the rules for names.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        parse(text, MAX_WORKLOAD_NAME).map(Self)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ContainerName {
    /// Checks the rules for names.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        parse(text, MAX_CONTAINER_NAME).map(Self)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ResourceName {
    /// Checks the rules for names.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        parse(text, MAX_WORKLOAD_NAME).map(Self)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One copy of a workload: its name and an index from 0. Written `web.0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// Of which workload.
    pub workload: WorkloadName,
    /// From 0.
    pub index: u32,
}

/// The id of a container in containerd: `WORKLOAD.INDEX.CONTAINER`, at most 76 characters.
///
/// The same replica always gets the same id, so that containerd itself refuses a second one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(Box<str>);

impl ReplicaId {
    /// The host name of its pod: `web-0`.
    pub fn host_name(&self) -> String {
        format!("{}-{}", self.workload, self.index)
    }

    /// The id of this replica's container called `container`.
    pub fn container(&self, container: &ContainerName) -> ContainerId {
        ContainerId(format!("{self}.{container}").into())
    }
}

impl ContainerId {
    /// The replica and the container that an id of ours names; `None` if it is none of ours.
    pub fn parts(&self) -> Option<(ReplicaId, ContainerName)> {
        let mut parts = self.0.split('.');
        let (workload, index, container) = (parts.next()?, parts.next()?, parts.next()?);
        let replica =
            ReplicaId { workload: WorkloadName::parse(workload).ok()?, index: index.parse().ok()? };
        let container = ContainerName::parse(container).ok()?;
        (replica.container(&container) == *self).then_some((replica, container))
    }

    /// Less than every id of this replica's containers, and greater than those of the ones before.
    pub(crate) fn first_of(replica: &ReplicaId) -> Self {
        Self(format!("{replica}.").into())
    }

    /// The same of all replicas of a workload.
    pub(crate) fn first_of_workload(workload: &WorkloadName) -> Self {
        Self(format!("{workload}.").into())
    }

    /// An id as containerd lists it; not necessarily one that we would give.
    pub fn from_listed(text: &str) -> Self {
        Self(text.into())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! show {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
show!(WorkloadName, ContainerName, ResourceName, ContainerId);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.workload, self.index)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_rules() {
        for good in ["a", "web", "web-1", "0", &"x".repeat(40)] {
            assert!(WorkloadName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "a-", "-a", "a--b", "A", "a.b", "a_b", "ä", "a/b", &"x".repeat(41)] {
            assert!(WorkloadName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_container_id_fits_containerd() {
        let workload = WorkloadName::parse(&"w".repeat(40)).unwrap();
        let container = ContainerName::parse(&"c".repeat(30)).unwrap();
        let id = ReplicaId { workload, index: coracle_protocol::limits::MAX_REPLICAS }
            .container(&container);
        assert!(id.as_str().len() <= 76, "{}", id.as_str().len());
    }
}
