//! One private containerd with a busybox image, and the runtime under test on it.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle::config::ContainerdConfig;
use coracle::containerd::{Containerd, LocalImage};
use coracle::runtime::{ContainerdRuntime, Root, Runtime as _, RuntimeEvent, Surroundings, follow};
use coracle_core::artifact::Software;
use coracle_core::desired::{Container, DefinitionHash, Pod};
use coracle_core::image::{Digest, ImageRef};
use coracle_core::name::{ContainerId, ContainerName, ReplicaId, WorkloadName};
use coracle_core::observed::{Exit, Task};
use coracle_core::plan::{Start, Stop, Why};
use coracle_protocol::desired::Network;
use coracle_testbed::image::{Builder, Compression, digest};
use coracle_testbed::process::is_alive;
use coracle_testbed::{Image, Place, Version, place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest time for anything that happens soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Longest time for a whole scenario.
const SCENARIO_LIMIT: Duration = Duration::from_secs(180);

pub(crate) const NAMESPACE: &str = "coracle-test";

pub(crate) struct Bed {
    pub(crate) containerd: coracle_testbed::Containerd,
    pub(crate) connection: Containerd,
    pub(crate) runtime: ContainerdRuntime,
    /// `sleep 86400` unless told otherwise.
    pub(crate) image: LocalImage,
    pub(crate) root: Root,
    place: Place,
}

/// Runs a scenario on a fresh containerd; afterwards nothing of it may be left.
pub(crate) fn run<F: Future<Output = ()>>(version: Version, scenario: fn(Bed) -> F) {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let entered = tokio.enter();
    let bed = Bed::new(version);
    drop(entered);
    let place = bed.place.clone();
    let name = place.name().to_owned();
    tokio.block_on(async { timeout(SCENARIO_LIMIT, scenario(bed)).await.expect("in time") });
    drop(tokio);
    let left = place.contents();
    assert!(left.iter().all(|line| line.starts_with("cgroup ")), "{left:?}");
    place.close().unwrap();
    assert_eq!(place::leftovers(&name), Vec::<String>::new());
}

/// Makes one test of a scenario for each containerd.
#[macro_export]
macro_rules! on_every_containerd {
    ($($scenario:ident),* $(,)?) => {
        mod on_1_6 { $(#[test] fn $scenario() {
            $crate::bed::run(coracle_testbed::Version::V1_6, super::$scenario);
        })* }
        mod on_1_7 { $(#[test] fn $scenario() {
            $crate::bed::run(coracle_testbed::Version::V1_7, super::$scenario);
        })* }
        mod on_2_1 { $(#[test] fn $scenario() {
            $crate::bed::run(coracle_testbed::Version::V2_1, super::$scenario);
        })* }
    };
}

/// An order to run `/bin/sh -c script` as `NAME.0.main`.
pub(crate) fn script(name: &str, script: &str) -> Start {
    order(name, |c| c.command = Some(["/bin/sh", "-c", script].map(String::from).into()))
}

/// An order to run the image as `NAME.0.main`, changed as wanted.
pub(crate) fn order(name: &str, change: impl FnOnce(&mut Container)) -> Start {
    let replica = ReplicaId { workload: WorkloadName::parse(name).unwrap(), index: 0 };
    let main = ContainerName::parse("main").unwrap();
    let mut container = Container {
        name: main.clone(),
        software: Software::Image(ImageRef::parse("registry.example/busybox:1").unwrap()),
        command: None,
        args: None,
        env: Default::default(),
        working_dir: None,
        user: None,
        readonly_root: false,
        mounts: Vec::new(),
        limits: Default::default(),
        devices: Vec::new(),
        capabilities: Default::default(),
        seccomp: Default::default(),
        probes: Default::default(),
    };
    change(&mut container);
    Start {
        id: replica.container(&main),
        replica,
        generation: 1,
        definition: DefinitionHash::from_label("first"),
        pod: pod(Network::Host, container.clone()),
        container: Arc::new(container),
        shares_ports: false,
        remains: false,
    }
}

