//! The agent under test: a whole gateway, ordered through `coracle apply`. In: workloads. Out:
//! moments. Orders are signed before the clock runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use coracle_protocol::desired::{self, Stop, Update, Workload};
use coracle_testbed::process::run;
use coracle_testbed::{Image, bin, installed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::client;
use super::connector::{Finished, Watch, finish};
use super::floor::{self, Floor};
use super::moment::Moment;
use super::{LIMIT, Result};
use crate::gateway::{Gateway, NAMESPACE, Options};
use crate::orders;

/// The agent's own default.
const KEEP_ALIVE_SECONDS: u16 = 60;

/// Where network plugins usually are.
const PLUGIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// A gateway with its agent running.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) gateway: Gateway,
    /// What the workloads of the next order have.
    pub(super) network: desired::Network,
    /// What attaches pods: the same list as the agent's own, given to it as a file.
    pub(super) plugins: client::Network,
    image: String,
    generation: u64,
}

/// How an order came about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    /// `coracle apply` began.
    pub(super) began: Moment,
    /// It had its answer: the order is in force, on disk.
    pub(super) accepted: Moment,
    /// The last of the ordered processes ran.
    pub(super) ran: Moment,
}

impl Subject {
    /// Everything, with the image in the agent's namespace and in the floor's.
    pub(super) fn start() -> Result<(Self, Floor)> {
        let options = Options {
            keep_alive_seconds: KEEP_ALIVE_SECONDS,
            private_network: true,
            ..Options::default()
        };
        let mut gateway = Gateway::prepare(options)?;
        // As its unit does.
        gateway.environment.push(("MALLOC_ARENA_MAX".to_owned(), "1".to_owned()));
        let content = Image::busybox()?;
        let digest = gateway.registry.push(&content, "bench", "1")?;
        let image = gateway.registry.pinned("bench", &digest);
        gateway.containerd.import(floor::NAMESPACE, &content, "bench.invalid/bench:1")?;
        let floor = Floor::new("bench.invalid/bench:1", &gateway.place().cgroup())?;
        let plugins = plugins(&gateway.place().run().join("ipam"))?;
        let list = gateway.place().run().join("bench.conflist");
        std::fs::write(&list, serde_json::to_vec_pretty(&plugins.list)?)?;
        gateway.lines.push_str(&format!(
            "[cni]\nplugin_dirs = [{:?}]\nconflist = {list:?}\n",
            plugins.plugins
        ));
        gateway.start_agent()?;
        gateway.wait("the link to stand", LIMIT, |status| status.connected().then_some(()))?;
        let network = desired::Network::None;
        Ok((Self { gateway, network, plugins, image, generation: 0 }, floor))
    }

    /// The agent's process id.
    pub(super) fn agent_pid(&self) -> Result<i32> {
        self.gateway.agent_pid().context("the agent has ended")
    }

    /// The next order, signed: a workload for each of the commands.
    pub(super) fn sign(&mut self, commands: &[Vec<String>]) -> Result<PathBuf> {
        self.sign_workloads(self.workloads(commands))
    }

    /// The next order, signed: one workload with so many replicas of one command, replaced one by
    /// one without a pause.
    pub(super) fn sign_replicas(&mut self, argv: &[String], replicas: usize) -> Result<PathBuf> {
        let mut workload = self.workload(0, argv);
        workload.replicas = u32::try_from(replicas)?;
        workload.stop = None;
        workload.update = Some(Update { min_ready_seconds: 0, ..Update::default() });
        self.sign_workloads(vec![workload])
    }

    fn sign_workloads(&mut self, workloads: Vec<Workload>) -> Result<PathBuf> {
        self.generation += 1;
        let order = orders::order(self.gateway.id(), self.generation, workloads);
        self.gateway.sign(&order)
    }

    /// A workload for each of the commands.
    pub(super) fn workloads(&self, commands: &[Vec<String>]) -> Vec<Workload> {
        let numbered = commands.iter().enumerate();
        numbered.map(|(number, argv)| self.workload(number, argv)).collect()
    }

    fn workload(&self, number: usize, argv: &[String]) -> Workload {
        let mut workload = orders::workload(&name(number), &self.image);
        workload.network = Some(self.network);
        // The sleeper, as process 1, has no handler for SIGTERM: waiting for it would be idle.
        workload.stop = Some(Stop { grace_seconds: 0, ..Stop::default() });
        if let Some(container) = workload.containers.first_mut() {
            container.command = Some(argv.to_vec());
        }
        workload
    }

