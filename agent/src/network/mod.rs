//! Networks of pods: namespaces, what plugins attach to them, the names by which pods find each
//! other, and ports of the gateway that are shared out over several.
//!
//! In: a complete [`NetworkRequest`] for each pod, and where shared ports lead. Out: the namespace
//! and the files that its containers are to get, or what went wrong. A record is written before anything is made and
//! removed after everything is gone, so that [`Networks::remove`] and [`Networks::sweep`] need to
//! know no more than the records say.
//!
//! Deliberately not here: deciding which pods there are, mounting anything into containers, a
//! name server, a process that keeps a namespace open. One agent for each network namespace of a
//! host: two would share a bridge.

mod error;
mod make;
mod names;
mod namespace;
mod netfilter;
mod netlink;
mod plugins;
mod process;
mod record;
mod rules;
mod share;
mod sweep;
#[cfg(test)]
mod testing;
mod undo;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_core::desired::{DefinitionHash, Network, Protocol};
use coracle_core::name::ReplicaId;
use coracle_protocol::health::PodLink;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};

use self::names::{HOSTS, HostFiles, RESOLV_CONF};
use self::plugins::Plugins;
use self::record::{Attached, Record, State};
use self::share::Sharing;
use crate::config::Config;

pub use self::error::NetworkError;

/// Networks of this gateway's pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Networks {
    inner: Arc<Inner>,
}

/// What a pod is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// Whose network.
    pub replica: ReplicaId,
    /// Which definition it belongs to; another one gets a new network.
    #[serde(with = "definition")]
    pub definition: DefinitionHash,
    /// Which kind.
    pub kind: Network,
    /// The pod's own name, such as `web-0`.
    pub host_name: String,
    /// Ports of the gateway that lead to it. For [`Network::Pod`] only.
    pub ports: Vec<PortMapping>,
    /// Whether its ports are shared out with other replicas, by [`Networks::share`]: then no plugin
    /// publishes them.
    #[serde(default)]
    pub shared_ports: bool,
    /// Under which names, besides its own, others find it.
    pub names: Vec<String>,
}

impl NetworkRequest {
    /// The ports that plugins are to publish.
    fn published(&self) -> &[PortMapping] {
        if self.shared_ports { &[] } else { &self.ports }
    }
}

/// A port of the gateway that leads to one of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// As the order calls it.
    pub name: String,
    /// In the pod.
    pub container_port: u16,
    /// On the gateway.
    pub host_port: u16,
    /// On which of the gateway's addresses; all if none is said.
    pub host_address: Option<IpAddr>,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// A network that is ready for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// The namespace's file; `None` on the gateway's own network.
    pub netns: Option<PathBuf>,
    /// To be mounted at `/etc/hosts`.
    pub hosts: PathBuf,
    /// To be mounted at `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// The pod's first address.
    pub address: Option<IpAddr>,
    /// The pod's own name.
    pub host_name: String,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    plugins: Plugins,
    /// Begins the ids of pods, so that what plugins write down elsewhere is known for ours.
    prefix: String,
    netns_dir: PathBuf,
    records_dir: PathBuf,
    pods_dir: PathBuf,
    host_files: HostFiles,
    /// As on disk; `None` until it was read.
    records: Mutex<Option<BTreeMap<ReplicaId, Record>>>,
    /// One piece of work on each pod at a time.
    busy: Mutex<BTreeMap<ReplicaId, Arc<tokio::sync::Mutex<()>>>>,
    /// Whether a pod was attached since the start. The first one is attached alone: plugins look
    /// for what they share, such as chains, and make it if it is not there. Written to while
    /// nothing may be attached.
    warm: RwLock<bool>,
    /// Ports that are shared out over replicas.
    sharing: tokio::sync::Mutex<Sharing>,
    /// Whether it was told in this run where they lead.
    told: watch::Sender<bool>,
    /// Whether no sweep is at work.
    swept: watch::Sender<bool>,
}

/// An address that host-local has given.
#[derive(Debug)]
struct Given {
    /// Whose it is.
    id: String,
    /// Where that is written.
    file: PathBuf,
}

