//! OCI images made on the spot (image-spec 1.1: manifest, index, config, layer). In: layers and
//! a configuration. Out: bytes with digests, ready to be pushed or imported.

mod layer;
mod ready;

use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Result;
pub use layer::{Compression, Layer};
pub use ready::GREETING;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Bytes with their media type and digest (`sha256:HEX`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The media type.
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The content.
    pub bytes: Arc<[u8]>,
}

impl Blob {
    /// Bytes under a media type; the digest is computed.
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        let digest = digest(&bytes);
        Self { media_type: media_type.to_owned(), digest, bytes: bytes.into() }
    }

    fn json(media_type: &str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    /// The descriptor that manifests and indexes name it by.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// `sha256:` and the SHA-256 of the bytes in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's name: `amd64`, `arm64`, `arm`.
    pub architecture: String,
    /// `v7` or the like.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on an architecture by Go's name.
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// This machine.
    pub fn here() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::linux("amd64"),
            "aarch64" => Self::linux("arm64"),
            "arm" => Self { variant: Some("v7".to_owned()), ..Self::linux("arm") },
            other => Self::linux(other),
        }
    }

    fn json(&self) -> Value {
        let mut value = json!({ "os": self.os, "architecture": self.architecture });
        if let Some(variant) = &self.variant {
            value["variant"] = json!(variant);
        }
        value
    }
}

/// Something that can be pushed or imported: an image, or an index of some.
pub trait Content: Sync {
    /// The outermost manifest or index.
    fn root(&self) -> &Blob;
    /// The manifests that the root names, if it is an index.
    fn inner_manifests(&self) -> Vec<&Blob>;
    /// Configurations and layers.
    fn blobs(&self) -> Vec<&Blob>;
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// The layers as they travel, lowest first.
    pub layers: Vec<Blob>,
    /// Digests of the layers before compression.
    pub diff_ids: Vec<String>,
    /// What it says it runs on.
    pub platform: Platform,
}

impl Content for Image {
    fn root(&self) -> &Blob {
        &self.manifest
    }
    fn inner_manifests(&self) -> Vec<&Blob> {
        Vec::new()
    }
    fn blobs(&self) -> Vec<&Blob> {
        self.layers.iter().chain([&self.config]).collect()
    }
}

/// A multi-platform index.
#[derive(Debug, Clone)]
pub struct Index {
    /// The index itself.
    pub manifest: Blob,
    /// The images that it names.
    pub images: Vec<Image>,
}

impl Index {
    /// An index of images, in the given order.
    pub fn new(images: Vec<Image>) -> Self {
        let entry = |image: &Image| {
            let mut entry = image.manifest.descriptor();
            entry["platform"] = image.platform.json();
            entry
        };
        let manifests: Vec<Value> = images.iter().map(entry).collect();
        let value = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        Self { manifest: Blob::json(INDEX, &value), images }
    }
}

impl Content for Index {
    fn root(&self) -> &Blob {
        &self.manifest
    }
    fn inner_manifests(&self) -> Vec<&Blob> {
        self.images.iter().map(|image| &image.manifest).collect()
    }
    fn blobs(&self) -> Vec<&Blob> {
        self.images.iter().flat_map(Content::blobs).collect()
    }
}

/// What an image is made from.
#[derive(Debug, Clone)]
pub struct Builder {
    layers: Vec<(Layer, Compression)>,
    platform: Platform,
    config: serde_json::Map<String, Value>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// No layers, this machine's platform, an empty configuration.
    pub fn new() -> Self {
        Self { layers: Vec::new(), platform: Platform::here(), config: serde_json::Map::new() }
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: Layer, compression: Compression) -> Self {
        self.layers.push((layer, compression));
        self
    }

    /// Says that it is for another platform; the content stays what it is.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// `ENTRYPOINT`.
    pub fn entrypoint(self, args: &[&str]) -> Self {
        self.set("Entrypoint", json!(args))
    }

    /// `CMD`.
    pub fn cmd(self, args: &[&str]) -> Self {
        self.set("Cmd", json!(args))
    }

    /// `ENV`, as `NAME=value`.
    pub fn env(self, env: &[&str]) -> Self {
        self.set("Env", json!(env))
    }

    /// `WORKDIR`.
    pub fn workdir(self, dir: &str) -> Self {
        self.set("WorkingDir", json!(dir))
    }

    /// `USER`: a name or number, with or without a group after a colon.
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// `STOPSIGNAL`.
    pub fn stop_signal(self, signal: &str) -> Self {
        self.set("StopSignal", json!(signal))
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Writes layers, configuration and manifest. The same input gives the same digests.
    pub fn build(self) -> Result<Image> {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (layer, compression) in &self.layers {
            let tar = layer.tar().context("cannot write a layer")?;
            diff_ids.push(digest(&tar));
            layers.push(Blob::new(compression.media_type(), compression.apply(tar)?));
        }
        let mut config = self.platform.json();
        config["config"] = Value::Object(self.config);
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = Blob::json(CONFIG, &config);
        let descriptors: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": descriptors,
        });
        let manifest = Blob::json(MANIFEST, &manifest);
        Ok(Image { manifest, config, layers, diff_ids, platform: self.platform })
    }
}

/// A tar of an OCI image layout with the content under a name, as `ctr images import` and
/// `skopeo` read it.
pub fn archive(content: &dyn Content, reference: &str) -> Result<Vec<u8>> {
    let mut entry = content.root().descriptor();
    entry["annotations"] = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let mut files = Layer::new()
        .file("/oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("/index.json", 0o644, index.to_string().as_bytes());
    let manifests = content.inner_manifests().into_iter().chain([content.root()]);
    for blob in content.blobs().into_iter().chain(manifests) {
        let hex = blob.digest.trim_start_matches("sha256:");
        files = files.file(&format!("/blobs/sha256/{hex}"), 0o644, &blob.bytes);
    }
    files.tar()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_gives_the_same_digest() {
        let build = || {
            let layer = Layer::new().file("/a", 0o644, b"a").dir("/b", 0o755);
            Builder::new().layer(layer, Compression::Gzip).user("nobody").build().unwrap()
        };
        assert_eq!(build(), build());
        assert!(build().manifest.digest.starts_with("sha256:"));
        assert_ne!(build().layers[0].digest, build().diff_ids[0]);
    }

    #[test]
    fn an_index_names_platforms() {
        let arm = Builder::new().platform(Platform::linux("arm64")).build().unwrap();
        let index = Index::new(vec![Builder::new().build().unwrap(), arm]);
        let value: Value = serde_json::from_slice(&index.manifest.bytes).unwrap();
        assert_eq!(value["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(index.blobs().len(), 2);
    }
}
