//! A rolling update, against the same stops and starts made directly. In: a network. Out: a
//! [`Comparison`].
//!
//! Every process of it ends at once when it is told to, so that nobody waits for one; without probes
//! a replica is ready when it runs, and the next one's turn comes at once.

use coracle_protocol::desired;

use super::figures::{Comparison, Target};
use super::many::SETTLE;
use super::raw::Raw;
use super::run::{Run, pass, say};
use super::{CONTAINERS, LIMIT, Result};

/// Ratio that is good.
const TARGET: f64 = 1.1;

/// A process that ends at SIGTERM, which the first of a container does not do by itself, and that
/// differs from all others by its arguments.
fn obedient(number: usize) -> Vec<String> {
    let script = format!("trap 'exit 0' TERM; sleep {} & wait", 2_000_000 + number);
    ["/bin/sh", "-c", &script].map(str::to_owned).into()
}

impl Run {
    /// Updates of one workload with 10 replicas, the sides taking turns.
    pub(super) fn rolling(
        &mut self,
        name: &'static str,
        network: desired::Network,
        repetitions: u32,
    ) -> Result<Comparison> {
        self.subject.network = network;
        let mut raw = self.model(network)?;
        let mut updates = Comparison::new(name, "the same gRPC calls", Some(Target::Times(TARGET)));
        self.order_replicas(&obedient(0))?;
        for repetition in 1..=repetitions as usize {
            say(&format!("{name}, {repetition} of {repetitions}"));
            if repetition % 2 == 0 {
                updates.floor.push(self.raw_update(&mut raw, repetition)?);
            }
            updates.agent.push(self.order_replicas(&obedient(repetition))?);
            pass(SETTLE)?;
            if repetition % 2 == 1 {
                updates.floor.push(self.raw_update(&mut raw, repetition)?);
            }
        }
        self.subject.clear()?;
        self.subject.network = desired::Network::None;
        Ok(updates)
    }

    /// Orders 10 replicas of this and waits for them. Milliseconds from the exec of `coracle apply`
    /// to the last new process.
    fn order_replicas(&mut self, argv: &[String]) -> Result<f64> {
        let signed = self.subject.sign_replicas(argv, CONTAINERS)?;
        self.watch.forget();
        let applied = self.subject.apply(&self.watch, &signed)?;
        let what = "the processes of all replicas";
        let ran = self.watch.wait(what, LIMIT, |seen| seen.all_started(argv, CONTAINERS));
        let ran = self.subject.explained(ran)?;
        self.subject.converged()?;
        Ok(ran.ms_since(applied.began))
    }

    fn raw_update(&mut self, raw: &mut Raw, repetition: usize) -> Result<f64> {
        // Those of the agent's have other numbers.
        let [old, new] = [1000, 2000].map(|first| obedient(first + repetition));
        let (gateway, watch) = (&self.subject.gateway, &self.watch);
        let took = raw.replace(gateway, watch, [&old, &new], CONTAINERS)?;
        pass(SETTLE)?;
        Ok(took)
    }
}
