//! Operations that take long and are asked for by hand: artifacts installed and removed, runtime
//! directories removed.
//!
//! Each is a task of its own beside the orders, watched through its progress. Nothing that is in use
//! is taken away: what the orders name, what may be returned to, what runs.

use std::collections::{BTreeMap, VecDeque};

use coracle_core::artifact::{ArtifactId, Coordinate, Software};
use coracle_core::desired::Workload;
use coracle_core::image::Digest;
use coracle_core::name::ReplicaId;
use coracle_core::observed::Container;
use coracle_protocol::Timestamp;
use tokio::sync::watch;

use super::{Done, EventLoop};
use crate::execute::{Execute, Failure};
use crate::native_status::{
    ArtifactStatus, Artifacts, LongWork, LongWorkRefusal, OperationState, OperationStatus,
    Operations, ServiceStatus,
};
use crate::progress::{Phase, Progress};

/// What is said where nothing may be taken away.
const UNKNOWN: &str = "it is not known of all that runs what it is; try again shortly";

/// Most at once.
const AT_ONCE: usize = 4;

/// Most that are kept after their end.
const KEPT: usize = 64;

/// Those under way and the newest of those that ended, oldest first.
#[derive(Debug, Default)]
pub(super) struct LongOperations {
    begun: u64,
    all: VecDeque<Long>,
}

#[derive(Debug)]
struct Long {
    number: u64,
    work: LongWork,
    progress: watch::Receiver<Progress>,
    began_at: Timestamp,
    ended: Option<(Timestamp, Result<String, String>)>,
}

impl LongOperations {
    fn running(&self) -> impl Iterator<Item = &Long> {
        self.all.iter().filter(|operation| operation.ended.is_none())
    }

    /// Whether there is room for another one, about something that nothing is done to.
    pub(super) fn is_free(&self, target: &str) -> bool {
        let about = |long: &Long| long.work.target() == target;
        self.running().count() < AT_ONCE && !self.running().any(about)
    }

    /// How far one is, while it is under way.
    pub(super) fn progress(&self, number: u64) -> Option<Progress> {
        let long = self.running().find(|long| long.number == number)?;
        Some(*long.progress.borrow())
    }

    /// The number of the one that was begun last.
    pub(super) fn newest(&self) -> u64 {
        self.begun
    }

    fn forget_old(&mut self) {
        while self.all.len() > KEPT {
            let Some(at) = self.all.iter().position(|long| long.ended.is_some()) else { return };
            self.all.remove(at);
        }
    }
}

impl Long {
    fn status(&self) -> OperationStatus {
        let progress = self.progress.borrow();
        let running = self.ended.is_none();
        let (state, message) = match &self.ended {
            None => (OperationState::Running, None),
            Some((_, Ok(message))) => (OperationState::Succeeded, Some(message.clone())),
            Some((_, Err(message))) => (OperationState::Failed, Some(message.clone())),
        };
        OperationStatus {
            id: id(self.number),
            kind: self.work.kind(),
            target: self.work.target(),
            state,
            message,
            phase: running.then(|| phase(progress.phase).to_owned()),
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            began_at: self.began_at,
            ended_at: self.ended.as_ref().map(|(at, _)| *at),
        }
    }
}

fn id(number: u64) -> String {
    format!("operation-{number}")
}

/// A phase in one word.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolving => "resolving",
        Phase::Downloading => "downloading",
        Phase::Verifying => "verifying",
        Phase::Unpacking => "unpacking",
    }
}

impl<E: Execute> EventLoop<E> {
    /// Begins it, unless it must not be. The same that is under way already is that.
    pub(super) fn begin_long(
        &mut self,
        work: LongWork,
    ) -> Result<OperationStatus, LongWorkRefusal> {
        if let Some(same) = self.operations.running().find(|long| long.work == work) {
            return Ok(same.status());
        }
        self.check_long(&work)?;
        let target = work.target();
        if self.operations.running().any(|long| long.work.target() == target) {
            let message = format!("something else is being done to {target}; wait for it to end");
            return Err(LongWorkRefusal::Conflict(message));
        }
        if self.operations.running().count() >= AT_ONCE {
            let message = format!("{AT_ONCE} operations are under way; wait for one to end");
            return Err(LongWorkRefusal::Busy(message));
        }
        if let LongWork::Remove(artifact) = &work {
            // No order is to begin anything with it any more.
            self.observed.artifacts.remove(artifact);
            self.changed();
        }
        let (progress, watched) = watch::channel(Progress::default());
        self.operations.begun += 1;
        let number = self.operations.begun;
        let began_at = Timestamp::from_unix(self.clock.now().wall.as_secs());
        let (hands, doing) = (self.hands.clone(), work.clone());
        self.work
            .spawn(async move { Done::LongWork(number, hands.work_long(doing, progress).await) });
        let long = Long { number, work, progress: watched, began_at, ended: None };
        let status = long.status();
        self.operations.all.push_back(long);
        self.operations.forget_old();
        Ok(status)
    }

