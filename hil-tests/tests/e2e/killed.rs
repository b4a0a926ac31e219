//! An agent that is killed in the middle of an update, at each of its steps, and a power cut there:
//! what goes on is what is there, nothing that is well is made again, and never do fewer serve than
//! was promised.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use coracle_hil::callers::{Callers, Load};
use coracle_hil::service::{self, PORT};
use coracle_hil::{Gateway, Status};
use coracle_protocol::desired::Workload;
use coracle_protocol::reported::{ReplicaReport, ReplicaState};
use coracle_testbed::process::run;
use coracle_testbed::{Place, wait_for};

use super::examples::Stage;
use super::{LONG, SOON, converged, order};

const REPLICAS: u32 = 3;

/// So many of them may be missing in an update.
const MISSING: usize = 1;

/// How far an update is, as the status tells it: new ones that are ready, and the step that the next
/// one is at.
type Progress = (usize, u8);

/// What is done to each replica, in this order.
const STEPS: u8 = 4;

fn progress(status: &Status, generation: u64) -> Option<Progress> {
    let workload = status.workload("api")?;
    if status.reported.generation_applied != generation {
        return None;
    }
    let is_new = |replica: &&ReplicaReport| replica.generation == Some(generation);
    let ready = workload.replicas.iter().filter(is_new).filter(|replica| replica.ready).count();
    let step = |replica: &ReplicaReport| match replica.state {
        ReplicaState::Stopping => 1,
        ReplicaState::Pending => 2,
        ReplicaState::Starting => 3,
        ReplicaState::Running if is_new(&replica) && !replica.ready => 4,
        _ => 0,
    };
    Some((ready, workload.replicas.iter().map(step).max().unwrap_or(0)))
}

/// Watches in the packet filter how many replicas the shared port leads to.
#[derive(Debug)]
struct Watcher {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Watcher {
    fn begin(place: &Place) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (place, until) = (place.clone(), Arc::clone(&ends));
        let thread = Some(std::thread::spawn(move || fewest_targets(&place, &until)));
        Self { ends, thread }
    }

    /// The fewest at any look.
    fn end(mut self) -> usize {
        self.stop().unwrap()
    }

    fn stop(&mut self) -> Option<usize> {
        self.ends.store(true, Ordering::SeqCst);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop();
    }
}

fn fewest_targets(place: &Place, ends: &AtomicBool) -> usize {
    let mut fewest = usize::MAX;
    while !ends.load(Ordering::SeqCst) {
        let mut list = place.command("nft");
        list.args(["list", "ruleset"]);
        if let Ok(rules) = run(&mut list, SOON) {
            let rules = String::from_utf8_lossy(&rules).into_owned();
            let leading = rules.lines().filter(|line| line.contains("dnat to"));
            let targets: BTreeSet<&str> = leading
                .filter_map(|line| line.split("comment \"").nth(1)?.split('"').next())
                .filter(|replica| replica.starts_with("api."))
                .collect();
            fewest = fewest.min(targets.len());
        }
        // It is looked at again and again, not waited for.
        drop(wait_for("", Duration::from_millis(20), || ends.load(Ordering::SeqCst).then_some(())));
    }
    fewest
}

fn version(gateway: &Gateway, version: u64) -> Workload {
    let version = if version.is_multiple_of(2) { "1" } else { "2" };
    let mut api = service::replicated(gateway, "api", version, REPLICAS);
    api.containers[0].env.insert("START_MILLIS".into(), "200".into());
    api
}

/// Replicas of that generation that are ready, by process.
fn well(status: &Status, generation: u64) -> BTreeSet<u32> {
    let replicas = status.workload("api").map(|api| api.replicas.iter()).into_iter().flatten();
    let well = replicas.filter(|r| r.generation == Some(generation) && r.ready);
    well.filter_map(|replica| replica.pid).collect()
}

/// Updates all replicas, and at each step kills the agent and starts another. Gives how many times.
fn update_with_kills(gateway: &mut Gateway, generation: u64) -> usize {
    let next = version(gateway, generation);
    order(gateway, generation, vec![next]);
    let steps = (0..REPLICAS as usize).flat_map(|ready| (1..=STEPS).map(move |step| (ready, step)));
    let mut there: BTreeSet<u32> = BTreeSet::new();
    let mut kills = 0;
    for moment in steps {
        let reached =
            |status: &Status| (progress(status, generation)? >= moment).then(|| status.clone());
        let status = gateway.wait(&format!("{moment:?}"), LONG, reached).unwrap();
        // A later one was reached at once.
        if progress(&status, generation).is_some_and(|(ready, _)| ready > moment.0) {
            continue;
        }
        there.extend(well(&status, generation));
        gateway.kill_agent().unwrap();
        gateway.start_agent().unwrap();
        kills += 1;
    }
    let after = well(&converged(gateway, generation), generation);
    assert_eq!(after.len(), REPLICAS as usize);
    assert!(there.is_subset(&after), "what was well was made again: {there:?} {after:?}");
    kills
}

#[test]
fn an_agent_killed_at_every_step_of_an_update_goes_on_from_what_is_there() {
    let mut stage = Stage::new(&[]);
    service::push(&stage.gateway, &[("1", &[]), ("2", &[])]).unwrap();
    let first = version(&stage.gateway, 2);
    order(&stage.gateway, 2, vec![first]);
    converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 20, short: 1 });
    let watcher = Watcher::begin(stage.gateway.place());
    let kills: usize =
        (3..=4).map(|generation| update_with_kills(&mut stage.gateway, generation)).sum();
    let fewest = watcher.end();
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    assert!(fewest >= REPLICAS as usize - MISSING, "the port led to {fewest}");
    // The short steps may be over before they are seen.
    assert!(kills >= 2 * 2 * REPLICAS as usize, "{kills}");
    stage.clear();
}

#[test]
fn a_power_cut_in_the_middle_of_an_update_goes_on_from_what_is_there() {
    let mut stage = Stage::new(&[]);
    service::push(&stage.gateway, &[("1", &[]), ("2", &[])]).unwrap();
    let first = version(&stage.gateway, 2);
    order(&stage.gateway, 2, vec![first]);
    converged(&mut stage.gateway, 2);
    for (generation, moment) in (3..).zip([(0, 3), (1, 4)]) {
        let next = version(&stage.gateway, generation);
        order(&stage.gateway, generation, vec![next]);
        stage
            .gateway
            .wait(&format!("{moment:?}"), LONG, |status| {
                (progress(status, generation)? >= moment).then_some(())
            })
            .unwrap();
        stage.gateway.power_off().unwrap();
        stage.gateway.power_on().unwrap();
        let status = converged(&mut stage.gateway, generation);
        assert_eq!(well(&status, generation).len(), REPLICAS as usize, "{status:#?}");
        stage.page(
            &format!("http://127.0.0.1:{PORT}/"),
            if generation % 2 == 0 { "1 " } else { "2 " },
        );
    }
    stage.clear();
}
