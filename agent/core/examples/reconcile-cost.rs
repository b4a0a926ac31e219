//! What one decision costs when there is nothing to do: 200 workloads, all running as ordered. Prints
//! JSON for `scripts/bench`: processor time of one decision in microseconds (learning who is ready,
//! `reconcile`, and where shared ports lead), for each of some series of decisions.
//!
//! `cargo run --release -p coracle-core --example reconcile-cost`

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use coracle_core::desired::{Desired, Reading, parse};
use coracle_core::history::{History, Now};
use coracle_core::image::Digest;
use coracle_core::name::ReplicaId;
use coracle_core::observed::{Container, Observed, Pod, Task};
use coracle_core::orders::Orders;
use coracle_core::reconcile::reconcile;
use coracle_core::rollout;
use coracle_core::situation::Situation;
use coracle_core::traffic::traffic;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

const WORKLOADS: u32 = 200;
const SERIES: usize = 50;
const CALLS: u32 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let orders = Orders { previous: desired(1)?, current: desired(2)?, ..Orders::default() };
    let observed = all_running(&orders.current)?;
    let now =
        Now { monotonic: Duration::from_secs(3600), wall: Duration::from_secs(1_800_000_000) };
    let mut history = History::default();
    history.learn(&observed, now, |replica, definition| orders.policy(replica, definition));
    rollout::learn(&orders, &observed, &mut history, now);
    let later = Now { monotonic: now.monotonic + Duration::from_secs(60), ..now };
    rollout::learn(&orders, &observed, &mut history, later);
    let now = later;
    let plan = reconcile(&orders, &observed, &history, now);
    if !plan.actions.is_empty() || !plan.blocked.is_empty() {
        return Err(format!("there is something to do: {plan:?}").into());
    }
    let mut micros = Vec::with_capacity(SERIES);
    for _ in 0..SERIES {
        let began = processor_time()?;
        for _ in 0..CALLS {
            let orders = black_box(&orders);
            drop(black_box(rollout::learn(orders, &observed, &mut history, now)));
            drop(black_box(reconcile(orders, &observed, black_box(&history), now)));
            let (observed, history) = (&observed, &history);
            drop(black_box(traffic(&Situation { orders, observed, history, now })));
        }
        micros.push((processor_time()? - began).as_secs_f64() * 1e6 / f64::from(CALLS));
    }
    println!("{}", json!({ "workloads": WORKLOADS, "reconcile_micros": micros }));
    Ok(())
}

/// Of this thread, so far.
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// 200 workloads with a port, a mount and an image of their own each.
fn desired(generation: u64) -> Result<Desired, Box<dyn Error>> {
    let workload = |number: u32| {
        json!({
            "name": format!("workload-{number}"),
            "network": "pod",
            "ports": { "http": { "host": 10_000 + number } },
            "mounts": { "data": { "anonymous": true } },
            "containers": [{
                "image": format!("registry.example/acme/image-{number}:1"),
                "env": { "NUMBER": number.to_string() },
                "ports": [{ "name": "http", "port": 80 }],
                "mounts": [{ "name": "data", "path": "/data", "kinds": ["anonymous"] }],
            }],
        })
    };
    let document = json!({
        "schema": 1,
        "gateway": "3f0c52a4-9d0e-4a53-8a43-1f1d9a7f3b11",
        "generation": generation,
        "workloads": (0..WORKLOADS).map(workload).collect::<Vec<_>>(),
    });
    let accepted = parse(&document, Reading::Strict);
    Ok(accepted.map_err(|refusals| format!("refused: {refusals:?}"))?.desired)
}

/// What a gateway looks like that has carried out this order.
fn all_running(desired: &Desired) -> Result<Observed, Box<dyn Error>> {
    let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64)))?;
    let mut observed = Observed { containers: Some(BTreeMap::new()), ..Observed::default() };
    for workload in desired.workloads.values() {
        let replica = ReplicaId { workload: workload.name.clone(), index: 0 };
        let (definition, pod) = (workload.definition.clone(), &workload.pod);
        for container in &pod.containers {
            let running = Container {
                replica: replica.clone(),
                name: container.name.clone(),
                generation: desired.generation,
                definition: definition.clone(),
                limits: "".into(),
                task: Task::Running { pid: 7 },
            };
            let id = replica.container(&container.name);
            observed.containers.get_or_insert_default().insert(id, running);
            observed.came(container.software.clone(), digest.clone());
        }
        let pod = Pod {
            definition,
            in_place: pod.in_place.clone(),
            serves_identity: pod.identity.is_some(),
            shares_ports: false,
            address: None,
        };
        observed.pods.insert(replica, pod);
    }
    Ok(observed)
}
