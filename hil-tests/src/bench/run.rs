//! The phases of a run, one after the other on one gateway: starts, the same order again, idle,
//! restarts, rolling updates, starts of many, probes. In: options. Out: a [`Report`].

use std::time::Duration;

use anyhow::{Context as _, ensure};
use coracle_protocol::desired::Network;
use coracle_testbed::wait_for;

use super::connector::Watch;
use super::figures::{Comparison, Samples, Target};
use super::floor::Floor;
use super::machine::{self, Machine};
use super::moment::Moment;
use super::raw::Raw;
use super::report::Report;
use super::subject::Subject;
use super::usage::{self, Counters, Idle, Memory};
use super::{CONTAINERS, LIMIT, Options, Part, Result, decision, interrupt, many};

/// From the last order until the idle time begins.
const SETTLE: Duration = Duration::from_secs(2);

/// How much longer than the bare calls a restart may take.
const RESTART_TARGET_MS: f64 = 20.0;

/// Measures everything, telling on standard error how far it is. Ctrl-C gives
/// [`Interrupted`](super::Interrupted); what was started is ended either way.
pub fn measure(options: Options) -> Result<Report> {
    interrupt::install()?;
    let report = measure_all(options);
    // What Ctrl-C ended at the same time as us looks like a failure, and is none.
    interrupt::check()?;
    report
}

fn measure_all(options: Options) -> Result<Report> {
    let sizes = machine::sizes(options.dist)?;
    let decision = options.wants(Part::Idle).then(decision::measure).transpose()?;
    let watch = Watch::start()?;
    say("starting containerd, broker, registry and agent");
    let (subject, floor) = Subject::start()?;
    let machine = Machine::read(&subject.gateway.containerd)?;
    let mut run = Run { watch, subject, floor, sleepers: Sleepers(0) };
    run.warm_up()?;

    let mut report = Report::new(options, machine, decision, sizes);
    let options = report.options.clone();
    if options.wants(Part::Starts) {
        let (starts, accepted) = run.starts(options.repetitions)?;
        report.comparisons.push(starts);
        report.accepted = Some(accepted);
    }
    if options.wants(Part::Idle) || options.wants(Part::Restarts) {
        run.few(&mut report)?;
    }
    if options.wants(Part::Rolling) {
        for (name, network) in [
            ("rolling update of 10, no network", Network::None),
            ("rolling update of 10 on a bridge", Network::Pod),
        ] {
            report.comparisons.push(run.rolling(name, network, options.rolling)?);
        }
    }
    if options.wants(Part::Many) {
        for (name, network) in [
            ("50 workloads without a network", Network::None),
            ("50 workloads on a bridge", Network::Pod),
        ] {
            report.many.push(run.many(name, network, options.many)?);
        }
    }
    if options.wants(Part::Probing) {
        report.probing = Some(run.probing(options.probing)?);
    }
    Ok(report)
}

/// What agent and containerd do when nothing is to be done.
#[derive(Clone, Debug)]
pub(super) struct IdleTime {
    pub(super) agent: Idle,
    /// The daemon, without shims.
    pub(super) containerd: Idle,
    /// Private memory of each process that writes what a container says, in bytes.
    pub(super) logs: Samples,
    /// Bytes sent to and received from the broker; `None` if that could not be asked.
    pub(super) link: Option<(u64, u64)>,
}

/// A run under way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) watch: Watch,
    pub(super) subject: Subject,
    floor: Floor,
    pub(super) sleepers: Sleepers,
}

/// Commands for containers: a sleep for some eleven days, each with arguments of its own.
#[derive(Debug)]
pub(super) struct Sleepers(u32);

impl Sleepers {
    fn next(&mut self) -> Vec<String> {
        self.0 += 1;
        vec!["/bin/sleep".to_owned(), (1_000_000 + self.0).to_string()]
    }

    /// So many of them, none of which was given before.
    pub(super) fn take(&mut self, count: usize) -> Vec<Vec<String>> {
        (0..count).map(|_| self.next()).collect()
    }
}

impl Run {
    /// One container on each side, so that the image is pulled, unpacked and in memory.
    fn warm_up(&mut self) -> Result<()> {
        self.subject.start_all(&self.watch, &self.sleepers.take(1))?;
        self.subject.clear()?;
        self.floor_start(1).map(drop)
    }

    /// With 10 containers that run.
    fn few(&mut self, report: &mut Report) -> Result<()> {
        let options = report.options.clone();
        let raw = match options.wants(Part::Restarts) {
            true => Some(self.model(Network::None)?),
            false => None,
        };
        let commands = self.sleepers.take(CONTAINERS);
        self.subject.start_all(&self.watch, &commands)?;
        if options.wants(Part::Idle) {
            report.comparisons.push(self.same_order(options.repetitions, &commands)?);
            report.idle = Some(self.idle(options.idle)?);
        }
        if let Some(mut raw) = raw {
            report.comparisons.extend(self.restarts(&mut raw, &commands)?);
        }
        self.subject.clear()
    }

