//! Calls of network plugins, as CNI has them (<https://www.cni.dev/docs/spec/>, versions 0.3 to
//! 1.1): configuration on standard input, parameters in the environment, a result or an error on
//! standard output.
//!
//! A plugin's standard input is a file of the pod's that is locked as long as the plugin runs, also
//! when the agent dies meanwhile: whoever comes later waits for the lock, and never works beside
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use coracle_core::desired::Protocol;
use coracle_core::name::ReplicaId;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::PortMapping;
use super::error::NetworkError;
use super::process::{self, OUTPUT_LIMIT, Said, TIME_LIMIT};
use super::record::Attached;
use crate::conflist::{self, Conflist, VERSIONS};
use crate::fault::fault_point;

/// The pod's interface.
pub(super) const INTERFACE: &str = "eth0";

/// Longest text of a plugin's that is passed on, in characters.
const MESSAGE_LIMIT: usize = 300;

/// The capability that means published ports.
const PORT_MAPPINGS: &str = "portMappings";

/// What a plugin's program was when it said which versions it knows.
type Known = BTreeMap<PathBuf, (Option<SystemTime>, BTreeSet<String>)>;

/// Where plugins are, and how many may run at once.
#[derive(Clone, Debug)]
pub(super) struct Plugins {
    dirs: Arc<[PathBuf]>,
    /// Directory of the records.
    records: PathBuf,
    known: Arc<Mutex<Known>>,
    permits: Arc<Semaphore>,
}

/// One pod that a plugin is called for.
#[derive(Debug)]
pub(super) struct Pod<'a> {
    pub(super) replica: &'a ReplicaId,
    /// Its namespace; `None` if it is gone already.
    pub(super) netns: Option<&'a Path>,
    pub(super) ports: &'a [PortMapping],
}

impl Plugins {
    pub(super) fn new(dirs: &[PathBuf], records: PathBuf) -> Self {
        // More at once would not be faster, and take memory that the agent's limit counts.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            dirs: dirs.into(),
            records,
            known: Arc::default(),
            permits: Arc::new(Semaphore::new((2 * processors).clamp(2, 8))),
        }
    }

    /// The newest version of the specification that the network and all its plugins know. Also
    /// finds out whether all are there.
    pub(super) async fn negotiate(&self, network: &Conflist) -> Result<String, NetworkError> {
        let mut common: BTreeSet<&str> = network.versions.iter().copied().collect();
        let mut said = vec![format!("network {}", network.versions.join(" "))];
        for program in network.programs() {
            let path = self.find(&program)?;
            let known = self.versions_of(&program, &path).await?;
            common.retain(|version| known.contains(*version));
            let known: Vec<_> = known.iter().map(String::as_str).collect();
            said.push(format!("{program} {}", known.join(" ")));
        }
        match VERSIONS.into_iter().rfind(|version| common.contains(version)) {
            Some(version) => Ok(version.to_owned()),
            None => Err(NetworkError::Versions {
                network: network.name.clone(),
                versions: said.join(", "),
            }),
        }
    }

    /// Calls one plugin of a chain to attach the pod; gives its result.
    pub(super) async fn add(
        &self,
        pod: &Pod<'_>,
        attached: &Attached,
        plugin: &Map<String, Value>,
    ) -> Result<Value, NetworkError> {
        let said = self.call("ADD", pod, attached, plugin).await?;
        let result = serde_json::from_slice::<Value>(&said.out).ok().filter(Value::is_object);
        result.ok_or_else(|| {
            broken(plugin, "ADD", pod, "answered what is no result of the specification")
        })
    }

    /// Calls one plugin of a chain to detach the pod.
    pub(super) async fn delete(
        &self,
        pod: &Pod<'_>,
        attached: &Attached,
        plugin: &Map<String, Value>,
    ) -> Result<(), NetworkError> {
        // Plugins call the one for addresses themselves, and fail without it.
        let addresses = plugin.get("ipam").and_then(|ipam| ipam["type"].as_str());
        if let Some(name) = addresses.filter(|name| !name.is_empty()) {
            self.find(name)?;
        }
        self.call("DEL", pod, attached, plugin).await.map(drop)
    }

    /// Waits until no plugin of this pod runs that an agent before us started.
    pub(super) async fn wait_for_leftover(&self, replica: &ReplicaId) -> Result<(), NetworkError> {
        process::wait_for_leftover(&self.input_path(replica)).await
    }

    async fn call(
        &self,
        command: &'static str,
        pod: &Pod<'_>,
        attached: &Attached,
        plugin: &Map<String, Value>,
    ) -> Result<Said, NetworkError> {
        let name = conflist::kind(plugin);
        let program = self.find(name)?;
        // If the agent ends in the middle, the plugin keeps the lock: it is not given back here.
        let configuration = configuration(plugin, attached, pod.ports).to_string();
        let input = process::locked_input(&self.input_path(pod.replica), configuration.as_bytes())?;
        let input = ManuallyDrop::new(input);
        fault_point("plugin.input");
        let environment = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", attached.id.clone()),
            ("CNI_NETNS", pod.netns.map(|at| at.display().to_string()).unwrap_or_default()),
            ("CNI_IFNAME", INTERFACE.to_owned()),
            ("CNI_ARGS", String::new()),
            ("CNI_PATH", self.search_path()),
        ];
        let stdin = input.try_clone().map_err(NetworkError::file("open", self.records.clone()))?;
        let permit = self.permits.acquire().await;
        fault_point(&format!("{command} {name} before"));
        let said = process::run(
            &program,
            &[],
            &environment,
            Stdio::from(stdin),
            (TIME_LIMIT, OUTPUT_LIMIT),
        );
        let said = said.await;
        fault_point(&format!("{command} {name} after"));
        drop(permit);
        drop(ManuallyDrop::into_inner(input));
        let said = said.map_err(|error| broken(plugin, command, pod, &error.to_string()))?;
        if said.status.success() {
            return Ok(said);
        }
        Err(failure(name, command, pod, &said))
    }

    fn input_path(&self, replica: &ReplicaId) -> PathBuf {
        self.records.join(format!("{replica}.stdin"))
    }

    async fn versions_of(
        &self,
        name: &str,
        program: &Path,
    ) -> Result<BTreeSet<String>, NetworkError> {
        let stamp = program.metadata().and_then(|data| data.modified()).ok();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(program).cloned();
        if let Some((_, versions)) = known.filter(|(then, _)| *then == stamp) {
            return Ok(versions);
        }
        let question = json!({ "cniVersion": VERSIONS[VERSIONS.len() - 1] }).to_string();
        let environment = [("CNI_COMMAND", "VERSION".to_owned()), ("CNI_PATH", self.search_path())];
        let of = |what: &str| NetworkError::Broken {
            plugin: name.into(),
            command: "VERSION",
            replica: "no pod".into(),
            what: what.into(),
        };
        let input =
            process::input_of(question.as_bytes()).map_err(|error| of(&error.to_string()))?;
        let limits = (TIME_LIMIT, OUTPUT_LIMIT);
        let said = process::run(program, &[], &environment, input, limits)
            .await
            .map_err(|error| of(&error.to_string()))?;
        let answer: Value = serde_json::from_slice(&said.out).unwrap_or_default();
        let versions = answer["supportedVersions"].as_array();
        let versions: BTreeSet<_> = versions
            .ok_or_else(|| of("does not say which versions it knows"))?
            .iter()
            .filter_map(|version| version.as_str().map(str::to_owned))
            .collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(program.into(), (stamp, versions.clone()));
        Ok(versions)
    }

    fn find(&self, name: &str) -> Result<PathBuf, NetworkError> {
        let is_program = |path: &PathBuf| {
            let data = path.metadata();
            data.is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        };
        let found = self.dirs.iter().map(|dir| dir.join(name)).find(is_program);
        found.ok_or_else(|| {
            let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            NetworkError::PluginMissing { plugin: name.into(), places: dirs.join(", ") }
        })
    }

    fn search_path(&self) -> String {
        let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        dirs.join(":")
    }
}

