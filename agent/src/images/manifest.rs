//! Image indexes, manifests and configurations.
//!
//! In: bytes that are already verified. Out: what a pull needs of them, with every size, digest and
//! media type checked. Formats: OCI image specification 1.1
//! (<https://github.com/opencontainers/image-spec/tree/v1.1.0>) and Docker's image manifest
//! version 2, schema 2. Pure; schema 1, encrypted and foreign layers are refused.

use coracle_core::image::Digest;
use serde::Deserialize;

use super::platform::Platform;

/// Largest index, manifest or image configuration, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers of an image.
pub(crate) const MAX_LAYERS: usize = 128;
/// Most entries of an index.
const MAX_ENTRIES: usize = 1024;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// Points at content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// What a reference can name.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// One image for several platforms.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) media_type: &'static str,
    entries: Vec<(Descriptor, Option<Platform>)>,
}

/// One image for one platform.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) media_type: &'static str,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// The parts of an image configuration that decide whether and how it is unpacked.
#[derive(Debug)]
pub(crate) struct ImageConfig {
    pub(crate) platform: Platform,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Why a document cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A sentence.
    Invalid(String),
    /// A media type that is not handled.
    Unsupported(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor, Flaw> {
        let digest = Digest::parse(&self.digest)
            .map_err(|why| Flaw::Invalid(format!("{why}: {:?}", shorten(&self.digest))))?;
        if i64::try_from(self.size).is_err() {
            return invalid(format!("size {} of {digest} is out of range", self.size));
        }
        Ok(Descriptor { media_type: self.media_type, digest, size: self.size })
    }
}

impl Document {
    /// Reads an index or a manifest. Its kind is what it says itself; `content_type` (the server's,
    /// or a descriptor's) counts only where it says nothing.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, Flaw> {
        let raw: RawDocument = json(bytes)?;
        if raw.schema_version == 1 {
            return Err(Flaw::Unsupported("image manifest schema 1".into()));
        }
        if raw.schema_version != 2 {
            return invalid(format!("schemaVersion is {}, not 2", raw.schema_version));
        }
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return invalid("it is both an index and a manifest");
        }
        let said = raw.media_type.as_deref().or(content_type).map(essence);
        let media_type = match said {
            Some(OCI_INDEX) => OCI_INDEX,
            Some(DOCKER_LIST) => DOCKER_LIST,
            Some(OCI_MANIFEST) => OCI_MANIFEST,
            Some(DOCKER_MANIFEST) => DOCKER_MANIFEST,
            Some("application/json" | "application/octet-stream" | "text/plain") | None => {
                if raw.manifests.is_some() { OCI_INDEX } else { OCI_MANIFEST }
            }
            Some(other) => return Err(Flaw::Unsupported(shorten(other).to_owned())),
        };
        match (media_type, raw.manifests, raw.config, raw.layers) {
            (OCI_INDEX | DOCKER_LIST, Some(entries), None, None) => {
                Index::check(media_type, entries).map(Self::Index)
            }
            (OCI_MANIFEST | DOCKER_MANIFEST, None, Some(config), layers) => {
                Manifest::check(media_type, config, layers.unwrap_or_default()).map(Self::Manifest)
            }
            _ => invalid(format!("it lacks what a {media_type} has")),
        }
    }
}

impl Index {
    fn check(media_type: &'static str, entries: Vec<RawDescriptor>) -> Result<Self, Flaw> {
        if entries.len() > MAX_ENTRIES {
            return invalid(format!("{} entries, more than {MAX_ENTRIES}", entries.len()));
        }
        let entry = |mut raw: RawDescriptor| {
            let platform = raw.platform.take();
            Ok((raw.check()?, platform))
        };
        let entries = entries.into_iter().map(entry).collect::<Result<_, Flaw>>()?;
        Ok(Self { media_type, entries })
    }

    /// The entry that runs best on `host` and its place in the index. An entry that does not say
    /// its platform is taken only if it is the only one (its configuration is checked later).
    pub(crate) fn choose(&self, host: &Platform) -> Option<(usize, &Descriptor)> {
        if let [(only, None)] = self.entries.as_slice() {
            return Some((0, only));
        }
        let fit = |(at, (descriptor, platform)): (usize, &'_ (Descriptor, Option<Platform>))| {
            let fit = host.fit(platform.as_ref()?)?;
            Some((fit, at, descriptor.digest.clone()))
        };
        let (_, at, _) =
            self.entries.iter().enumerate().filter_map(fit).min_by_key(|f| (f.0, f.1))?;
        Some((at, &self.entries[at].0))
    }

