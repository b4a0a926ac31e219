//! Containers of the runtime with `coracle-log` for their output: what is kept over restarts, and
//! what it costs a start and a stop.

use std::path::Path;
use std::time::{Duration, Instant};

use coracle::config::LogsConfig;
use coracle::logs::{self, Item, Reader, Run, Selection};
use coracle::runtime::{Runtime as _, Surroundings};
use coracle_core::name::ContainerId;
use coracle_core::observed::Task;
use coracle_testbed::bin;

use crate::bed::{Bed, script, stop};

crate::on_every_containerd!(each_run_has_its_lines_and_costs_little);

fn around(state: &Path) -> Surroundings {
    let config = LogsConfig { program: bin("coracle-log").unwrap(), ..LogsConfig::default() };
    Surroundings { log: logs::uri(&config, state), ..Surroundings::default() }
}

fn said(state: &Path, id: &ContainerId, run: Run) -> Vec<String> {
    let selection = Selection { run, tail: None, since: None, stream: None };
    let reader = Reader::open(&state.join("logs"), id, selection).unwrap();
    let mut reader = reader.expect("a run that is kept");
    let mut said = Vec::new();
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            Item::Record(record) if record.is_start() => {}
            Item::Record(record) => said.push(String::from_utf8(record.text).unwrap()),
            Item::Gap => panic!("a gap"),
        }
    }
    said
}

async fn each_run_has_its_lines_and_costs_little(bed: Bed) {
    let state = tempfile::tempdir().unwrap();
    let around = around(state.path());
    let plain = Surroundings::default();
    let start = script("web", "echo begin; seq 1 5000 >&2; echo end");
    for _ in 0..2 {
        bed.start_in(&around, &start).await;
        bed.task_becomes(&start.id, |task| matches!(task, Task::Stopped(_))).await;
        bed.runtime.stop(&stop(&start, Duration::ZERO)).await.unwrap();
        bed.runtime.remove(&start.id).await.unwrap();
    }
    for run in [Run::Newest, Run::Previous] {
        let said = said(state.path(), &start.id, run);
        assert_eq!(said.len(), 5002, "{run:?}");
        let numbers = said.iter().filter_map(|text| text.parse::<u32>().ok());
        assert!(numbers.eq(1..=5000));
    }
    let sleeper = script("web", "exec sleep 86400");
    let (mut starts, mut stops) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..20 {
        let with = round % 2;
        let begun = Instant::now();
        bed.start_in([&plain, &around][with], &sleeper).await;
        starts[with].push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        bed.runtime.stop(&stop(&sleeper, Duration::ZERO)).await.unwrap();
        stops[with].push(begun.elapsed().as_secs_f64() * 1e3);
        bed.runtime.remove(&sleeper.id).await.unwrap();
    }
    for (what, times) in [("start", &mut starts), ("stop", &mut stops)] {
        times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        let show = |times: &Vec<f64>| format!("{:.1}, {:.1}", times[0], times[times.len() / 2]);
        println!(
            "{what}, ms, least and median: {} without a log, {} with",
            show(&times[0]),
            show(&times[1])
        );
    }
    bed.assert_empty();
}
