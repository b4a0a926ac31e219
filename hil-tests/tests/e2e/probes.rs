//! Containers that are asked whether they do their work, and what becomes of those that do not.

use std::time::Duration;

use coracle_hil::callers::{Callers, Load};
use coracle_hil::service::{self, PORT, http_probe};
use coracle_hil::{Gateway, Status};
use coracle_protocol::desired::{
    ExecAction, Network, Probe, Probes, RestartPolicy, TcpAction, Workload,
};
use coracle_protocol::reported::{Phase, ReplicaReport};
use coracle_testbed::{http, wait_for};

use super::examples::{Stage, seen_by};
use super::{LONG, converged, order};

fn stage() -> Stage {
    let stage = Stage::new(&[]);
    service::push(&stage.gateway, &[("1", &[])]).unwrap();
    stage
}

/// A workload of the service that no port of the gateway leads to.
fn inner(gateway: &Gateway, name: &str, probes: Probes) -> Workload {
    let mut workload = service::workload(gateway, name, "1");
    workload.ports.clear();
    workload.containers[0].ports[0].optional = true;
    workload.containers[0].probes = probes;
    workload
}

fn exec_probe(command: &[&str]) -> Probe {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    Probe { http: None, exec: Some(ExecAction { command }), ..http_probe("") }
}

fn tcp_probe() -> Probe {
    Probe { http: None, tcp: Some(TcpAction { port: PORT }), ..http_probe("") }
}

/// Tells a replica of the service something, past all shared ports.
fn tell(stage: &Stage, replica: &ReplicaReport, path: &str) {
    let url = format!("http://{}:{PORT}{path}", replica.address.unwrap());
    stage.gateway.place().in_network(|| http::get(&url)).unwrap().unwrap();
}

fn restarts(status: &Status, name: &str) -> u32 {
    status.replica(name).unwrap().restarts
}

#[test]
fn a_liveness_probe_that_fails_restarts_its_container_and_the_reason_is_told() {
    let mut stage = stage();
    let live = |probe| Probes { liveness: Some(probe), ..Probes::default() };
    let by_http = inner(&stage.gateway, "by-http", live(http_probe("/live")));
    let file = ["test", "!", "-e", "/tmp/broken"];
    let by_exec = inner(&stage.gateway, "by-exec", live(exec_probe(&file)));
    let by_tcp = inner(&stage.gateway, "by-tcp", live(tcp_probe()));
    let spared = inner(&stage.gateway, "spared", live(http_probe("/live")));
    order(&stage.gateway, 2, vec![by_http, by_exec, by_tcp, spared]);
    let before = converged(&mut stage.gateway, 2);
    let old = |name: &str| before.pid(name).unwrap();

    tell(&stage, before.replica("by-http").unwrap(), "/live/off");
    std::fs::write(seen_by(old("by-exec"), "/tmp/broken"), "").unwrap();
    // The kernel takes connections for a program that hangs: it must be gone for that to be noticed.
    tell(&stage, before.replica("by-tcp").unwrap(), "/deaf");
    let unhealthy = |name: &str, why: &str| {
        let event = || {
            let events = stage.gateway.events().unwrap();
            events.into_iter().find(|event| {
                event.kind == "unhealthy" && event.replica.as_deref() == Some(&format!("{name}.0"))
            })
        };
        let event = wait_for(&format!("{name} to be unhealthy"), LONG, event).unwrap();
        assert!(event.message.contains("liveness") && event.message.contains(why), "{event:?}");
    };
    unhealthy("by-http", "503");
    unhealthy("by-exec", "");
    unhealthy("by-tcp", "");
    let after = stage
        .gateway
        .wait("all to run anew", LONG, |status| {
            let anew = |name: &&str| {
                status.pid(name).is_some_and(|pid| pid != old(name))
                    && status.replica(name).is_some_and(|replica| replica.ready)
            };
            let all = ["by-http", "by-exec", "by-tcp"].iter().all(anew);
            (all && status.reported.phase == Phase::Converged).then(|| status.clone())
        })
        .unwrap();
    assert_eq!(["by-http", "by-exec", "by-tcp"].map(|name| restarts(&after, name)), [1, 1, 1]);
    assert_eq!(after.pid("spared"), before.pid("spared"));
    stage.clear();
}

