//! Names of software that is no image: artifacts, and the coordinates of the services that run them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::{Digest, ImageRef};

/// Longest group, name or version, in bytes.
const MAX_PART: usize = 100;
/// Longest part of a coordinate, in bytes.
const MAX_COORDINATE_PART: usize = 40;

/// Which artifact: a ZIP called `group:name:version`, as in `org.example.plant:gauge:1.4.2`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactId {
    group: Box<str>,
    name: Box<str>,
    version: Box<str>,
}

/// The text does not name an artifact, or a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidArtifact(&'static str);

impl ArtifactId {
    /// Parses `group:name:version`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidArtifact> {
        let mut parts = text.split(':');
        let (Some(group), Some(name), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidArtifact(
                "an artifact is written group:name:version, such as org.example:gauge:1.4.2",
            ));
        };
        let word = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        let in_group = |w: &str| !w.is_empty() && w.bytes().all(word);
        if group.len() > MAX_PART || !group.split('.').all(in_group) {
            return Err(InvalidArtifact(
                "an artifact's group must be words of letters, digits, - and _ with dots between \
                 them, at most 100 characters",
            ));
        }
        let plain = |text: &str| {
            text.len() <= MAX_PART
                && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                && text.bytes().all(|b| word(b) || b".+".contains(&b))
        };
        if !plain(name) || !plain(version) {
            return Err(InvalidArtifact(
                "an artifact's name and version must begin with a letter or a digit and have \
                 letters, digits and . + - _ only, at most 100 characters",
            ));
        }
        Ok(Self { group: group.into(), name: name.into(), version: version.into() })
    }

    /// Words with dots between them, such as `org.example.plant`.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The artifact's name in its group.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of several, in whatever way its makers count.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// An artifact as an order asks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactRef {
    /// Which.
    pub id: ArtifactId,
    /// Of the ZIP. Without it, what the repository says in the file beside it.
    pub digest: Option<Digest>,
    /// URL of the repository that has it; without it, those that the gateway is configured with.
    pub repository: Option<Box<str>>,
}

/// What a container is started from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Software {
    /// An image, in containerd.
    Image(ImageRef),
    /// An artifact, beside the gateway's own files.
    Artifact(ArtifactRef),
}

impl Software {
    /// What it is called: `image` or `artifact`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Artifact(_) => "artifact",
        }
    }

    /// The image, if it is one.
    pub fn image(&self) -> Option<&ImageRef> {
        match self {
            Self::Image(image) => Some(image),
            Self::Artifact(_) => None,
        }
    }

    /// The artifact, if it is one.
    pub fn artifact(&self) -> Option<&ArtifactRef> {
        match self {
            Self::Image(_) => None,
            Self::Artifact(artifact) => Some(artifact),
        }
    }
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(image) => image.fmt(f),
            Self::Artifact(artifact) => artifact.id.fmt(f),
        }
    }
}

/// Where a native service stands: `instance.service.user.cell`. Each part is lower-case letters,
/// digits, `-` and `_`, a letter or a digit first, at most 40.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Coordinate {
    /// Which of the service's instances.
    pub instance: Box<str>,
    /// Which service.
    pub service: Box<str>,
    /// Whose it is.
    pub user: Box<str>,
    /// In which part of the plant.
    pub cell: Box<str>,
}

impl Coordinate {
    /// Parses `instance.service.user.cell`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidArtifact> {
        let mut parts = text.split('.');
        let (Some(instance), Some(service), Some(user), Some(cell), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidArtifact(
                "a coordinate is written instance.service.user.cell, such as a.gauge.alice.line-1",
            ));
        };
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let part = |text: &&str| {
            text.len() <= MAX_COORDINATE_PART
                && text.bytes().next().is_some_and(good)
                && text.bytes().all(|b| good(b) || b"-_".contains(&b))
        };
        if ![instance, service, user, cell].iter().all(part) {
            return Err(InvalidArtifact(
                "each part of a coordinate must begin with a lower-case letter or a digit and have \
                 lower-case letters, digits, - and _ only, at most 40 characters",
            ));
        }
        let [instance, service, user, cell] = [instance, service, user, cell].map(Into::into);
        Ok(Self { instance, service, user, cell })
    }

    /// Where the replica with this index stands: the first one at the coordinate itself, a further
    /// one at `INSTANCE-INDEX`.
    pub fn of_replica(&self, index: u32) -> Self {
        match index {
            0 => self.clone(),
            index => Self { instance: format!("{}-{index}", self.instance).into(), ..self.clone() },
        }
    }
}

macro_rules! text {
    ($($name:ty, $self:ident => ($($arg:tt)*);)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $self = self;
                write!(f, $($arg)*)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl FromStr for $name {
            type Err = InvalidArtifact;
            fn from_str(text: &str) -> Result<Self, InvalidArtifact> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidArtifact;
            fn try_from(text: String) -> Result<Self, InvalidArtifact> {
                Self::parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}
text! {
    ArtifactId, it => ("{}:{}:{}", it.group, it.name, it.version);
    Coordinate, it => ("{}.{}.{}.{}", it.instance, it.service, it.user, it.cell);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_named_by_three_parts_that_are_paths_of_nothing_else() {
        let id = ArtifactId::parse("org.example.plant:gauge:1.4.2+b7").unwrap();
        assert_eq!(
            (id.group(), id.name(), id.version()),
            ("org.example.plant", "gauge", "1.4.2+b7")
        );
        assert_eq!(id.to_string(), "org.example.plant:gauge:1.4.2+b7");
        let long = format!("g:n:{}", "1".repeat(101));
        for bad in [
            "", "a:b", "a:b:c:d", "a::c", "a..b:n:1", ".a:n:1", "a/b:n:1", "g:..:1", "g:.n:1",
            "g:n:..", "g:n/x:1", "g:n:1 2", "g:n:-1", "g:ü:1", &long,
        ] {
            assert!(ArtifactId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn services_stand_at_coordinates() {
        let at = Coordinate::parse("a.gauge.alice.line-1").unwrap();
        assert_eq!(at.of_replica(0), at);
        assert_eq!(at.of_replica(2).to_string(), "a-2.gauge.alice.line-1");
        let long = format!("{}.b.c.d", "a".repeat(41));
        for bad in ["", "a.b.c", "a.b.c.d.e", "a..c.d", "A.b.c.d", "-a.b.c.d", "a.b/c.d.e", &long] {
            assert!(Coordinate::parse(bad).is_err(), "{bad:?}");
        }
    }
}