    pub(super) fn check_long(&self, work: &LongWork) -> Result<(), LongWorkRefusal> {
        match work {
            LongWork::Install(_) => Ok(()),
            LongWork::Remove(artifact) => {
                if !self.observed.artifacts.contains_key(artifact) {
                    let message = format!("artifact {artifact} is not installed");
                    return Err(LongWorkRefusal::Unknown(message));
                }
                self.check_unused(artifact)
            }
            LongWork::Purge(coordinate) => self.check_purge(coordinate),
        }
    }

    fn check_unused(&self, artifact: &ArtifactId) -> Result<(), LongWorkRefusal> {
        let users = self.users_of(artifact);
        if !users.is_empty() {
            let message = format!("artifact {artifact} is used by {}", users.join(", "));
            return Err(LongWorkRefusal::Conflict(message));
        }
        let fetched = |software: &Software| software.artifact().is_some_and(|a| a.id == *artifact);
        if self.pulls.keys().any(fetched) {
            let message = format!("artifact {artifact} is being fetched");
            return Err(LongWorkRefusal::Conflict(message));
        }
        match self.knows_all() {
            true => Ok(()),
            false => Err(LongWorkRefusal::Busy(UNKNOWN.into())),
        }
    }

    /// Whether it is known of all that runs what it is.
    fn knows_all(&self) -> bool {
        let known = |c: &Container| self.orders.definition(&c.replica, &c.definition).is_some();
        self.observed.containers.as_ref().is_some_and(|all| all.values().all(known))
    }

    /// The workloads that use an artifact, or may return to it.
    fn users_of(&self, artifact: &ArtifactId) -> Vec<String> {
        let uses = |workload: &&Workload| {
            // What is there with another content is of no use to it.
            let there = self.observed.artifacts.get(artifact).map(|there| &there.digest);
            let fits = |digest: &Digest| there.is_none_or(|there| there == digest);
            workload
                .software()
                .filter_map(Software::artifact)
                .any(|used| used.id == *artifact && used.digest.as_ref().is_none_or(fits))
        };
        let held = self.orders.held.iter().map(|held| &held.workload);
        let users = self.orders.workloads().chain(held).filter(uses);
        let mut users: Vec<_> = users.map(|workload| workload.name.to_string()).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    fn check_purge(&self, coordinate: &Coordinate) -> Result<(), LongWorkRefusal> {
        if !self.knows_all() {
            return Err(LongWorkRefusal::Busy(UNKNOWN.into()));
        }
        for (replica, workload) in
            self.all_standing().filter(|(at, ..)| at == coordinate).map(|(_, r, w)| (r, w))
        {
            let name = &workload.name;
            let is_ordered = self.orders.current.workloads.contains_key(name);
            let message = if self.is_there(&replica) {
                format!("{replica} is still there")
            } else if is_ordered && self.history.stopped(name).is_none() {
                format!("{name} is ordered; stop it first: coracle stop {name}")
            } else {
                continue;
            };
            return Err(LongWorkRefusal::Conflict(message));
        }
        Ok(())
    }

    /// Whether anything exists of a replica, or is being done to it.
    fn is_there(&self, replica: &ReplicaId) -> bool {
        let containers = self.observed.containers.iter().flat_map(|all| all.values());
        let mut replicas = containers.map(|container| &container.replica);
        self.busy.contains_key(replica) || replicas.any(|there| there == replica)
    }

    /// Where services stand: as there are still replicas of, and as they are ordered.
    pub(super) fn standing(&self) -> BTreeMap<Coordinate, (ReplicaId, &Workload)> {
        self.all_standing().map(|(at, replica, workload)| (at, (replica, workload))).collect()
    }

    fn all_standing(&self) -> impl Iterator<Item = (Coordinate, ReplicaId, &Workload)> {
        let mut standing = Vec::new();
        let add = |workload: &'_ Workload, index: u32| -> Option<(Coordinate, ReplicaId)> {
            let native = workload.pod.native.as_ref()?;
            let replica = ReplicaId { workload: workload.name.clone(), index };
            Some((native.coordinate.of_replica(index), replica))
        };
        for container in self.observed.containers.iter().flat_map(|all| all.values()) {
            let replica = &container.replica;
            if let Some(workload) = self.orders.definition(replica, &container.definition) {
                let at = add(workload, replica.index);
                standing.extend(at.map(|(at, replica)| (at, replica, workload)));
            }
        }
        for workload in self.orders.current.workloads.values() {
            for index in 0..workload.replicas {
                let at = add(workload, index);
                standing.extend(at.map(|(at, replica)| (at, replica, workload)));
            }
        }
        standing.into_iter()
    }

