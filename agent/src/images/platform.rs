//! Which of an image's platforms this machine can run.
//!
//! In: platforms as written in indexes and image configurations
//! (<https://github.com/opencontainers/image-spec/blob/v1.1.0/image-index.md>). Out: how well each
//! fits. Pure.

use std::fmt;

use serde::Deserialize;

/// An operating system, an architecture and a variant of it, in Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// The platform that this program was built for.
    pub(crate) fn host() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::new("amd64", None),
            "aarch64" => Self::new("arm64", Some("v8")),
            "arm" => Self::new("arm", Some("v7")),
            "x86" => Self::new("386", None),
            other => Self::new(other, None),
        }
    }

    pub(crate) fn new(architecture: &str, variant: Option<&str>) -> Self {
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
    }

    /// How well an image for `image` runs here: 0 is best, `None` is not at all.
    pub(crate) fn fit(&self, image: &Self) -> Option<usize> {
        if (&self.os, &self.architecture) != (&image.os, &image.architecture) {
            return None;
        }
        let order = runnable(&self.architecture, self.variant.as_deref());
        order.iter().position(|variant| *variant == image.normal_variant())
    }

    /// The variant, with each architecture's unwritten one filled in.
    fn normal_variant(&self) -> &str {
        match (self.architecture.as_str(), self.variant.as_deref().unwrap_or_default()) {
            ("arm64", "" | "8") => "v8",
            ("arm", "" | "7") => "v7",
            ("arm", "6") => "v6",
            ("arm", "5") => "v5",
            ("amd64", "v1") => "",
            (_, variant) => variant,
        }
    }
}

/// Variants that run on the given one, best first.
fn runnable(architecture: &str, variant: Option<&str>) -> &'static [&'static str] {
    match (architecture, variant) {
        ("arm64", _) => &["v8"],
        ("arm", Some("v5")) => &["v5"],
        ("arm", Some("v6")) => &["v6", "v5"],
        ("arm", _) => &["v7", "v6", "v5"],
        _ => &[""],
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        host: (&str, Option<&str>),
        images: &[(&str, Option<&str>)],
        expect: &[Option<usize>],
    ) {
        let host = Platform::new(host.0, host.1);
        let fits: Vec<_> = images.iter().map(|(a, v)| host.fit(&Platform::new(a, *v))).collect();
        assert_eq!(fits, expect, "{host}: {images:?}");
    }

    #[test]
    fn variants_fall_back_to_older_ones_only() {
        check(
            ("arm", Some("v7")),
            &[
                ("arm", None),
                ("arm", Some("v7")),
                ("arm", Some("v6")),
                ("arm", Some("v5")),
                ("arm", Some("v8")),
                ("arm64", None),
            ],
            &[Some(0), Some(0), Some(1), Some(2), None, None],
        );
        check(("arm", Some("v6")), &[("arm", None), ("arm", Some("v5"))], &[None, Some(1)]);
        check(
            ("arm64", Some("v8")),
            &[("arm64", None), ("arm64", Some("v8")), ("arm64", Some("v9")), ("arm", None)],
            &[Some(0), Some(0), None, None],
        );
        check(
            ("amd64", None),
            &[("amd64", None), ("amd64", Some("v1")), ("amd64", Some("v3")), ("386", None)],
            &[Some(0), Some(0), None, None],
        );
    }

    #[test]
    fn another_operating_system_never_fits() {
        let windows = Platform { os: "windows".into(), ..Platform::new("amd64", None) };
        assert_eq!(Platform::new("amd64", None).fit(&windows), None);
        assert_eq!(windows.to_string(), "windows/amd64");
        assert_eq!(Platform::new("arm", Some("v7")).to_string(), "linux/arm/v7");
    }
}