#[test]
fn a_replica_that_is_not_ready_gets_nothing_and_is_back_when_it_is() {
    let mut stage = stage();
    let mut api = service::replicated(&stage.gateway, "api", "1", 3);
    let probe = exec_probe(&["test", "!", "-e", "/tmp/busy"]);
    api.containers[0].probes.startup = Some(tcp_probe());
    api.containers[0].probes.readiness = Some(Probe { success_threshold: 2, ..probe });
    order(&stage.gateway, 2, vec![api]);
    let before = converged(&mut stage.gateway, 2);
    let replica = before.workload("api").unwrap().replicas[1].clone();
    let pid = i32::try_from(replica.pid.unwrap()).unwrap();
    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 0, short: 1 });
    let count = |whose: &str| callers.so_far().of(whose);
    let grows = |whose: &str, by: u64| {
        let before = count(whose);
        wait_for(whose, LONG, || (count(whose) >= before + by).then_some(())).unwrap();
    };
    grows("1 api-1", 10);

    std::fs::write(seen_by(pid, "/tmp/busy"), "").unwrap();
    stage
        .gateway
        .wait("it to be taken out", LONG, |status| {
            let replica = &status.workload("api")?.replicas[1];
            let reason = replica.reason.as_ref()?.contains("readiness");
            (!replica.ready && reason && replica.pid == Some(pid.unsigned_abs())).then_some(())
        })
        .unwrap();
    // What was under way may still have been answered by it.
    grows("1 api-0", 20);
    let taken_out = count("1 api-1");
    grows("1 api-0", 50);
    assert_eq!(count("1 api-1"), taken_out);

    std::fs::remove_file(seen_by(pid, "/tmp/busy")).unwrap();
    grows("1 api-1", 20);
    let status = converged(&mut stage.gateway, 2);
    assert_eq!(status.workload("api").unwrap().replicas[1].pid, Some(pid.unsigned_abs()));
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    stage.clear();
}

#[test]
fn a_slow_starter_is_spared_until_it_has_started_and_given_up_if_it_never_does() {
    let mut stage = stage();
    let starts = |name: &str, millis: &str, failure_threshold| {
        let startup = Some(Probe { failure_threshold, ..http_probe("/started") });
        let liveness = Some(Probe { failure_threshold: 1, ..http_probe("/live") });
        let probes = Probes { startup, liveness, readiness: None };
        let mut workload = inner(&stage.gateway, name, probes);
        workload.containers[0].env.insert("START_MILLIS".into(), millis.into());
        workload.restart = Some(RestartPolicy::Always);
        workload
    };
    let slow = starts("slow", "4000", 60);
    let never = starts("never", "3600000", 2);
    order(&stage.gateway, 2, vec![slow, never]);
    let status = stage
        .gateway
        .wait("the slow one to start and the other to be given up", LONG, |status| {
            let given_up = restarts(status, "never") >= 2;
            (status.replica("slow")?.ready && given_up).then(|| status.clone())
        })
        .unwrap();
    assert_eq!(restarts(&status, "slow"), 0);
    let events = stage.gateway.events().unwrap();
    let told = |event: &coracle_hil::Happening| {
        event.kind == "unhealthy" && event.message.contains("startup")
    };
    assert!(events.iter().any(told), "{events:#?}");
    stage.clear();
}

#[test]
fn a_restart_of_the_agent_takes_no_work_from_anybody_and_probes_go_on() {
    let mut stage = stage();
    let mut api = service::replicated(&stage.gateway, "api", "1", 2);
    // Seldom, so that a new agent has no answer for a while.
    api.containers[0].probes.readiness = Some(Probe { period_seconds: 5, ..http_probe("/ready") });
    api.containers[0].probes.liveness = Some(http_probe("/live"));
    let mut host = inner(&stage.gateway, "host", Probes::default());
    host.network = Some(Network::Host);
    host.containers[0].ports.clear();
    host.containers[0].env.insert("PORT".into(), "7400".into());
    let mut probe = http_probe("/live");
    probe.http.as_mut().unwrap().port = 7400;
    host.containers[0].probes.liveness = Some(probe);
    order(&stage.gateway, 2, vec![api, host]);
    let before = converged(&mut stage.gateway, 2);
    let callers = Callers::begin(stage.gateway.place(), PORT, Load { long: 10, short: 1 });
    for kill in [true, false, true] {
        match kill {
            true => stage.gateway.kill_agent().unwrap(),
            false => drop(stage.gateway.stop_agent().unwrap()),
        }
        let without = callers.so_far().short() + 50;
        let enough = || (callers.so_far().short() >= without).then_some(());
        wait_for("answers without an agent", LONG, enough).unwrap();
        stage.gateway.start_agent().unwrap();
        let after = converged(&mut stage.gateway, 2);
        let pids = |status: &Status| -> Vec<_> {
            let replicas = status.reported.workloads.iter().flat_map(|w| &w.replicas);
            replicas.map(|replica| replica.pid).collect()
        };
        assert_eq!(pids(&before), pids(&after));
        let with = callers.so_far().short() + 50;
        let enough = || (callers.so_far().short() >= with).then_some(());
        wait_for("answers with an agent", LONG, enough).unwrap();
    }
    let seen = callers.end();
    assert_eq!(seen.broken, Vec::<String>::new());
    assert!(seen.answers.len() == 2 && seen.farewells.is_empty(), "{:?}", seen.answers);

    // They are asked by the new agent, too.
    tell(&stage, &before.workload("api").unwrap().replicas[0], "/live/off");
    let url = "http://127.0.0.1:7400/live/off";
    stage.gateway.place().in_network(|| http::get(url)).unwrap().unwrap();
    stage
        .gateway
        .wait("both to be started again", Duration::from_secs(60), |status| {
            let anew = |name| status.pid(name).is_some_and(|pid| Some(pid) != before.pid(name));
            (anew("api") && anew("host")).then_some(())
        })
        .unwrap();
    converged(&mut stage.gateway, 2);
    stage.clear();
}
