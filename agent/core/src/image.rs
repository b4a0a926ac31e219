//! Image references.
//!
//! Grammar: `HOST[:PORT]/PATH[:TAG][@DIGEST]`, as in the distribution specification's references
//! (<https://github.com/distribution/reference>), with the registry always written out: a gateway
//! must not depend on somebody's idea of a default registry.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A parsed image reference. Without tag and digest the tag is `latest`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

/// A content digest: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Box<str>);

/// The text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidImage(String);

impl Digest {
    /// Checks form and algorithm.
    pub fn parse(text: &str) -> Result<Self, InvalidImage> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() == 64 && hex.bytes().all(digit) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidImage("digest must be sha256: and 64 lower-case hexadecimal digits".into()))
        }
    }

    /// `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl ImageRef {
    /// Parses a reference with its registry written out.
    ///
    /// # Errors
    /// A sentence that says what is wrong and, for a short name, what was probably meant.
    pub fn parse(text: &str) -> Result<Self, InvalidImage> {
        let wrong = |why: &str| Err(InvalidImage(format!("image reference {why}")));
        if text.len() > 512 {
            return wrong("is longer than 512 characters");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, path)
            }
            Some(_) => return wrong(&format!("needs its registry, such as docker.io/{text}")),
            None => return wrong(&format!("needs its registry, such as docker.io/library/{text}")),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_host(registry) {
            return wrong("has a registry that is not HOST or HOST:PORT");
        }
        if !repository.split('/').all(is_component) {
            return wrong(
                "has a path that is not lower-case letters and digits, separated by . _ - or /",
            );
        }
        if let Some(tag) = tag {
            let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            let all = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
            if !first || !all || tag.len() > 128 {
                return wrong("has a tag that is not letters, digits, . _ or -, at most 128");
            }
        }
        let tag = match (&digest, tag) {
            (None, None) => Some("latest"),
            (_, tag) => tag,
        };
        Ok(Self {
            registry: registry.into(),
            repository: repository.into(),
            tag: tag.map(Into::into),
            digest,
        })
    }

    /// `HOST` or `HOST:PORT`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest, or else the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.len() <= 253
        && host.split('.').all(label)
        && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, the distribution specification's path component.
fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(alnum) && text.bytes().last().is_some_and(alnum);
    let separator = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    ends && text.split(|c: char| c.is_ascii() && alnum(c as u8)).all(separator)
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = InvalidImage;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidImage;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written_alike() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for text in [
            "docker.io/library/nginx:1.27",
            "127.0.0.1:5000/web:latest",
            "localhost/a/b_c/d-e:x",
            "registry.example/a__b/c---d:v1.2-rc_3",
            &format!("ghcr.io/x/y@{digest}"),
            &format!("ghcr.io/x/y:1@{digest}"),
        ] {
            assert_eq!(ImageRef::parse(text).unwrap().to_string(), text);
        }
        let bare = ImageRef::parse("quay.io/a/b").unwrap();
        assert_eq!(bare.to_string(), "quay.io/a/b:latest");
        let pinned = ImageRef::parse(&format!("ghcr.io/x/y:1@{digest}")).unwrap();
        assert_eq!(pinned.target(), digest);
    }

    #[test]
    fn bad_references_are_refused_and_short_names_get_a_hint() {
        for bad in [
            "",
            "nginx",
            "library/nginx",
            "docker.io/",
            "docker.io/A",
            "docker.io/a:",
            "docker.io//a",
            "docker.io/a:b:c",
            "a.b:0/x",
            "a.b:99999/x",
            "-a.b/x",
            "docker.io/a@sha256:12",
            "docker.io/a..b",
            "docker.io/a___b",
            "http://docker.io/a",
            "docker.io/a b",
            "docker.io/../etc",
            "docker.io/é",
        ] {
            assert!(ImageRef::parse(bad).is_err(), "{bad}");
        }
        let hint = ImageRef::parse("nginx").unwrap_err().to_string();
        assert!(hint.contains("docker.io/library/nginx"), "{hint}");
    }
}