    /// The platforms it has, for people; attestations (`unknown/unknown`) left out.
    pub(crate) fn platforms(&self) -> Vec<String> {
        let known = |p: &&Platform| p.os != "unknown";
        let mut all: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(_, platform)| platform.as_ref())
            .filter(known)
            .map(|platform| shorten(&platform.to_string()).to_owned())
            .collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(32);
        all
    }
}

impl Manifest {
    fn check(
        media_type: &'static str,
        config: RawDescriptor,
        layers: Vec<RawDescriptor>,
    ) -> Result<Self, Flaw> {
        let config = config.check()?;
        if !CONFIGS.contains(&config.media_type.as_str()) {
            return Err(Flaw::Unsupported(shorten(&config.media_type).to_owned()));
        }
        if config.size > MAX_DOCUMENT {
            return invalid(format!("image configuration of {} bytes is too large", config.size));
        }
        if layers.len() > MAX_LAYERS {
            return invalid(format!("{} layers, more than {MAX_LAYERS}", layers.len()));
        }
        let layers: Vec<_> =
            layers.into_iter().map(RawDescriptor::check).collect::<Result<_, _>>()?;
        match layers.iter().find(|layer| !LAYERS.contains(&layer.media_type.as_str())) {
            Some(layer) => Err(Flaw::Unsupported(shorten(&layer.media_type).to_owned())),
            None => Ok(Self { media_type, config, layers }),
        }
    }

    /// Bytes to hold of configuration and layers, as compressed; equal layers count once.
    pub(crate) fn bytes(&self) -> u64 {
        let mut all: Vec<_> = self.layers.iter().chain([&self.config]).collect();
        all.sort_unstable_by_key(|blob| &blob.digest);
        all.dedup_by_key(|blob| &blob.digest);
        all.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size))
    }
}

impl ImageConfig {
    /// Reads an image configuration.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let raw: RawConfig = json(bytes)?;
        if raw.rootfs.diff_ids.len() > MAX_LAYERS {
            return invalid(format!("{} layers in rootfs", raw.rootfs.diff_ids.len()));
        }
        let digest = |text: &String| {
            Digest::parse(text).map_err(|why| Flaw::Invalid(format!("rootfs.diff_ids: {why}")))
        };
        let diff_ids = raw.rootfs.diff_ids.iter().map(digest).collect::<Result<_, _>>()?;
        Ok(Self { platform: raw.platform, diff_ids })
    }

    /// The chain ids of the layers, lowest first
    /// (<https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md#layer-chainid>).
    pub(crate) fn chain_ids(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            let next = match chain.last() {
                Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()).to_string(),
                None => diff_id.to_string(),
            };
            chain.push(next);
        }
        chain
    }
}

/// The SHA-256 digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    written(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// A finished SHA-256 as a digest.
pub(crate) fn written(hash: &[u8]) -> Digest {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    match Digest::parse(&format!("sha256:{hex}")) {
        Ok(digest) => digest,
        Err(_) => unreachable!("SHA-256 has 32 bytes"),
    }
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Flaw> {
    serde_json::from_slice(bytes).map_err(|why| Flaw::Invalid(why.to_string()))
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Invalid(why.into()))
}

