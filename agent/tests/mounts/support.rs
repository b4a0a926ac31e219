//! A gateway's directories, and what is ordered on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle::config::Config;
use coracle::mounts::Mounts;
use coracle::secrets::Secrets;
use coracle_core::desired::{Mount, MountSource};
use coracle_core::name::{ContainerName, ReplicaId, ResourceName, WorkloadName};
use coracle_protocol::GatewayId;
use coracle_seal::{Plain, seal};
use tempfile::TempDir;

pub(crate) const SECRET: &str = "correct-horse-battery-staple";

/// State on the disk, the rest in memory.
pub(crate) struct Gateway {
    pub(crate) state: TempDir,
    pub(crate) run: TempDir,
    pub(crate) mounts: Mounts,
    pub(crate) secrets: Arc<Secrets>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        let run = tempfile::tempdir_in("/dev/shm").unwrap();
        let state = tempfile::tempdir().unwrap();
        let gateway = GatewayId::random();
        let secrets = Arc::new(Secrets::new(state.path(), gateway));
        let key = secrets.public_key().unwrap();
        let sealed = seal(&key, gateway, "pw", &Plain::new(SECRET.into())).unwrap();
        secrets.set(gateway, BTreeMap::from([("pw".to_owned(), sealed)]));
        let mounts = mounts(state.path(), run.path(), secrets.clone());
        Self { state, run, mounts, secrets }
    }

    pub(crate) fn pod(&self, replica: &ReplicaId) -> PathBuf {
        self.run.path().join("pods").join(replica.to_string())
    }

    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.state.path().join("volumes/named").join(name)
    }

    pub(crate) fn anonymous(&self, replica: &ReplicaId) -> PathBuf {
        self.state.path().join("volumes/anonymous").join(replica.to_string())
    }
}

pub(crate) fn mounts(state: &Path, run: &Path, secrets: Arc<Secrets>) -> Mounts {
    let config =
        Config { state_dir: state.to_owned(), runtime_dir: run.to_owned(), ..Config::default() };
    Mounts::new(&config, secrets)
}

pub(crate) fn replica(name: &str) -> ReplicaId {
    ReplicaId { workload: WorkloadName::parse(name).unwrap(), index: 0 }
}

pub(crate) fn name(text: &str) -> ResourceName {
    ResourceName::parse(text).unwrap()
}

pub(crate) fn container() -> ContainerName {
    ContainerName::parse("main").unwrap()
}

pub(crate) fn files(list: &[(&str, &str)]) -> Arc<BTreeMap<String, String>> {
    Arc::new(list.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect())
}

pub(crate) fn wanted(path: &str, source: MountSource) -> Mount {
    Mount { path: path.to_owned(), read_only: false, source }
}

pub(crate) fn config_map(path: &str, list: &[(&str, &str)], in_place: bool) -> Mount {
    wanted(path, MountSource::ConfigMap { name: name("conf"), files: files(list), in_place })
}

pub(crate) fn named(path: &str, volume: &str) -> Mount {
    wanted(path, MountSource::Named(name(volume)))
}

pub(crate) fn anonymous(path: &str, mount: &str) -> Mount {
    wanted(path, MountSource::Anonymous(name(mount)))
}

/// Every file and link below, with what it holds.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                found.insert(format!("{name}/"), String::new());
                dirs.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else {
                found.insert(name, String::from_utf8_lossy(&fs::read(&path).unwrap()).into());
            }
        }
    }
    found
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