/// Whether ports that are asked for would be published by anybody.
pub(super) fn publishes_ports(network: &Conflist) -> bool {
    network.plugins.iter().any(takes_ports)
}

fn takes_ports(plugin: &Map<String, Value>) -> bool {
    plugin.get("capabilities").is_some_and(|capabilities| capabilities[PORT_MAPPINGS] == true)
}

/// What one plugin reads: its own configuration, and what the specification adds to it.
fn configuration(plugin: &Map<String, Value>, attached: &Attached, ports: &[PortMapping]) -> Value {
    let mut configuration = plugin.clone();
    configuration.remove("capabilities");
    configuration.insert("cniVersion".into(), attached.version.clone().into());
    configuration.insert("name".into(), attached.network.clone().into());
    if takes_ports(plugin) {
        let ports: Vec<_> = ports.iter().map(port_mapping).collect();
        configuration.insert("runtimeConfig".into(), json!({ PORT_MAPPINGS: ports }));
    }
    if let Some(result) = &attached.result {
        configuration.insert("prevResult".into(), result.clone());
    }
    configuration.into()
}

/// <https://www.cni.dev/docs/conventions/#well-known-capabilities>
fn port_mapping(port: &PortMapping) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let mut mapping = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": protocol,
    });
    if let Some(address) = port.host_address.filter(|address| !address.is_unspecified()) {
        mapping["hostIP"] = address.to_string().into();
    }
    mapping
}

/// What a plugin says of its failure (<https://www.cni.dev/docs/spec/#error>).
fn failure(name: &str, command: &'static str, pod: &Pod<'_>, said: &Said) -> NetworkError {
    let error: Value = serde_json::from_slice(&said.out).unwrap_or_default();
    let (plugin, replica) = (name.to_owned(), pod.replica.to_string());
    let Some(message) = error["msg"].as_str() else {
        let words = String::from_utf8_lossy(&said.err);
        let what = format!("ended with {}: {}", said.status, shorten(words.trim()));
        return NetworkError::Broken { plugin, command, replica, what };
    };
    let details = error["details"].as_str().filter(|details| !details.is_empty());
    let text = details.map_or(message.to_owned(), |details| format!("{message}: {details}"));
    let code = error["code"].as_u64().unwrap_or(999);
    NetworkError::Plugin { plugin, command, replica, code, message: shorten(text.trim()) }
}

fn broken(
    plugin: &Map<String, Value>,
    command: &'static str,
    pod: &Pod<'_>,
    what: &str,
) -> NetworkError {
    let (plugin, replica) = (conflist::kind(plugin).to_owned(), pod.replica.to_string());
    NetworkError::Broken { plugin, command, replica, what: what.into() }
}

fn shorten(text: &str) -> String {
    text.chars().take(MESSAGE_LIMIT).collect()
}