impl Networks {
    /// Looks at nothing yet.
    pub fn new(config: &Config) -> Self {
        let records_dir = config.runtime_dir.join("network");
        let hash = digest(&SHA256, config.runtime_dir.as_os_str().as_encoded_bytes());
        let prefix = hash.as_ref()[..4].iter().fold("coracle-".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes everything");
            text
        });
        let inner = Inner {
            plugins: Plugins::new(&config.cni.plugin_dirs, records_dir.clone()),
            prefix: prefix + ".",
            netns_dir: config.runtime_dir.join("netns"),
            records_dir,
            pods_dir: config.runtime_dir.join("pods"),
            host_files: HostFiles::default(),
            records: Mutex::default(),
            busy: Mutex::default(),
            warm: RwLock::default(),
            sharing: tokio::sync::Mutex::default(),
            told: watch::Sender::new(false),
            swept: watch::Sender::new(true),
            config: config.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Makes the network of a pod, or finds it made. What is half-made, or was made for something
    /// else, is removed first. A failure leaves nothing behind, or a record of what is left.
    ///
    /// The work is done to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// A plugin is missing or fails, the configured network cannot be used, the kernel refuses.
    pub async fn ensure(&self, request: &NetworkRequest) -> Result<PodNetwork, NetworkError> {
        let (inner, request) = (self.inner.clone(), request.clone());
        let replica = request.replica.clone();
        let work = tokio::spawn(async move {
            inner.swept().await;
            let lock = inner.lock_of(&request.replica);
            let _alone = lock.lock().await;
            inner.ensure(&request).await
        });
        work.await.unwrap_or(Err(NetworkError::BrokenOff { replica }))
    }

    /// Removes everything of a pod's network, as its record says; nothing if there is no record.
    /// What cannot be removed is told at the end, after the rest was removed, and stays recorded.
    ///
    /// The work is done to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn remove(&self, replica: &ReplicaId) -> Result<(), NetworkError> {
        let (inner, its) = (self.inner.clone(), replica.clone());
        let work = tokio::spawn(async move {
            inner.swept().await;
            let lock = inner.lock_of(&its);
            let _alone = lock.lock().await;
            let result = inner.withdraw_and_remove(&its).await;
            inner.forget_lock(&its);
            result
        });
        work.await.unwrap_or(Err(NetworkError::BrokenOff { replica: replica.clone() }))
    }

    /// The pods that have a network, also a half-made or half-removed one, and for which
    /// definition. From memory, after the first time.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn list(&self) -> Result<BTreeMap<ReplicaId, DefinitionHash>, NetworkError> {
        let definition = |record: &Record| record.request.definition.clone();
        self.inner.with_records(|records| {
            records.iter().map(|(replica, record)| (replica.clone(), definition(record))).collect()
        })
    }

    /// The file of the pod's own namespace; `None` if it is on the gateway's own network, or gone.
    pub fn namespace(&self, replica: &ReplicaId) -> Option<PathBuf> {
        let has_own = |record: &Record| record.request.kind != Network::Host;
        let own = self.inner.with_records(|records| records.get(replica).is_some_and(has_own));
        own.unwrap_or(false).then(|| self.inner.netns_of(replica))
    }

    /// How pods are attached, from memory; none if that cannot be told.
    pub fn links(&self) -> Vec<PodLink> {
        let link = |(replica, record): (&ReplicaId, &Record)| {
            let attached = record.attached.as_ref()?;
            Some(PodLink { replica: replica.to_string(), ..attached.link() })
        };
        let links = |records: &mut BTreeMap<_, _>| records.iter().filter_map(link).collect();
        self.inner.with_records(links).unwrap_or_default()
    }

    /// The pod's first address, if it has one.
    pub fn address(&self, replica: &ReplicaId) -> Option<IpAddr> {
        let first = |record: &Record| record.attached.as_ref()?.addresses().into_iter().next();
        self.inner.with_records(|records| records.get(replica).and_then(first)).ok().flatten()
    }

    /// Whether ports of the gateway lead to the pod only as they are shared out.
    pub fn shares_ports(&self, replica: &ReplicaId) -> bool {
        let shares = |record: &Record| record.request.shared_ports;
        self.inner.with_records(|records| records.get(replica).is_some_and(shares)).unwrap_or(false)
    }

    /// To be called once, before anything else, in a tokio runtime: removes what a crash or a
    /// reboot left behind. What cannot be removed is said in the log and tried again by
    /// [`Self::ensure`] and [`Self::remove`].
    ///
    /// When this returns, networks of the last boot are forgotten, and [`Self::list`] tells every
    /// other one, whole or not. The rest is done by a task of its own, which may take minutes where
    /// plugins hang: [`Self::ensure`] and [`Self::remove`] begin when it has ended.
    pub fn begin_sweep(&self) {
        sweep::read(&self.inner);
        self.inner.swept.send_replace(false);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let _end = SweepEnds(inner.clone());
            sweep::clean(&inner).await;
        });
    }

    /// [`Self::begin_sweep`], and waits for its end.
    pub async fn sweep(&self) {
        self.begin_sweep();
        self.inner.swept().await;
    }

    /// Brings the pods' files with names and name servers up to date, as when the gateway's own
    /// have changed. Writes nothing that is as it should be.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn refresh(&self) -> Result<(), NetworkError> {
        self.inner.write_names()
    }
}

/// Says that the sweep has ended, however it ended.
struct SweepEnds(Arc<Inner>);

impl Drop for SweepEnds {
    fn drop(&mut self) {
        self.0.swept.send_replace(true);
    }
}

impl Inner {
    /// Waits until no sweep is at work.
    async fn swept(&self) {
        // The sender is ours, so there is no error.
        drop(self.swept.subscribe().wait_for(|swept| *swept).await);
    }

