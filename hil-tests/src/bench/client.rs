//! A minimal client of containerd, the floor under everything that starts containers: the calls
//! that a container takes and no more, some containers at once. With a network, before them: a
//! namespace, and the network plugins called directly (<https://www.cni.dev/docs/spec/>).
//!
//! In: a [`Job`]. Out: [`Began`] on standard output once every container was started. Then, if there
//! are to be replacements, it waits for a line on its standard input, replaces one container after
//! the other, and says [`Began`] again. At the end of its standard input it removes all. A process of
//! its own, in the mount namespace of containerd, as an agent would be. Deliberately not here: errors
//! that are handled, anything that survives a crash.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, KillRequest, StartRequest, UpdateContainerRequest, WaitRequest,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::Channel;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use prost_types::{Any, FieldMask};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::moment::Moment;
use super::{LIMIT, Result, loopback};

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// Removed at once: nobody measures that.
const REMOVALS_AT_ONCE: usize = 8;

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// containerd's socket.
    pub(super) address: PathBuf,
    /// A containerd namespace that knows the parent snapshot.
    pub(super) namespace: String,
    /// How many containers are under way at once.
    pub(super) at_once: usize,
    /// What attaches containers, if anything does.
    pub(super) network: Option<Network>,
    /// The containers, in the order of their starts.
    pub(super) containers: Vec<Wanted>,
    /// What takes the place of each of them later, in the same order; nothing, or one for each.
    pub(super) replacements: Vec<Wanted>,
}

/// One container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) id: String,
    pub(super) image: String,
    pub(super) labels: HashMap<String, String>,
    pub(super) runtime: String,
    pub(super) snapshotter: String,
    pub(super) snapshot_key: String,
    /// The committed snapshot that it starts from.
    pub(super) parent: String,
    /// The OCI runtime specification.
    pub(super) spec: Value,
    /// Where its output goes: a URI that containerd knows.
    pub(super) output: String,
    /// Where the network namespace is mounted that is made for it; none without a network.
    pub(super) netns: Option<PathBuf>,
}

/// A list of network plugins, as CNI has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Network {
    /// The network configuration list.
    pub(super) list: Value,
    /// Where the plugins are.
    pub(super) plugins: PathBuf,
}

/// What the client says when all containers were started, or replaced.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Began {
    /// When it began with that, its connection standing, on the kernel's monotonic clock.
    pub(super) nanos: u64,
}

/// Does the job in this file.
///
/// # Errors
/// The job cannot be read; anything of it failed, or took too long.
pub fn floor_client(job: &Path) -> Result<()> {
    let job = std::fs::read(job).with_context(|| format!("cannot read {}", job.display()))?;
    let job: Job = serde_json::from_slice(&job)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(job))
}

async fn run(job: Job) -> Result<()> {
    let Job { address, namespace, at_once, network, containers, replacements } = job;
    let client = Arc::new(Client::connect(&address, &namespace, network).await?);
    let start = |wanted| {
        let client = client.clone();
        async move { client.start(wanted).await }
    };
    let began = Moment::now()?;
    let starts = together(containers.into_iter().map(start), at_once);
    let mut started =
        tokio::time::timeout(LIMIT, starts).await.context("starts took too long")??;
    say(began)?;

    let mut input = BufReader::new(tokio::io::stdin());
    if !replacements.is_empty() {
        input.read_line(&mut String::new()).await?;
        let began = Moment::now()?;
        let replaced = client.replace_all(started, replacements);
        let replaced = tokio::time::timeout(LIMIT, replaced).await;
        started = replaced.context("replacements took too long")??;
        say(began)?;
    }
    input.read_to_end(&mut Vec::new()).await?;
    let remove = |(wanted, attached)| {
        let client = client.clone();
        async move { client.remove(&wanted, attached, SIGKILL).await }
    };
    let removals = together(started.into_iter().map(remove), REMOVALS_AT_ONCE);
    tokio::time::timeout(LIMIT, removals).await.context("removals took too long")??;
    Ok(())
}