/// A pod of one container.
pub(crate) fn pod(network: Network, container: Container) -> Arc<Pod> {
    Arc::new(Pod {
        network,
        containers: vec![Arc::new(container)],
        ports: Vec::new(),
        identity: None,
        in_place: "".into(),
        native: None,
    })
}

/// The stop that belongs to a start.
pub(crate) fn stop(start: &Start, grace: Duration) -> Stop {
    Stop {
        replica: start.replica.clone(),
        id: start.id.clone(),
        why: Why::Unwanted,
        drain: Duration::ZERO,
        pre_stop: None,
        signal: None,
        grace,
    }
}

/// Whether a process runs.
pub(crate) fn alive(pid: u32) -> bool {
    is_alive(i32::try_from(pid).unwrap())
}

/// As the kernel would when memory is short.
pub(crate) fn kill_process(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

impl Bed {
    fn new(version: Version) -> Self {
        let place = Place::new().unwrap();
        let containerd = coracle_testbed::Containerd::start(&place, version).unwrap();
        let config = ContainerdConfig {
            address: containerd.address().to_owned(),
            namespace: NAMESPACE.into(),
            cgroup: place.cgroup(),
            ..ContainerdConfig::default()
        };
        let connection = Containerd::new(&config).unwrap();
        let runtime = ContainerdRuntime::new(connection.clone());
        let image = Builder::busybox(Compression::Plain).unwrap().build().unwrap();
        let image = import(&containerd, &image, "registry.example/busybox:1");
        let root = Root::Image(image.clone());
        Self { containerd, connection, runtime, image, root, place }
    }

    /// Puts a further image there.
    pub(crate) fn import(&self, image: &Image, reference: &str) -> LocalImage {
        import(&self.containerd, image, reference)
    }

    /// Parent of the cgroups of all containers.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Parent of the cgroups of all containers.
    pub(crate) fn cgroup(&self) -> String {
        self.place.cgroup()
    }

    pub(crate) async fn start(&self, start: &Start) -> u32 {
        self.start_in(&Surroundings::default(), start).await
    }

    pub(crate) async fn start_in(&self, surroundings: &Surroundings, start: &Start) -> u32 {
        self.runtime.start(start, &self.root, surroundings).await.unwrap()
    }

    /// Follows containerd's events; waits for the first `Connected`.
    pub(crate) async fn follow(&self) -> Events {
        let mut events = self.begin_to_follow().0;
        let version = events.connected().await;
        assert!(self.containerd.version().unwrap().contains(&version), "{version}");
        events
    }

    /// Follows containerd's events; gives the task that does.
    pub(crate) fn begin_to_follow(&self) -> (Events, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(64);
        (Events(receiver), tokio::spawn(follow(self.connection.clone(), sender)))
    }

    /// The task of one of our containers, `None` if there is no such container.
    pub(crate) async fn task(&self, id: &ContainerId) -> Option<Task> {
        self.runtime.list().await.unwrap().get(id).map(|container| container.task)
    }

    /// Waits until the container's task is as wanted.
    pub(crate) async fn task_becomes(
        &self,
        id: &ContainerId,
        wanted: impl Fn(Task) -> bool,
    ) -> Task {
        let wait = async {
            loop {
                match self.task(id).await {
                    Some(task) if wanted(task) => return task,
                    _ => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(SOON, wait).await.expect("the task becomes as wanted")
    }

    /// The processes in a container, as the kernel has them.
    pub(crate) fn processes(&self, id: &ContainerId) -> Vec<u32> {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let hierarchy = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
        let file = format!("{hierarchy}{}/{NAMESPACE}/{id}/cgroup.procs", self.place.cgroup());
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Keys of snapshots that are no image's layers.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let listed = self.containerd.ctr(&["--namespace", NAMESPACE, "snapshots", "ls"]).unwrap();
        let lines = listed.lines().skip(1).filter(|line| !line.contains("Committed"));
        lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
    }

    /// Nothing of ours is there: containers, tasks, snapshots, leases, mounts, shims, cgroups.
    pub(crate) fn assert_empty(&self) {
        let leases = ["--namespace", NAMESPACE, "leases", "ls", "--quiet"];
        assert_eq!(self.containerd.ctr(&leases).unwrap().trim(), "");
        self.assert_no_containers();
    }

    /// As [`assert_empty`](Self::assert_empty), with whatever leases there are.
    pub(crate) fn assert_no_containers(&self) {
        assert_eq!(self.containerd.containers(NAMESPACE).unwrap(), [""; 0]);
        assert_eq!(self.containerd.tasks(NAMESPACE).unwrap(), []);
        assert_eq!(self.snapshots(), [""; 0]);
        coracle_testbed::wait_for("shims to end", SOON, || {
            self.containerd.shims().is_empty().then_some(())
        })
        .unwrap();
        let mounts = self.containerd.inside("/bin/cat").arg("/proc/self/mounts").output().unwrap();
        let mounts = String::from_utf8(mounts.stdout).unwrap();
        let bundles = format!("{}/", self.containerd.state().display());
        let ours = mounts.lines().filter(|line| line.contains(&bundles) && line.contains("rootfs"));
        assert_eq!(ours.collect::<Vec<_>>(), [""; 0]);
        for cgroup in ["memory", "pids", ""] {
            let dir = format!("/sys/fs/cgroup/{cgroup}{}/{NAMESPACE}", self.place.cgroup());
            let Ok(entries) = std::fs::read_dir(dir) else { continue };
            let dirs = entries.flatten().filter(|entry| entry.path().is_dir());
            assert_eq!(dirs.map(|entry| entry.file_name()).collect::<Vec<_>>(), [""; 0]);
        }
    }
}

fn import(containerd: &coracle_testbed::Containerd, image: &Image, reference: &str) -> LocalImage {
    containerd.import(NAMESPACE, image, reference).unwrap();
    let chain = |chain: String, next: &String| digest(format!("{chain} {next}").as_bytes());
    let mut layers = image.diff_ids.iter();
    let first = layers.next().cloned();
    LocalImage {
        reference: ImageRef::parse(reference).unwrap(),
        digest: Digest::parse(&image.manifest.digest).unwrap(),
        config: image.config.bytes.to_vec(),
        chain_id: first.map(|first| layers.fold(first, chain)),
    }
}

/// The events that `follow` tells.
pub(crate) struct Events(mpsc::Receiver<RuntimeEvent>);

impl Events {
    /// An event that is there already.
    pub(crate) fn waiting(&mut self) -> Option<RuntimeEvent> {
        self.0.try_recv().ok()
    }

    /// The next event, whichever it is.
    pub(crate) async fn any(&mut self) -> RuntimeEvent {
        self.next().await
    }

    async fn next(&mut self) -> RuntimeEvent {
        let event = timeout(SOON, self.0.recv()).await;
        event.expect("an event in time").expect("follow goes on")
    }

    pub(crate) async fn connected(&mut self) -> String {
        loop {
            if let RuntimeEvent::Connected { version } = self.next().await {
                return version;
            }
        }
    }

    pub(crate) async fn disconnected(&mut self) -> String {
        match self.next().await {
            RuntimeEvent::Disconnected { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// The next event, which must be the end of this container.
    pub(crate) async fn exited(&mut self, wanted: &ContainerId) -> (u32, Exit) {
        match self.next().await {
            RuntimeEvent::Exited { id, pid, exit } if id == *wanted => (pid, exit),
            other => panic!("{other:?}"),
        }
    }

    /// The next event, which must be the end of a container.
    pub(crate) async fn exited_any(&mut self) -> (ContainerId, Exit) {
        match self.next().await {
            RuntimeEvent::Exited { id, exit, .. } => (id, exit),
            other => panic!("{other:?}"),
        }
    }
}