    /// Writes what each pod finds in its `/etc/hosts` and `/etc/resolv.conf`, where it changed.
    fn write_names(&self) -> Result<(), NetworkError> {
        let host =
            fs::read_to_string(&self.host_files.hosts).unwrap_or_else(|_| HOSTS_FALLBACK.into());
        let contents = self.with_records(|records| {
            let mut hosts = names::hosts(records, &host);
            let live = records.values().filter(|record| record.state == State::Ready);
            let content = live.filter_map(|record| {
                let replica = &record.request.replica;
                Some((replica.clone(), record.request.kind, hosts.remove(replica)?))
            });
            content.collect::<Vec<_>>()
        })?;
        let mut servers = BTreeMap::new();
        for (replica, kind, hosts) in contents {
            let dir = self.pod_dir(&replica);
            make_directory(&dir, 0o755)?;
            put_if_changed(&dir.join(HOSTS), &hosts)?;
            let resolv_conf = servers.entry(kind as u8).or_insert_with(|| {
                names::resolv_conf(kind, &self.config.cni.dns, &self.host_files)
            });
            if let Some(text) = resolv_conf {
                put_if_changed(&dir.join(RESOLV_CONF), text)?;
            }
        }
        Ok(())
    }

    fn pod_network(&self, record: &Record) -> PodNetwork {
        let NetworkRequest { replica, kind, host_name, .. } = &record.request;
        let dir = self.pod_dir(replica);
        let attached = record.attached.as_ref();
        PodNetwork {
            netns: (*kind != Network::Host).then(|| self.netns_of(replica)),
            hosts: dir.join(HOSTS),
            resolv_conf: (*kind != Network::None).then(|| dir.join(RESOLV_CONF)),
            address: attached.and_then(|attached| attached.addresses().into_iter().next()),
            host_name: host_name.clone(),
        }
    }

    fn make_directories(&self) -> Result<(), NetworkError> {
        for (dir, mode) in
            [(&self.netns_dir, 0o755), (&self.records_dir, 0o700), (&self.pods_dir, 0o711)]
        {
            make_directory(dir, mode)?;
        }
        Ok(())
    }

    fn netns_of(&self, replica: &ReplicaId) -> PathBuf {
        self.netns_dir.join(replica.to_string())
    }

    fn pod_dir(&self, replica: &ReplicaId) -> PathBuf {
        self.pods_dir.join(replica.to_string())
    }

    fn id_of(&self, replica: &ReplicaId) -> String {
        format!("{}{replica}", self.prefix)
    }

    fn put(&self, record: &Record) -> Result<(), NetworkError> {
        record::write(&self.records_dir, record)?;
        let replica = record.request.replica.clone();
        self.with_records(|records| records.insert(replica, record.clone())).map(drop)
    }

    fn forget(&self, replica: &ReplicaId) -> Result<(), NetworkError> {
        record::remove(&self.records_dir, replica)?;
        self.with_records(|records| records.remove(replica)).map(drop)
    }

    /// The records, read if they were not yet. Those that cannot be read are left to the sweep.
    fn with_records<T>(
        &self,
        act: impl FnOnce(&mut BTreeMap<ReplicaId, Record>) -> T,
    ) -> Result<T, NetworkError> {
        let mut guard = lock(&self.records);
        let records = match guard.take() {
            Some(records) => records,
            None => record::read_all(&self.records_dir)?.0,
        };
        Ok(act(guard.insert(records)))
    }

    fn lock_of(&self, replica: &ReplicaId) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.busy).entry(replica.clone()).or_default().clone()
    }

    /// Keeps no lock for a pod that is gone, unless somebody waits for it.
    fn forget_lock(&self, replica: &ReplicaId) {
        let mut busy = lock(&self.busy);
        // The map's and the one that the caller holds.
        if busy.get(replica).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            busy.remove(replica);
        }
    }
}

async fn remove_rules(attached: &Attached, gone: &rules::Gone) -> Result<(), NetworkError> {
    rules::remove(gone).await.map_err(|source| NetworkError::File {
        doing: "remove rules of the packet filter left of",
        path: attached.id.clone().into(),
        source,
    })
}

/// Used where the gateway has no `/etc/hosts`.
const HOSTS_FALLBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";

/// Reading is cheaper than writing, and nobody is woken by it.
fn put_if_changed(path: &Path, text: &str) -> Result<(), NetworkError> {
    match fs::read(path) {
        Ok(old) if old == text.as_bytes() => Ok(()),
        _ => names::put(path, text),
    }
}

fn make_directory(dir: &Path, mode: u32) -> Result<(), NetworkError> {
    match fs::metadata(dir) {
        Ok(data) if data.is_dir() => return Ok(()),
        _ => {}
    }
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
        .map_err(NetworkError::file("make", dir))
}

/// What is in a directory; nothing if there is none.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let entries = entries.map_err(NetworkError::file("read", dir))?;
            Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A definition in a record: the text of its label.
mod definition {
    use coracle_core::desired::DefinitionHash;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        definition: &DefinitionHash,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(definition.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<DefinitionHash, D::Error> {
        Ok(DefinitionHash::from_label(&String::deserialize(from)?))
    }
}