    /// 10 containers; also how long `coracle apply` took until it had its answer.
    fn starts(&mut self, repetitions: u32) -> Result<(Comparison, Samples)> {
        let name = "10 containers, apply to all running";
        let mut starts = Comparison::new(name, "ctr run -d, 10 times", Some(Target::Times(1.3)));
        let mut accepted = Samples::default();
        for repetition in 0..repetitions {
            say(&format!("10 containers, {} of {repetitions}", repetition + 1));
            if repetition % 2 == 0 {
                starts.floor.push(self.floor_start(CONTAINERS)?);
            }
            self.watch.forget();
            let commands = self.sleepers.take(CONTAINERS);
            let started = self.subject.start_all(&self.watch, &commands)?;
            starts.agent.push(started.ran.ms_since(started.began));
            accepted.push(started.accepted.ms_since(started.began));
            self.subject.clear()?;
            if repetition % 2 == 1 {
                starts.floor.push(self.floor_start(CONTAINERS)?);
            }
        }
        Ok((starts, accepted))
    }

    /// Containers by `ctr`, one after the other, removed again; milliseconds from the first
    /// `ctr` to the last process.
    fn floor_start(&mut self, count: usize) -> Result<f64> {
        self.watch.forget();
        let containerd = &self.subject.gateway.containerd;
        let mut span: Option<(Moment, Moment)> = None;
        for argv in self.sleepers.take(count) {
            let (began, ran) = self.floor.run(containerd, &self.watch, &argv)?;
            span = Some((span.map_or(began, |span| span.0), ran));
        }
        self.floor.clear(containerd)?;
        let (began, ran) = span.context("no container was asked for")?;
        Ok(ran.ms_since(began))
    }

    /// The same workloads under the next generation: time of `coracle apply`, nothing restarted.
    fn same_order(&mut self, repetitions: u32, commands: &[Vec<String>]) -> Result<Comparison> {
        say("the same order again");
        let mut applies =
            Comparison::new("apply of an order that changes nothing", "ctr version", None);
        let before = self.subject.settled()?;
        for _ in 0..repetitions {
            let signed = self.subject.sign(commands)?;
            self.watch.forget();
            let floor = self.floor.round_trip(&self.subject.gateway.containerd, &self.watch)?;
            let applied = self.subject.apply(&self.watch, &signed)?;
            applies.floor.push(floor);
            applies.agent.push(applied.ended.ms_since(applied.began));
            ensure!(
                self.subject.settled()? == before,
                "an order without changes restarted something"
            );
        }
        Ok(applies)
    }

    /// Nothing, for a while.
    fn idle(&mut self, time: Duration) -> Result<IdleTime> {
        say(&format!("idle for {} s", time.as_secs()));
        let agent = self.subject.agent_pid()?;
        let containerd = self.subject.gateway.containerd.pid().context("containerd has ended")?;
        pass(SETTLE)?;
        let link = self.subject.link_bytes();
        let earlier = [Counters::read(agent)?, Counters::read(containerd)?];
        pass(time)?;
        let later = [Counters::read(agent)?, Counters::read(containerd)?];
        let link = link.zip(self.subject.link_bytes());
        let link = link.map(|((sent, received), (sent_now, received_now))| {
            (sent_now.saturating_sub(sent), received_now.saturating_sub(received))
        });
        let [agent_counters, containerd_counters] = [0, 1].map(|n| later[n].since(earlier[n]));
        Ok(IdleTime {
            agent: Idle { memory: Memory::read(agent)?, counters: agent_counters },
            containerd: Idle { memory: Memory::read(containerd)?, counters: containerd_counters },
            logs: self.log_writers()?,
            link,
        })
    }

    /// Private memory of the `coracle-log` processes that shims of this containerd started.
    fn log_writers(&self) -> Result<Samples> {
        let shims = self.subject.gateway.containerd.shims();
        let writers = usage::children(&shims, "coracle-log")?;
        let private = |pid: i32| Ok((Memory::read(pid)?.private * 1024) as f64);
        writers.into_iter().map(private).collect()
    }

    /// The process of each workload killed once, so that each restart is a first one; beside
    /// `ctr`, and beside the bare calls.
    fn restarts(&mut self, raw: &mut Raw, commands: &[Vec<String>]) -> Result<[Comparison; 2]> {
        let name = "process killed to replacement running";
        let mut by_ctr = Comparison::new(name, "ctr run -d, once", Some(Target::Times(1.5)));
        let name = "  the same, beside bare calls";
        let target = Some(Target::Plus(RESTART_TARGET_MS));
        let mut by_calls = Comparison::new(name, "containerd's gRPC calls, once", target);
        say("one process of each workload killed");
        let pids = self.subject.settled()?;
        for (number, (old, argv)) in pids.into_iter().zip(commands).enumerate() {
            if number % 2 == 0 {
                by_ctr.floor.push(self.floor_start(1)?);
                by_calls.floor.push(self.raw_start(raw, 1, 1)?);
            }
            let took = self.subject.kill(&self.watch, old, argv)?;
            by_ctr.agent.push(took);
            by_calls.agent.push(took);
            self.subject.settled()?;
            // What was there before goes in its own time.
            pass(many::SETTLE)?;
            if number % 2 == 1 {
                by_calls.floor.push(self.raw_start(raw, 1, 1)?);
                by_ctr.floor.push(self.floor_start(1)?);
            }
        }
        Ok([by_ctr, by_calls])
    }
}

/// Lets time pass, or ends early with an error if a signal comes.
pub(super) fn pass(time: Duration) -> Result<()> {
    let end = Moment::now()?.after(time);
    wait_for("the end of the idle time", time + LIMIT, || {
        let over = interrupt::check().and_then(|()| Ok(Moment::now()? >= end));
        match over {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    })?
}

/// Tells how far it is.
pub(super) fn say(what: &str) {
    eprintln!("bench: {what}");
}