/// A content type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// At most 100 bytes of foreign text, for a message.
fn shorten(text: &str) -> &str {
    let end = (0..=text.len().min(100)).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn manifest(config: &str, layer: &str, count: usize) -> String {
        let layer = format!(r#"{{"mediaType":"{layer}","digest":"{B}","size":7}}"#);
        let layers = vec![layer; count].join(",");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",
                "config":{{"mediaType":"{config}","digest":"{A}","size":5}},"layers":[{layers}]}}"#
        )
    }

    fn flaw(text: &str, content_type: Option<&str>) -> String {
        format!("{:?}", Document::parse(text.as_bytes(), content_type).unwrap_err())
    }

    #[test]
    fn a_manifest_is_read_and_equal_layers_count_once() {
        let text = manifest(CONFIGS[0], LAYERS[2], 3);
        let Document::Manifest(read) = Document::parse(text.as_bytes(), None).unwrap() else {
            panic!("not a manifest")
        };
        assert_eq!((read.layers.len(), read.bytes()), (3, 12));
        let docker = text.replace(OCI_MANIFEST, DOCKER_MANIFEST);
        assert!(Document::parse(docker.as_bytes(), Some(OCI_INDEX)).is_ok());
        let unsaid = text.replace(&format!(r#""mediaType":"{OCI_MANIFEST}","#), "");
        assert!(Document::parse(unsaid.as_bytes(), Some("application/json; x=y")).is_ok());
        assert!(Document::parse(unsaid.as_bytes(), None).is_ok());
    }

    #[test]
    fn what_is_not_handled_is_refused_by_name() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        for (text, content_type, says) in [
            (manifest(CONFIGS[0], foreign, 1), None, foreign),
            (manifest(CONFIGS[0], encrypted, 1), None, encrypted),
            (manifest("application/vnd.cncf.helm.config.v1+json", "", 0), None, "helm"),
            (manifest(CONFIGS[0], LAYERS[0], 129), None, "129 layers"),
            (r#"{"schemaVersion":1,"name":"x"}"#.into(), None, "schema 1"),
            (r#"{"schemaVersion":3}"#.into(), None, "schemaVersion is 3"),
            (r#"{"schemaVersion":2}"#.into(), None, "lacks"),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.into(), None, "both"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.into(), Some("text/x"), "text/x"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.into(), Some(OCI_MANIFEST), "lacks"),
            ("{".into(), None, "EOF"),
            ("[]".into(), None, "Invalid"),
            (manifest(CONFIGS[0], LAYERS[0], 1).replace("aaaa", "AAAA"), None, "digest"),
            (manifest(CONFIGS[0], LAYERS[0], 1).replace(":5}", ":-5}"), None, "Invalid"),
            (manifest(CONFIGS[0], LAYERS[0], 1).replace(":5}", ":5000000}"), None, "too large"),
            (
                manifest(CONFIGS[0], LAYERS[0], 1).replace(":7}", ":18446744073709551615}"),
                None,
                "range",
            ),
        ] {
            let flaw = flaw(&text, content_type);
            assert!(flaw.contains(says), "{text}: {flaw}");
        }
    }

    #[test]
    fn an_index_gives_the_best_entry_or_the_list() {
        let entry = |digest: &str, platform: &str| {
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":7{platform}}}"#)
        };
        let platform = |arch: &str, variant: &str| {
            format!(r#","platform":{{"os":"linux","architecture":"{arch}","variant":"{variant}"}}"#)
        };
        let index = |entries: &[String]| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            match Document::parse(text.as_bytes(), Some(OCI_INDEX)).unwrap() {
                Document::Index(index) => index,
                Document::Manifest(_) => panic!("not an index"),
            }
        };
        let both = index(&[
            entry(A, &platform("arm", "v6")),
            entry(B, &platform("arm", "v7")),
            entry(A, r#","platform":{"os":"unknown","architecture":"unknown"}"#),
        ]);
        let chosen = both.choose(&Platform::new("arm", Some("v7"))).unwrap();
        assert_eq!((chosen.0, chosen.1.digest.as_str()), (1, B));
        assert_eq!(both.choose(&Platform::new("arm", Some("v6"))).unwrap().0, 0);
        assert!(both.choose(&Platform::new("amd64", None)).is_none());
        assert_eq!(both.platforms(), ["linux/arm/v6", "linux/arm/v7"]);
        assert!(index(&[entry(A, "")]).choose(&Platform::new("amd64", None)).is_some());
        assert!(index(&[entry(A, ""), entry(B, "")]).choose(&Platform::host()).is_none());
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let text = format!(
            r#"{{"os":"linux","architecture":"arm","variant":"v7","rootfs":{{"type":"layers","diff_ids":["{A}","{B}"]}}}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform, Platform::new("arm", Some("v7")));
        let second = digest_of(format!("{A} {B}").as_bytes()).to_string();
        assert_eq!(config.chain_ids(), [A.to_owned(), second]);
        assert_eq!(
            digest_of(b"").hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert!(ImageConfig::parse(b"{}").is_err());
    }
}
