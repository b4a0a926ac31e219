//! Many workloads at once, on both sides. In: a network. Out: a [`Many`].

use std::time::Duration;

use coracle_protocol::desired;
use serde_json::{Value, json};

use super::figures::{Comparison, Samples, Target};
use super::raw::Raw;
use super::run::{Run, pass, say};
use super::usage::Counters;
use super::{MANY, Result};

/// What the floor is tried with; the best of them is compared with.
const AT_ONCE: [usize; 4] = [1, 2, 4, 8];

/// How often each is tried, unless fewer repetitions are asked for.
const TRIES: u32 = 2;

/// The kernel takes apart what was removed (network namespaces, cgroups) in its own time.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// Ratio that is good.
const TARGET: f64 = 1.15;

/// Many workloads, from order to all running.
#[derive(Debug)]
pub(super) struct Many {
    pub(super) starts: Comparison,
    /// From the exec of `coracle apply` to its end, of the same repetitions.
    pub(super) accepted: Samples,
    /// The floor, by how many containers it had under way at once.
    pub(super) tried: Vec<(usize, Samples)>,
    /// What it had under way at once in the comparison: the best of these.
    pub(super) at_once: usize,
    /// Processor time of the agent for an order that changes nothing, in milliseconds.
    pub(super) same_order: Samples,
}

impl Many {
    /// All samples and what was made of them.
    pub(super) fn to_json(&self) -> Value {
        let tried = self
            .tried
            .iter()
            .map(|(at_once, samples)| json!({ "at_once": at_once, "ms": samples.to_json() }));
        json!({
            "workloads": MANY,
            "comparison": self.starts.to_json(),
            "apply_answered_ms": self.accepted.to_json(),
            "floor_tried": tried.collect::<Vec<_>>(),
            "floor_at_once": self.at_once,
            "agent_cpu_of_same_order_ms": self.same_order.to_json(),
        })
    }
}

impl Run {
    /// Starts of many workloads, the sides taking turns.
    pub(super) fn many(
        &mut self,
        name: &'static str,
        network: desired::Network,
        repetitions: u32,
    ) -> Result<Many> {
        self.subject.network = network;
        let mut raw = self.model(network)?;
        let tried = self.tries(name, &mut raw, TRIES.min(repetitions))?;
        let best =
            tried.iter().filter_map(|(at_once, samples)| Some((samples.median()?, *at_once)));
        let best = best.min_by(|a, b| a.0.total_cmp(&b.0));
        let at_once = best.map_or(AT_ONCE[0], |(_, at_once)| at_once);

        let mut starts =
            Comparison::new(name, "containerd's gRPC calls", Some(Target::Times(TARGET)));
        let (mut accepted, mut same_order) = (Samples::default(), Samples::default());
        for repetition in 0..repetitions {
            say(&format!("{name}, {} of {repetitions}", repetition + 1));
            if repetition % 2 == 0 {
                starts.floor.push(self.raw_start(&mut raw, MANY, at_once)?);
            }
            self.watch.forget();
            let commands = self.sleepers.take(MANY);
            let started = self.subject.start_all(&self.watch, &commands)?;
            starts.agent.push(started.ran.ms_since(started.began));
            accepted.push(started.accepted.ms_since(started.began));
            same_order.push(self.cpu_of_same_order(&commands)?);
            self.subject.clear()?;
            pass(SETTLE)?;
            if repetition % 2 == 1 {
                starts.floor.push(self.raw_start(&mut raw, MANY, at_once)?);
            }
        }
        self.subject.network = desired::Network::None;
        Ok(Many { starts, accepted, tried, at_once, same_order })
    }

    /// Has the agent start one container, to be done again by the floor; both are warm then.
    pub(super) fn model(&mut self, network: desired::Network) -> Result<Raw> {
        let command = self.sleepers.take(1);
        self.subject.start_all(&self.watch, &command)?;
        let network = match network {
            desired::Network::Pod => Some(self.subject.plugins.clone()),
            _ => None,
        };
        let mut raw = Raw::like(&self.subject.gateway, "w0.0.main", network)?;
        self.raw_start(&mut raw, 1, 1)?;
        self.subject.clear()?;
        Ok(raw)
    }

    fn tries(
        &mut self,
        name: &str,
        raw: &mut Raw,
        repetitions: u32,
    ) -> Result<Vec<(usize, Samples)>> {
        let mut tried: Vec<_> = AT_ONCE.map(|at_once| (at_once, Samples::default())).into();
        for _ in 0..repetitions {
            for (at_once, samples) in &mut tried {
                say(&format!("{name}, the floor with {at_once} at once"));
                samples.push(self.raw_start(raw, MANY, *at_once)?);
            }
        }
        Ok(tried)
    }

    pub(super) fn raw_start(&mut self, raw: &mut Raw, count: usize, at_once: usize) -> Result<f64> {
        let commands = self.sleepers.take(count);
        let took = raw.run(&self.subject.gateway, &self.watch, &commands, at_once)?;
        pass(SETTLE)?;
        Ok(took)
    }

    /// The same workloads under the next generation. Milliseconds of processor time.
    fn cpu_of_same_order(&mut self, commands: &[Vec<String>]) -> Result<f64> {
        let pid = self.subject.agent_pid()?;
        let signed = self.subject.sign(commands)?;
        pass(SETTLE)?;
        let earlier = Counters::read(pid)?;
        self.subject.apply(&self.watch, &signed)?;
        // Its report follows.
        pass(SETTLE)?;
        let spent = Counters::read(pid)?.since(earlier);
        self.subject.settled()?;
        Ok(spent.cpu_nanos as f64 / 1e6)
    }
}