    pub(super) fn on_long_work(&mut self, number: u64, result: Result<String, Failure>) {
        let now = self.clock.now();
        // What was installed or removed by hand is seen by a look.
        self.changed();
        self.look();
        let at = Timestamp::from_unix(now.wall.as_secs());
        let result = result.map_err(|failure| failure.message);
        let Some(long) = self.operations.all.iter_mut().find(|long| long.number == number) else {
            return;
        };
        long.ended = Some((at, result.clone()));
        self.commands.on_long_work(number, &result);
        match result {
            Ok(message) => self.happened(now, "done-by-hand", None, message),
            Err(message) => {
                let message = format!("{}: {message}", long.work.target());
                self.happened(now, "failed-by-hand", None, message);
            }
        }
    }

    pub(super) fn operation(&self, id: &str) -> Option<OperationStatus> {
        let mut all = self.operations.all.iter();
        all.find(|long| self::id(long.number) == id).map(Long::status)
    }

    pub(super) fn all_operations(&self) -> Operations {
        Operations { operations: self.operations.all.iter().rev().map(Long::status).collect() }
    }

    pub(super) fn artifacts(&self) -> Artifacts {
        let artifacts = self.installed.iter().map(|(id, there)| ArtifactStatus {
            artifact: id.to_string(),
            digest: there.digest.to_string(),
            zip_bytes: there.zip_bytes,
            unpacked_bytes: there.unpacked_bytes,
            entries: there.entries,
            installed_at: there.installed_at,
            by_hand: there.by_hand,
            used_by: self.users_of(id),
            directory: there.directory.to_string_lossy().into_owned(),
        });
        Artifacts { artifacts: artifacts.collect() }
    }

    /// Services that are ordered or still there, without a look at their directories.
    pub(super) fn services(&mut self) -> Vec<(Coordinate, ServiceStatus)> {
        let now = self.clock.now();
        let report = self.report(now);
        let status = |(coordinate, (replica, workload)): (Coordinate, (ReplicaId, &Workload))| {
            let name = workload.name.as_str();
            let reported = report.workloads.iter().find(|reported| reported.name == name);
            let reported = reported
                .and_then(|of| of.replicas.iter().find(|reported| reported.index == replica.index));
            let status = ServiceStatus {
                coordinate: coordinate.to_string(),
                workload: Some(name.to_owned()),
                replica: Some(replica.to_string()),
                artifact: workload.software().next().map(ToString::to_string),
                state: reported.map(|replica| replica.state),
                pid: reported.and_then(|replica| replica.pid),
                directory: String::new(),
                bytes: None,
            };
            (coordinate, status)
        };
        self.standing().into_iter().map(status).collect()
    }

    /// The workload that stands at a coordinate as its first replica.
    pub(super) fn workload_at(&self, coordinate: &str) -> Result<String, String> {
        let parsed = Coordinate::parse(coordinate).map_err(|error| error.to_string())?;
        let mut workloads = self.orders.current.workloads.values();
        let stands = |workload: &&Workload| {
            let native = workload.pod.native.as_ref();
            native.is_some_and(|native| native.coordinate == parsed)
        };
        match workloads.find(stands) {
            Some(workload) => Ok(workload.name.to_string()),
            None => match self.standing().get(&parsed) {
                Some((replica, workload)) => Err(format!(
                    "{coordinate} is {replica}, one of several; act on the workload {}",
                    workload.name
                )),
                None => Err(format!("the orders name no service at {coordinate}")),
            },
        }
    }
}
