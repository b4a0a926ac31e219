//! The floor of many containers: what the agent asks of containerd for a container, read back from
//! there once, and asked again by a client that does nothing else. In: a running container of the
//! agent's. Out: how long the same containers take [`client`](super::client), and milliseconds.
//!
//! What the agent has made for its containers on the gateway (files that are mounted) is copied
//! before the clock runs.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{GetContainerRequest, GetRequest};
use containerd_client::tonic::Request;
use coracle_testbed::installed;
use coracle_testbed::process::run;
use serde_json::{Value, json};

use super::client::{Began, Job, Network, Wanted};
use super::connector::Watch;
use super::floor::NAMESPACE;
use super::moment::Moment;
use super::{LIMIT, Result};
use crate::gateway::{self, Gateway};

/// How many containers are under way at once that are replaced later.
const REPLACED_AT_ONCE: usize = 4;

/// Starts the same containers again and again.
#[derive(Debug)]
pub(super) struct Raw {
    model: Model,
    network: Option<Network>,
    /// Parent of the containers' cgroups.
    cgroup: String,
    /// For files that are mounted, network namespaces and jobs.
    dir: PathBuf,
    made: u32,
}

/// A container as containerd has it.
#[derive(Debug)]
struct Model {
    image: String,
    labels: HashMap<String, String>,
    runtime: String,
    snapshotter: String,
    parent: String,
    spec: Value,
    /// What is mounted from the gateway.
    files: BTreeMap<PathBuf, Vec<u8>>,
    output: String,
}

impl Raw {
    /// Takes the running container `id` of the agent's for a model. With a network its containers
    /// are attached to that.
    pub(super) fn like(gateway: &Gateway, id: &str, network: Option<Network>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let model = runtime.block_on(Model::read(gateway.containerd.address(), id));
        let model = model.with_context(|| format!("cannot read back {id}"))?;
        let dir = gateway.place().run().join("floor");
        std::fs::create_dir_all(&dir)?;
        // As the agent's: the containerd namespace comes between.
        Ok(Self { model, network, cgroup: gateway.cgroup(), dir, made: 0 })
    }

    /// Starts a container for each of the commands, some at once, and removes them. Milliseconds
    /// from the first call to the last process.
    pub(super) fn run(
        &mut self,
        gateway: &Gateway,
        watch: &Watch,
        commands: &[Vec<String>],
        at_once: usize,
    ) -> Result<f64> {
        watch.forget();
        let mut client = self.client(gateway, commands, &[], at_once)?;
        let began = client.began()?;
        let what = "the processes of the floor's containers";
        let ran = watch.wait(what, LIMIT, |seen| {
            let moments = commands.iter().map(|argv| Some(seen.started(argv)?.1));
            moments.collect::<Option<Vec<_>>>()?.into_iter().max()
        })?;
        client.end()?;
        self.remove_bridges(gateway)?;
        Ok(ran.ms_since(began))
    }

    /// Starts so many containers with the first command, and replaces one after the other by one
    /// with the second. Milliseconds from the first call for that to the last new process.
    pub(super) fn replace(
        &mut self,
        gateway: &Gateway,
        watch: &Watch,
        [old, new]: [&[String]; 2],
        count: usize,
    ) -> Result<f64> {
        watch.forget();
        let commands = [old, new].map(|argv| vec![argv.to_vec(); count]);
        let mut client = self.client(gateway, &commands[0], &commands[1], REPLACED_AT_ONCE)?;
        client.began()?;
        watch.wait("the containers of the floor", LIMIT, |seen| seen.all_started(old, count))?;
        client.go_on()?;
        let began = client.began()?;
        let what = "the floor's new processes";
        let ran = watch.wait(what, LIMIT, |seen| seen.all_started(new, count))?;
        client.end()?;
        self.remove_bridges(gateway)?;
        Ok(ran.ms_since(began))
    }

    fn client(
        &mut self,
        gateway: &Gateway,
        commands: &[Vec<String>],
        replacements: &[Vec<String>],
        at_once: usize,
    ) -> Result<Client> {
        let mut wanted = |commands: &[Vec<String>]| {
            commands.iter().map(|argv| self.wanted(argv)).collect::<Result<Vec<_>>>()
        };
        let (containers, replacements) = (wanted(commands)?, wanted(replacements)?);
        let job = Job {
            address: gateway.containerd.address().to_owned(),
            namespace: NAMESPACE.to_owned(),
            at_once,
            network: self.network.clone(),
            containers,
            replacements,
        };
        let path = self.dir.join("job.json");
        std::fs::write(&path, serde_json::to_vec(&job)?)?;
        Client::start(gateway, &path)
    }

    /// The model with an identity and a command of its own.
    fn wanted(&mut self, argv: &[String]) -> Result<Wanted> {
        self.made += 1;
        let replica = format!("f{}.0", self.made);
        let id = format!("{replica}.main");
        let netns = self.network.as_ref().map(|_| self.dir.join(format!("{replica}.netns")));
        let model = &self.model;
        let spec = self.spec(&replica, &id, argv, netns.as_deref())?;
        Ok(Wanted {
            snapshot_key: format!("{id}.floor"),
            id,
            image: model.image.clone(),
            labels: model.labels.clone(),
            runtime: model.runtime.clone(),
            snapshotter: model.snapshotter.clone(),
            parent: model.parent.clone(),
            spec,
            output: model.output.clone(),
            netns,
        })
    }

