//! How replicas are replaced and stopped, and what they wait for.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_protocol::Code;
use coracle_protocol::desired as wire;

use super::probes::Asked;
use super::{Found, escaped, shortened};
use crate::desired::{
    Dependency, DependencyCondition, Hook, Network, RestartPolicy, Stop, Update, UpdateStrategy,
    Workload,
};
use crate::name::{ContainerName, WorkloadName};

/// Signals by which a container may be asked to end: all that end a process by default.
const STOP_SIGNALS: [&str; 9] = [
    "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGABRT",
    "SIGWINCH",
];

/// How long a replica goes on that no shared port leads to any more, if the order does not say.
const DRAIN: Duration = Duration::from_secs(2);

/// Most workloads that one waits for.
const MAX_DEPENDENCIES: usize = 64;

/// What can be told of a stop without the containers.
pub(super) fn check_stop(stop: &wire::Stop, place: &str, found: &mut Found<'_>) {
    if let Some(signal) = stop.signal.as_ref().filter(|s| !STOP_SIGNALS.contains(&s.as_str())) {
        let message =
            format!("is {:?}; must be one of {}", shortened(signal), STOP_SIGNALS.join(", "));
        found.refuse(format!("{place}/stop/signal"), Code::INVALID_VALUE, message);
    }
}

/// How the workload is stopped. `place` is that of the workload or the type that says so.
pub(super) fn stop(
    stop: &wire::Stop,
    containers: &[wire::Container],
    shares_ports: bool,
    place: &str,
    found: &mut Found<'_>,
) -> Stop {
    let drain = match stop.drain_seconds {
        Some(seconds) => Duration::from_secs(seconds.into()),
        None if shares_ports => DRAIN,
        None => Duration::ZERO,
    };
    let place = format!("{place}/stop/pre_stop");
    let hook = stop.pre_stop.as_ref();
    Stop {
        signal: stop.signal.clone(),
        grace: Duration::from_secs(stop.grace_seconds.into()),
        drain,
        pre_stop: hook.and_then(|hook| check_hook(hook, containers, &place, found)),
    }
}

fn check_hook(
    hook: &wire::Hook,
    containers: &[wire::Container],
    place: &str,
    found: &mut Found<'_>,
) -> Option<Hook> {
    let asked = Asked { exec: &hook.exec, http: &hook.http, tcp: &None };
    let check = asked.check(place, "exec and http", found);
    let name = match &hook.container {
        None => containers.first().map(|container| container.name.as_str())?,
        Some(name) if containers.iter().any(|container| container.name == *name) => name,
        Some(name) => {
            let message = format!("the workload has no container {:?}", shortened(name));
            found.refuse(format!("{place}/container"), Code::UNKNOWN_CONTAINER, message);
            return None;
        }
    };
    Some(Hook { container: ContainerName::parse(name).ok()?, check: check? })
}

/// How the workload's replicas are replaced. `place` is that of the workload or the type that says
/// so.
pub(super) fn update(
    update: &wire::Update,
    network: Network,
    has_ports: bool,
    place: &str,
    found: &mut Found<'_>,
) -> Update {
    let rolling = update.strategy == UpdateStrategy::Rolling;
    let place = format!("{place}/update");
    if rolling && update.surge == 0 && update.max_unavailable == 0 {
        let message = "with 0, and a surge of 0, no replica could ever be replaced";
        found.refuse(format!("{place}/max_unavailable"), Code::INVALID_VALUE, message);
    }
    for (field, said) in
        [("surge", update.surge > 0), ("max_unavailable", update.max_unavailable != 1)]
    {
        if !rolling && said {
            let message = "is for the strategy rolling";
            found.refuse(format!("{place}/{field}"), Code::CONFLICTING_FIELD, message);
        }
    }
    if network == Network::Host && has_ports && (!rolling || update.surge > 0) {
        let message = "on the gateway's own network two replicas cannot listen on the same port";
        found.refuse(&*place, Code::PORT_CLASH, message);
    }
    Update {
        strategy: update.strategy,
        max_unavailable: if rolling { update.max_unavailable } else { 0 },
        surge: update.surge,
        healthy_within: Duration::from_secs(update.healthy_within_seconds.into()),
        min_ready: Duration::from_secs(update.min_ready_seconds.into()),
    }
}

