//! One containerd, one faulty registry, and what a test asks of them.

use std::future::Future;
use std::time::Duration;

use coracle::config::{ContainerdConfig, RegistryConfig};
use coracle::images::{ImageError, Images, Progress, Timeouts};
use coracle_core::image::{Digest, ImageRef};
use coracle_testbed::image::{Builder, Compression, Layer};
use coracle_testbed::{Containerd, FaultyRegistry, Image, Place, Version};
use tokio::sync::watch;

pub(crate) const NAMESPACE: &str = "coracle";

pub(crate) struct Bed {
    pub(crate) containerd: Containerd,
    pub(crate) registry: FaultyRegistry,
    pub(crate) images: Images,
    runtime: tokio::runtime::Runtime,
    pub(crate) place: Place,
}

impl Bed {
    pub(crate) fn new(version: Version) -> Self {
        let place = Place::new().unwrap();
        let containerd = Containerd::start(&place, version).unwrap();
        let registry = FaultyRegistry::start().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let plain = [registry.address()];
        let images = runtime.block_on(async { connect(&containerd, &plain) });
        Self { containerd, registry, images, runtime, place }
    }

    /// For what does not depend on containerd's version.
    pub(crate) fn any() -> Self {
        Self::new(Version::System)
    }

    /// Another adapter, as another process would have it, that speaks plain HTTP to these hosts.
    pub(crate) fn connect(&self, plain: &[String]) -> Images {
        self.run(async { connect(&self.containerd, plain) })
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let bounded = async { tokio::time::timeout(Duration::from_secs(120), future).await };
        self.runtime.block_on(bounded).expect("the test took longer than 120 s")
    }

    pub(crate) fn pull(&self, reference: &str) -> Result<Digest, ImageError> {
        self.run(pull(&self.images, reference))
    }

    /// The error of a pull that fails, with its causes.
    pub(crate) fn refusal(&self, reference: &str) -> (ImageError, String) {
        let error = self.pull(reference).unwrap_err();
        let text = chain(&error);
        (error, text)
    }

    pub(crate) fn local(&self, reference: &str) -> Result<(), ImageError> {
        let image = ImageRef::parse(reference).unwrap();
        self.run(self.images.local(&image)).map(drop)
    }

    pub(crate) fn listed(&self) -> Vec<String> {
        let list = self.run(self.images.list()).unwrap();
        list.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn remove(&self, reference: &str) {
        self.run(self.images.remove(&ImageRef::parse(reference).unwrap())).unwrap();
    }

    /// `ctr` in our namespace; the lines of its output.
    pub(crate) fn ctr(&self, args: &[&str]) -> Vec<String> {
        let all = [&["--namespace", NAMESPACE], args].concat();
        self.containerd.ctr(&all).unwrap().lines().map(str::to_owned).collect()
    }

    /// Digests in the content store.
    pub(crate) fn content(&self) -> Vec<String> {
        self.ctr(&["content", "ls", "--quiet"])
    }

    /// Names of snapshots.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let lines = self.ctr(&["snapshots", "ls"]);
        lines.iter().skip(1).map(|line| line.split_whitespace().next().unwrap().into()).collect()
    }

    pub(crate) fn leases(&self) -> Vec<String> {
        self.ctr(&["leases", "ls", "--quiet"])
    }

    /// Makes containerd collect garbage, and waits for it.
    pub(crate) fn collect_garbage(&self) {
        self.ctr(&["leases", "create", "--id", "garbage"]);
        self.ctr(&["leases", "delete", "--sync", "garbage"]);
    }

    /// What a command prints in a container of the image, started by `ctr`.
    pub(crate) fn output(&self, reference: &str, command: &[&str]) -> String {
        let cgroup = format!("{}/output", self.place.cgroup());
        let run = ["run", "--rm", "--cgroup", &cgroup, reference, "output"];
        self.ctr(&[&run, command].concat()).join("\n")
    }

    /// How many requests were made for a path containing this, and their ranges.
    pub(crate) fn ranges(&self, path: &str) -> Vec<Option<String>> {
        let all = self.registry.requests();
        all.into_iter().filter(|r| r.path.contains(path)).map(|r| r.range).collect()
    }
}

fn connect(containerd: &Containerd, plain: &[String]) -> Images {
    let config =
        ContainerdConfig { address: containerd.address().into(), ..ContainerdConfig::default() };
    let client = coracle::containerd::Containerd::new(&config).unwrap();
    let registry =
        |host: &String| RegistryConfig { host: host.clone(), plain_http: true, ca: None };
    let registries: Vec<_> = plain.iter().map(registry).collect();
    Images::new(client, &registries).unwrap().with_timeouts(SHORT)
}

/// Short enough for tests that wait for them, long enough for a busy machine.
pub(crate) const SHORT: Timeouts =
    Timeouts { connect: Duration::from_secs(3), idle: Duration::from_millis(1500) };

pub(crate) async fn pull(images: &Images, reference: &str) -> Result<Digest, ImageError> {
    let (progress, _) = watch::channel(Progress::default());
    images.pull(&ImageRef::parse(reference).unwrap(), &progress).await
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A layer of one file of noise, gzip.
pub(crate) fn noisy(builder: Builder, seed: u64, length: usize) -> Builder {
    let layer = Layer::new().file(&format!("/noise/{seed}"), 0o644, &noise(seed, length));
    builder.layer(layer, Compression::Gzip)
}

/// An image of one layer of 600 kB for each seed; it cannot be run.
pub(crate) fn data_image(seeds: &[u64]) -> Image {
    let add = |builder, seed: &u64| noisy(builder, *seed, 600_000);
    seeds.iter().fold(Builder::new(), add).build().unwrap()
}
