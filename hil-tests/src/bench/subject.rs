//! The agent under test: a whole gateway, ordered through `coracle apply`. In: workloads. Out:
//! moments. Orders are signed before the clock runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use coracle_protocol::desired::Workload;
use coracle_testbed::process::run;
use coracle_testbed::{Image, bin, installed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::connector::{Finished, Watch, finish};
use super::floor::{self, Floor};
use super::moment::Moment;
use super::{LIMIT, Result};
use crate::gateway::{Gateway, NAMESPACE, Options};
use crate::orders;

/// The agent's own default.
const KEEP_ALIVE_SECONDS: u16 = 60;

/// A gateway with its agent running.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) gateway: Gateway,
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
        let options = Options { keep_alive_seconds: KEEP_ALIVE_SECONDS, ..Options::default() };
        let mut gateway = Gateway::prepare(options)?;
        let content = Image::busybox()?;
        let digest = gateway.registry.push(&content, "bench", "1")?;
        let image = gateway.registry.pinned("bench", &digest);
        gateway.containerd.import(floor::NAMESPACE, &content, "bench.invalid/bench:1")?;
        let floor = Floor::new("bench.invalid/bench:1", &gateway.place().cgroup())?;
        gateway.start_agent()?;
        gateway.wait("the link to stand", LIMIT, |status| status.connected().then_some(()))?;
        Ok((Self { gateway, image, generation: 0 }, floor))
    }

    /// The next order, signed: a workload for each of the commands.
    pub(super) fn sign(&mut self, commands: &[Vec<String>]) -> Result<PathBuf> {
        self.generation += 1;
        let workloads = commands.iter().enumerate();
        let workloads = workloads.map(|(number, argv)| self.workload(number, argv)).collect();
        let order = orders::order(self.gateway.id(), self.generation, workloads);
        self.gateway.sign(&order)
    }

    fn workload(&self, number: usize, argv: &[String]) -> Workload {
        let mut workload = orders::workload(&name(number), &self.image);
        // The sleeper, as process 1, has no handler for SIGTERM: waiting for it would be idle.
        workload.stop.grace_seconds = 0;
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
        let ran = ran.with_context(|| self.gateway.tail())?;
        self.gateway.wait_converged(self.generation)?;
        Ok(Started { began: applied.began, accepted: applied.ended, ran })
    }

    /// Orders nothing and waits until nothing is left.
    pub(super) fn clear(&mut self) -> Result<()> {
        let signed = std::fs::read(self.sign(&[])?)?;
        let applied = self.gateway.apply(&signed)?;
        ensure!(applied.accepted, "the empty order was refused: {:?}", applied.refusals);
        self.gateway.wait_converged(self.generation)?;
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
        let (died, ran) = found.with_context(|| self.gateway.tail())?;
        Ok(ran.ms_since(died))
    }

    /// Bytes that the agent's connection to the broker has sent and received, as the kernel
    /// counts them; `None` if `ss` (iproute2) is not there to ask.
    pub(super) fn link_bytes(&self) -> Option<(u64, u64)> {
        let port = format!(":{}", self.gateway.broker.port());
        let mut command = Command::new(installed("ss").ok()?);
        command.args(["-tinH", "state", "established", "dport", "=", &port]);
        let answer = String::from_utf8(run(&mut command, LIMIT).ok()?).ok()?;
        let count = |name: &str| {
            answer.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u64>().ok())
        };
        Some((count("bytes_sent:")?, count("bytes_received:")?))
    }
}

fn name(number: usize) -> String {
    format!("w{number}")
}