    /// `coracle apply`, which succeeds when the order is in force.
    pub(super) fn apply(&self, watch: &Watch, signed: &Path) -> Result<Finished> {
        let mut command = Command::new(bin("coracle")?);
        command.arg("--socket").arg(self.gateway.socket()).arg("apply").arg(signed);
        finish(watch, &mut command)
    }

    /// Orders a workload for each of the commands and waits until all their processes run.
    pub(super) fn start_all(&mut self, watch: &Watch, commands: &[Vec<String>]) -> Result<Started> {
        let signed = self.sign(commands)?;
        let applied = self.apply(watch, &signed)?;
        let what = "the processes of the ordered workloads";
        let ran = watch.wait(what, LIMIT, |seen| {
            let moments = commands.iter().map(|argv| Some(seen.started(argv)?.1));
            moments.collect::<Option<Vec<_>>>()?.into_iter().max()
        });
        let ran = self.explained(ran)?;
        self.converged()?;
        Ok(Started { began: applied.began, accepted: applied.ended, ran })
    }

    /// With the end of the agent's log beside the error, if it is one.
    pub(super) fn explained<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.gateway.tail())
    }

    /// Orders these workloads and waits until all is as ordered.
    pub(super) fn order(&mut self, workloads: Vec<Workload>) -> Result<()> {
        let signed = std::fs::read(self.sign_workloads(workloads)?)?;
        let applied = self.gateway.apply(&signed)?;
        ensure!(applied.accepted, "an order was refused: {:?}", applied.refusals);
        self.converged()
    }

    /// Waits until all is as last ordered.
    pub(super) fn converged(&mut self) -> Result<()> {
        self.gateway.wait_converged(self.generation).map(drop)
    }

    /// Orders nothing and waits until nothing is left.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.order(Vec::new())?;
        let left = self.gateway.containerd.containers(NAMESPACE)?;
        ensure!(left.is_empty(), "left after the empty order: {left:?}");
        Ok(())
    }

    /// Waits until all is as last ordered; gives the process ids, by workload.
    pub(super) fn settled(&mut self) -> Result<Vec<i32>> {
        let status = self.gateway.wait_converged(self.generation)?;
        let workloads = 0..status.reported.workloads.len();
        let pids = workloads.map(|number| status.pid(&name(number)));
        pids.collect::<Option<_>>().context("a workload that converged has no process id")
    }

    /// Kills the process of a workload and waits for another one with the same arguments. Gives
    /// milliseconds from the end of the old to the exec of the new.
    pub(super) fn kill(&mut self, watch: &Watch, old: i32, argv: &[String]) -> Result<f64> {
        watch.forget();
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        let found = watch.wait("the replacement of a killed process", LIMIT, |seen| {
            Some((*seen.exits.get(&old)?, seen.started(argv)?.1))
        });
        let (died, ran) = self.explained(found)?;
        Ok(ran.ms_since(died))
    }

    /// Bytes that the agent's connection to the broker has sent and received, as the kernel
    /// counts them; `None` if `ss` (iproute2) is not there to ask.
    pub(super) fn link_bytes(&self) -> Option<(u64, u64)> {
        let port = format!(":{}", self.gateway.broker.port());
        let mut command = self.gateway.place().command(installed("ss").ok()?);
        command.args(["-tinH", "state", "established", "dport", "=", &port]);
        let answer = String::from_utf8(run(&mut command, LIMIT).ok()?).ok()?;
        let count = |name: &str| {
            answer.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u64>().ok())
        };
        Some((count("bytes_sent:")?, count("bytes_received:")?))
    }
}

/// A bridge with addresses, masquerading and published ports, as the agent makes by itself.
fn plugins(addresses: &Path) -> Result<client::Network> {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "bench0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": addresses,
                    "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall" },
        ],
    });
    let dirs = PLUGIN_DIRS.map(PathBuf::from);
    let plugins = dirs.into_iter().find(|dir| dir.join("bridge").is_file());
    let plugins = plugins.with_context(|| {
        format!("no network plugins in {}: run scripts/setup", PLUGIN_DIRS.join(", "))
    })?;
    Ok(client::Network { list, plugins })
}

fn name(number: usize) -> String {
    format!("w{number}")
}