    fn spec(
        &self,
        replica: &str,
        id: &str,
        argv: &[String],
        netns: Option<&Path>,
    ) -> Result<Value> {
        let mut spec = self.model.spec.clone();
        spec["hostname"] = json!(replica.replace('.', "-"));
        spec["process"]["args"] = json!(argv);
        spec["linux"]["cgroupsPath"] = json!(format!("{}/{NAMESPACE}/{id}", self.cgroup));
        let namespaces = spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
        // Without a path it is made by runc.
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(match netns {
            Some(path) => json!({ "type": "network", "path": path }),
            None => json!({ "type": "network" }),
        });
        for mount in spec["mounts"].as_array_mut().context("no mounts")? {
            let Some(source) = mounted(mount) else { continue };
            let content = self.model.files.get(&source).context("a mount that was not read")?;
            let name = source.file_name().context("a mount without a file name")?;
            let copies = self.dir.join(replica);
            std::fs::create_dir_all(&copies)?;
            std::fs::write(copies.join(name), content)?;
            mount["source"] = json!(copies.join(name));
        }
        Ok(spec)
    }

    /// A bridge without ports is removed, as the agent does, so that both sides have it to make.
    fn remove_bridges(&self, gateway: &Gateway) -> Result<()> {
        let Some(network) = &self.network else { return Ok(()) };
        let plugins = network.list["plugins"].as_array().map_or(&[][..], Vec::as_slice);
        for bridge in plugins.iter().filter_map(|plugin| plugin["bridge"].as_str()) {
            run(gateway.place().command(installed("ip")?).args(["link", "delete", bridge]), LIMIT)?;
        }
        Ok(())
    }
}

impl Model {
    async fn read(address: &Path, id: &str) -> Result<Self> {
        let channel = containerd_client::connect(address).await?;
        let get = within(GetContainerRequest { id: id.to_owned() })?;
        let found = ContainersClient::new(channel.clone()).get(get).await?.into_inner();
        let record = found.container.context("containerd gives no record")?;
        let runtime = record.runtime.context("the record names no runtime")?;
        if runtime.options.is_some() {
            bail!("the agent gives the runtime options, which the floor does not");
        }
        let (snapshotter, key) = (record.snapshotter.clone(), record.snapshot_key);
        let stat = within(StatSnapshotRequest { snapshotter, key })?;
        let snapshot = SnapshotsClient::new(channel.clone()).stat(stat).await?.into_inner();
        let get = within(GetRequest { container_id: id.to_owned(), ..GetRequest::default() })?;
        let task = TasksClient::new(channel).get(get).await?.into_inner();
        let spec: Value = serde_json::from_slice(&record.spec.context("no specification")?.value)?;
        let mounts = spec["mounts"].as_array().context("no mounts")?;
        let read = |source: PathBuf| {
            let content = std::fs::read(&source);
            let content = content.with_context(|| format!("cannot read {}", source.display()))?;
            Ok((source, content))
        };
        Ok(Self {
            files: mounts.iter().filter_map(mounted).map(read).collect::<Result<_>>()?,
            image: record.image,
            labels: record.labels,
            runtime: runtime.name,
            snapshotter: record.snapshotter,
            parent: snapshot.info.context("containerd does not know the snapshot")?.parent,
            spec,
            output: task.process.context("containerd knows no task")?.stdout,
        })
    }
}

/// The path that a mount of a specification binds, if it binds any.
fn mounted(mount: &Value) -> Option<PathBuf> {
    mount["source"].as_str().map(PathBuf::from).filter(|source| source.is_absolute())
}

/// Where the agent's containers are.
fn within<T>(message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", gateway::NAMESPACE.parse()?);
    Ok(request)
}

/// The client's process; killed when dropped.
struct Client(Child);

impl Client {
    /// In the network and the mount namespace of the agent.
    fn start(gateway: &Gateway, job: &Path) -> Result<Self> {
        let agent = gateway.agent_pid().context("the agent has ended")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &agent.to_string(), "--mount", "--net", "--root", "--wd", "--"]);
        command
            .arg(std::env::current_exe()?)
            .arg("floor-client")
            .arg(job)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(Self(command.spawn().with_context(|| format!("cannot run {command:?}"))?))
    }

    /// Lets it replace what it has started.
    fn go_on(&mut self) -> Result<()> {
        Ok(self.0.stdin.as_mut().context("no standard input")?.write_all(b"\n")?)
    }

    /// Waits until it has started, or replaced, everything; gives when it began with that.
    fn began(&mut self) -> Result<Moment> {
        let mut line = String::new();
        let output = self.0.stdout.as_mut().context("no standard output")?;
        // It says one line and waits, so that nothing is read ahead and lost.
        BufReader::new(output).read_line(&mut line)?;
        let began: Began = serde_json::from_str(&line).context("the floor's client failed")?;
        Ok(Moment::from_nanos(began.nanos))
    }

    /// Lets it remove everything.
    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "the floor's client ended with {status}");
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ended already, as a rule.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
