//! A gateway's PREFIX, a web server, and what is on both.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use coracle::artifacts::{ArtifactError, Artifacts, Installed, InstalledBy, Progress, Timeouts};
use coracle::config::{ArtifactLimits, ArtifactsConfig, Layout, RepositoryConfig};
use coracle::error_chain;
use coracle_core::artifact::{ArtifactId, ArtifactRef};
use coracle_core::image::Digest;
use coracle_testbed::FaultyRegistry;
use tempfile::TempDir;
use tokio::sync::watch;

pub(crate) const SHORT: Timeouts =
    Timeouts { connect: Duration::from_secs(5), idle: Duration::from_millis(500) };
pub(crate) const ID: &str = "org.example:gauge:1.4.2";
pub(crate) const ZIP: &str = "/org/example/gauge/1.4.2/gauge-1.4.2.zip";

pub(crate) struct Bed {
    pub(crate) prefix: TempDir,
    pub(crate) server: FaultyRegistry,
    pub(crate) config: ArtifactsConfig,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let server = FaultyRegistry::start().unwrap();
        let repositories = vec![repository(&format!("http://{}", server.address()))];
        let config = ArtifactsConfig { repositories, ..ArtifactsConfig::default() };
        Self { prefix: tempfile::tempdir().unwrap(), server, config }
    }

    pub(crate) fn with_limits(mut self, limits: ArtifactLimits) -> Self {
        self.config.limits = limits;
        self
    }

    /// As after a start of the agent.
    pub(crate) fn artifacts(&self) -> Artifacts {
        artifacts(self.prefix.path(), &self.config)
    }

    /// Serves a ZIP and the digest beside it.
    pub(crate) fn serve(&self, zip: &[u8]) -> String {
        self.serve_at(ZIP, zip)
    }

    pub(crate) fn serve_at(&self, path: &str, zip: &[u8]) -> String {
        let digest = self.server.put_file(path, zip);
        let (_, hex) = digest.split_once(':').unwrap();
        let name = path.rsplit('/').next().unwrap();
        self.server.put_file(&format!("{path}.sha256"), format!("{hex}  {name}\n").as_bytes());
        digest
    }

    pub(crate) fn install(&self, text: &str) -> Result<Installed, ArtifactError> {
        self.install_ref(&wanted(text))
    }

    pub(crate) fn install_ref(&self, wanted: &ArtifactRef) -> Result<Installed, ArtifactError> {
        run(install(&self.artifacts(), wanted))
    }

    /// All below PREFIX.
    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        tree(self.prefix.path())
    }
}

pub(crate) fn artifacts(prefix: &Path, config: &ArtifactsConfig) -> Artifacts {
    let (artifacts, troubles) = Artifacts::new(prefix.to_owned(), config).unwrap();
    assert!(troubles.is_empty(), "{troubles:?}");
    artifacts.with_timeouts(SHORT)
}

pub(crate) fn repository(url: &str) -> RepositoryConfig {
    RepositoryConfig { url: url.to_owned(), layout: Layout::Maven, ca: None }
}

pub(crate) async fn install(
    artifacts: &Artifacts,
    wanted: &ArtifactRef,
) -> Result<Installed, ArtifactError> {
    let progress = watch::Sender::new(Progress::default());
    artifacts.install(wanted, InstalledBy::Order, &progress).await
}

pub(crate) fn id(text: &str) -> ArtifactId {
    ArtifactId::parse(text).unwrap()
}

pub(crate) fn wanted(text: &str) -> ArtifactRef {
    ArtifactRef { id: id(text), digest: None, repository: None }
}

pub(crate) fn pinned(text: &str, digest: &str) -> ArtifactRef {
    ArtifactRef { digest: Some(Digest::parse(digest).unwrap()), ..wanted(text) }
}

pub(crate) fn chain(error: &ArtifactError) -> String {
    error_chain::chain(error)
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Everything below a directory: what it is, whose, and what is in it.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let stat = fs::symlink_metadata(&path).unwrap();
            let rights =
                format!("{:o} {}:{}", stat.permissions().mode() & 0o7777, stat.uid(), stat.gid());
            if stat.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, format!("-> {} {}", target.display(), stat.uid()));
            } else if stat.is_dir() {
                found.insert(format!("{name}/"), rights);
                dirs.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                let content = match content.len() {
                    0..200 => String::from_utf8_lossy(&content).into_owned(),
                    length => format!("{length} bytes"),
                };
                found.insert(name, format!("{rights} {content}"));
            }
        }
    }
    found
}

/// The files and links, without the directories that hold them.
pub(crate) fn files(tree: BTreeMap<String, String>) -> Vec<String> {
    tree.into_keys().filter(|path| !path.ends_with('/')).collect()
}
