//! Whole gateways, driven through the shipped binaries, each in a place of its own. What each test
//! proves is its name; ARCHITECTURE.md names some of them as what holds an invariant.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside #[test] functions only")]

mod agent_life;
mod asked;
mod autonomy;
mod bad_images;
mod bad_orders;
mod by_hand;
mod commands;
mod connections;
mod containerd;
mod demo;
mod durable;
mod examples;
mod examples_living;
mod failed_updates;
mod fleet_commands;
mod identity;
mod killed;
mod large_orders;
mod link;
mod main_job;
mod native;
mod neighbours;
mod probes;
mod restarts;
mod service_manager;
mod store;
mod update;
mod wants;

use std::time::Duration;

use coracle_hil::gateway::NAMESPACE;
use coracle_hil::{Gateway, Options, Status, orders};
use coracle_protocol::desired::Workload;
use coracle_protocol::reported::Phase;
use coracle_testbed::Image;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// For what comes at once on an idle machine; generous, because tests share two processors.
const SOON: Duration = Duration::from_secs(20);

/// For what takes several steps that each wait for another, on a machine that others load.
const LONG: Duration = Duration::from_secs(120);

/// The busybox image, pushed to the gateway's registry; its reference by digest.
fn busybox(gateway: &Gateway) -> String {
    let digest = gateway.registry.push(&Image::busybox().unwrap(), "busybox", "1").unwrap();
    gateway.registry.pinned("busybox", &digest)
}

/// A gateway that runs `names`, ordered as generation 1 over the link; their process ids.
fn gateway_running(names: &[&str]) -> (Gateway, Vec<i32>) {
    gateway_running_with(Options::default(), names)
}

fn gateway_running_with(options: Options, names: &[&str]) -> (Gateway, Vec<i32>) {
    let mut gateway = Gateway::prepare(options).unwrap();
    gateway.start_agent().unwrap();
    let workloads = sleepers(&gateway, names);
    order(&gateway, 1, workloads);
    let pids = pids(&mut gateway, 1, names);
    (gateway, pids)
}

fn sleepers(gateway: &Gateway, names: &[&str]) -> Vec<Workload> {
    let image = busybox(gateway);
    names.iter().map(|name| orders::workload(name, &image)).collect()
}

/// Signs and publishes by the shipped commands.
fn order(gateway: &Gateway, generation: u64, workloads: Vec<Workload>) {
    let order = orders::order(gateway.id(), generation, workloads);
    gateway.order(&order).unwrap();
}

/// The status once an order is in force and everything is as ordered, however long it takes.
fn converged(gateway: &mut Gateway, generation: u64) -> Status {
    gateway
        .wait(&format!("generation {generation} to converge"), LONG, |status| {
            let reported = &status.reported;
            let done =
                reported.generation_applied == generation && reported.phase == Phase::Converged;
            done.then(|| status.clone())
        })
        .unwrap()
}

/// Process ids of workloads, once everything is as ordered.
fn pids(gateway: &mut Gateway, generation: u64, names: &[&str]) -> Vec<i32> {
    let status = gateway.wait_converged(generation).unwrap();
    names.iter().map(|name| status.pid(name).unwrap()).collect()
}

/// What the agent's containers are and run as, by containerd's word.
fn tasks(gateway: &Gateway) -> Vec<(String, i32)> {
    let tasks = gateway.containerd.tasks(NAMESPACE).unwrap();
    tasks.into_iter().map(|task| (task.id, task.pid)).collect()
}

fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}