/// What the workload waits for, as far as it can be told without the others.
pub(super) fn dependencies(
    depends_on: &BTreeMap<String, wire::Dependency>,
    place: &str,
    found: &mut Found<'_>,
) -> Vec<Dependency> {
    if depends_on.len() > MAX_DEPENDENCIES {
        let message = format!("more than {MAX_DEPENDENCIES} entries");
        found.refuse(format!("{place}/depends_on"), Code::TOO_MANY, message);
    }
    let one = |(name, wire): (&String, &wire::Dependency)| {
        let workload = WorkloadName::parse(name).ok()?;
        let wire::Dependency { condition, stop_with } = *wire;
        Some(Dependency { workload, condition, stop_with })
    };
    depends_on.iter().filter_map(one).collect()
}

/// Dependencies on what is not there, on what never ends, and in circles. `named` are all names of
/// workloads that stand in the order; those that were refused count as being there.
pub(super) fn check_together(
    judged: &[(String, Workload)],
    depends_on: &[(String, Vec<String>)],
    named: &[&str],
    found: &mut Found<'_>,
) {
    for (place, names) in depends_on {
        for name in names.iter().filter(|name| !named.contains(&name.as_str())) {
            let message = format!("the order has no workload {:?}", shortened(name));
            let place = format!("{place}/depends_on/{}", escaped(name));
            found.refuse(place, Code::UNKNOWN_WORKLOAD, message);
        }
    }
    let by_name: BTreeMap<_, _> =
        judged.iter().map(|(place, workload)| (&workload.name, (place, workload))).collect();
    for (place, workload) in judged {
        for dependency in &workload.depends_on {
            let other = by_name.get(&dependency.workload);
            let never_ends = other.is_some_and(|(_, other)| other.restart == RestartPolicy::Always);
            if dependency.condition == DependencyCondition::Completed && never_ends {
                let message = format!(
                    "{} is restarted always, so it never completes; a job says restart: never or \
                     on-failure",
                    dependency.workload
                );
                let place = format!("{place}/depends_on/{}/condition", dependency.workload);
                found.refuse(place, Code::CONFLICTING_FIELD, message);
            }
        }
    }
    for circle in circles(judged) {
        let (place, _) = by_name[circle[0]];
        let names: Vec<_> = circle.iter().chain(&circle[..1]).map(|name| name.as_str()).collect();
        let message = format!("waits for itself: {}", names.join(" -> "));
        found.refuse(format!("{place}/depends_on"), Code::DEPENDENCY_CYCLE, message);
    }
}

/// Each circle once, from its first name on.
fn circles(judged: &[(String, Workload)]) -> Vec<Vec<&WorkloadName>> {
    let edges: BTreeMap<&WorkloadName, Vec<&WorkloadName>> = judged
        .iter()
        .map(|(_, workload)| {
            let others = workload.depends_on.iter().map(|dependency| &dependency.workload);
            (&workload.name, others.collect())
        })
        .collect();
    let mut found = Vec::new();
    let mut done = std::collections::BTreeSet::new();
    for start in edges.keys() {
        // A walk in depth with the way to where it is; bounded, as each name is entered once.
        let mut way = vec![(*start, 0)];
        if !done.insert(*start) {
            continue;
        }
        while let Some((name, next)) = way.last_mut() {
            let Some(other) = edges.get(name).and_then(|others| others.get(*next)) else {
                way.pop();
                continue;
            };
            *next += 1;
            if let Some(at) = way.iter().position(|(name, _)| name == other) {
                let mut circle: Vec<_> = way[at..].iter().map(|(name, _)| *name).collect();
                let first = circle.iter().enumerate().min_by_key(|(_, name)| **name);
                let first = first.map_or(0, |(at, _)| at);
                circle.rotate_left(first);
                found.push(circle);
            } else if edges.contains_key(other) && done.insert(other) {
                way.push((other, 0));
            }
        }
    }
    found
}