fn say(began: Moment) -> Result<()> {
    println!("{}", serde_json::to_string(&Began { nanos: began.nanos() })?);
    Ok(())
}

/// Runs all of them, in their order, at most so many at once.
async fn together<T: Send + 'static>(
    works: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
    at_once: usize,
) -> Result<Vec<T>> {
    let room = Arc::new(Semaphore::new(at_once));
    let mut set = JoinSet::new();
    for work in works {
        let room = room.clone();
        set.spawn(async move {
            let _place = room.acquire().await?;
            work.await
        });
    }
    let mut all = Vec::new();
    while let Some(done) = set.join_next().await {
        all.push(done??);
    }
    Ok(all)
}

struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    network: Option<Network>,
}

impl Client {
    async fn connect(address: &Path, namespace: &str, network: Option<Network>) -> Result<Self> {
        let channel = containerd_client::connect(address).await?;
        Ok(Self { channel, namespace: namespace.parse()?, network })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// The calls that the agent makes for a container, in its order: the record names the snapshot
    /// before there is one, so that garbage collection spares it. Gives what the last network
    /// plugin answered.
    async fn start(&self, wanted: Wanted) -> Result<(Wanted, Option<Value>)> {
        let attached = match (&wanted.netns, &self.network) {
            (Some(netns), Some(network)) => {
                make_namespace(netns.clone()).await?;
                Some(network.add(&wanted.id, netns).await?)
            }
            _ => None,
        };
        let container_id = wanted.id.clone();
        let record = wanted.record(b"{}".to_vec());
        let request = CreateContainerRequest { container: Some(record) };
        self.containers().create(self.request(request)).await.context("containers create")?;
        let request = PrepareSnapshotRequest {
            snapshotter: wanted.snapshotter.clone(),
            key: wanted.snapshot_key.clone(),
            parent: wanted.parent.clone(),
            labels: wanted.labels.clone(),
        };
        let prepared = self.snapshots().prepare(self.request(request)).await;
        let rootfs = prepared.context("snapshots prepare")?.into_inner().mounts;
        let request = UpdateContainerRequest {
            container: Some(wanted.record(wanted.spec.to_string().into_bytes())),
            update_mask: Some(FieldMask { paths: vec!["spec".into()] }),
        };
        self.containers().update(self.request(request)).await.context("containers update")?;
        let request = CreateTaskRequest {
            container_id: container_id.clone(),
            rootfs,
            stdout: wanted.output.clone(),
            stderr: wanted.output.clone(),
            ..CreateTaskRequest::default()
        };
        self.tasks().create(self.request(request)).await.context("tasks create")?;
        let request = StartRequest { container_id, exec_id: String::new() };
        self.tasks().start(self.request(request)).await.context("tasks start")?;
        Ok((wanted, attached))
    }

    /// One after the other: ends the old one, removes it, starts the new one.
    async fn replace_all(
        &self,
        started: Vec<(Wanted, Option<Value>)>,
        replacements: Vec<Wanted>,
    ) -> Result<Vec<(Wanted, Option<Value>)>> {
        let mut replaced = Vec::new();
        for ((old, attached), new) in started.into_iter().zip(replacements) {
            self.remove(&old, attached, SIGTERM).await?;
            replaced.push(self.start(new).await?);
        }
        Ok(replaced)
    }

    async fn remove(&self, wanted: &Wanted, attached: Option<Value>, signal: u32) -> Result<()> {
        let container_id = wanted.id.clone();
        let exec_id = String::new();
        let kill = KillRequest { container_id: container_id.clone(), exec_id, signal, all: false };
        self.tasks().kill(self.request(kill)).await.context("tasks kill")?;
        let wait = WaitRequest { container_id: container_id.clone(), exec_id: String::new() };
        self.tasks().wait(self.request(wait)).await.context("tasks wait")?;
        let delete = DeleteTaskRequest { container_id: container_id.clone() };
        self.tasks().delete(self.request(delete)).await.context("tasks delete")?;
        // Before the record, without which garbage collection would be at it as well.
        let remove = RemoveSnapshotRequest {
            snapshotter: wanted.snapshotter.clone(),
            key: wanted.snapshot_key.clone(),
        };
        self.snapshots().remove(self.request(remove)).await.context("snapshots remove")?;
        let delete = DeleteContainerRequest { id: container_id };
        self.containers().delete(self.request(delete)).await.context("containers delete")?;
        if let (Some(netns), Some(network), Some(attached)) =
            (&wanted.netns, &self.network, attached)
        {
            network.delete(&wanted.id, netns, &attached).await?;
            umount2(netns, MntFlags::MNT_DETACH)?;
            std::fs::remove_file(netns)?;
        }
        Ok(())
    }
}

impl Wanted {
    fn record(&self, spec: Vec<u8>) -> Container {
        Container {
            id: self.id.clone(),
            labels: self.labels.clone(),
            image: self.image.clone(),
            runtime: Some(Runtime { name: self.runtime.clone(), options: None }),
            spec: Some(Any { type_url: SPEC_TYPE.into(), value: spec }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: self.snapshot_key.clone(),
            ..Container::default()
        }
    }
}

impl Network {
    /// Calls all plugins to attach a container; gives the last one's answer.
    async fn add(&self, id: &str, netns: &Path) -> Result<Value> {
        let mut result = None;
        for plugin in self.plugins()? {
            let said = self.call("ADD", plugin, id, netns, result.as_ref()).await?;
            result = Some(serde_json::from_slice(&said).context("a network plugin's answer")?);
        }
        result.context("no network plugins")
    }

    async fn delete(&self, id: &str, netns: &Path, attached: &Value) -> Result<()> {
        for plugin in self.plugins()?.into_iter().rev() {
            self.call("DEL", plugin, id, netns, Some(attached)).await?;
        }
        Ok(())
    }

    fn plugins(&self) -> Result<Vec<&Map<String, Value>>> {
        let plugins = self.list["plugins"].as_array().context("plugins is missing")?;
        plugins.iter().map(|plugin| plugin.as_object().context("a plugin is no object")).collect()
    }

    async fn call(
        &self,
        command: &str,
        plugin: &Map<String, Value>,
        id: &str,
        netns: &Path,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let name = plugin.get("type").and_then(Value::as_str).context("type is missing")?;
        let mut input = plugin.clone();
        if input.remove("capabilities").is_some() {
            input.insert("runtimeConfig".into(), json!({ "portMappings": [] }));
        }
        for key in ["name", "cniVersion"] {
            input.insert(key.into(), self.list[key].clone());
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        let mut child = Command::new(self.plugins.join(name))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the network plugin {name}"))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(&serde_json::to_vec(&input)?).await?;
        drop(stdin);
        let said = child.wait_with_output().await?;
        let (out, err) = (&said.stdout, &said.stderr);
        ensure!(
            said.status.success(),
            "network plugin {name}, {command}: {} {}",
            String::from_utf8_lossy(out).trim(),
            String::from_utf8_lossy(err).trim()
        );
        Ok(said.stdout)
    }
}

/// Makes a network namespace whose loopback interface is up, and mounts it.
async fn make_namespace(path: PathBuf) -> Result<()> {
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || done.send(enter_and_mount(&path)).ok());
    result.await.map_err(|_| anyhow!("the maker of a network namespace panicked"))?
}

/// For a thread that ends afterwards.
fn enter_and_mount(path: &Path) -> Result<()> {
    std::fs::write(path, []).with_context(|| format!("cannot make {}", path.display()))?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback::set_up()?;
    let own = Path::new("/proc/thread-self/ns/net");
    Ok(mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}
