//! What probing costs. `cargo run --release --example probe-cost` measures a real minute.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_core::desired::{Probe, Probes};

use crate::bed::{
    NoCommands, Probing, SOON, answer, descriptors, http, listen, probe, run_alone, target, tcp,
    threads,
};

const PODS: usize = 50;

/// Processor time that this thread has had.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

/// Resident memory that is nobody else's, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn requests_cost_no_memory_either() {
    run_alone(|place| async move {
        let networks: Vec<_> = (0..PODS).map(|n| place.network(&format!("pod-{n}"))).collect();
        let said = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let servers: Vec<_> =
            networks.iter().map(|netns| answer(listen(netns, "127.0.0.1:80"), said)).collect();
        let period = Duration::from_millis(50);
        let http = probe(http(80, "/healthz")).map(|probe| Probe { period, ..probe });
        let target = |(n, netns): (usize, &PathBuf)| {
            let probes = Probes { readiness: http.clone(), ..Probes::default() };
            target(&format!("pod-{n}"), 7, Some(netns), probes)
        };
        let targets = networks.iter().enumerate().map(target).collect();
        let mut probing = Probing::start(NoCommands, targets);
        let mut ready = 0;
        while ready < PODS {
            ready += usize::from(probing.any().await.1.ready);
        }
        tokio::time::sleep(period * 20).await;
        let before = memory();
        tokio::time::sleep(period * 80).await;
        let after = memory();
        assert!(probing.is_quiet());
        assert!(after <= before + 256, "{after} KiB, {before} before");
        probing.end().await;
        drop(servers);
    });
}

#[test]
fn probing_many_costs_little_and_nothing_grows() {
    run_alone(|place| async move {
        let networks: Vec<_> = (0..PODS).map(|n| place.network(&format!("pod-{n}"))).collect();
        let listeners: Vec<_> = networks.iter().map(|n| listen(n, "127.0.0.1:80")).collect();
        let period = Duration::from_millis(100);
        let tcp = probe(tcp(80)).map(|probe| Probe { period, ..probe });
        let target = |(n, netns): (usize, &PathBuf)| {
            let probes = Probes { readiness: tcp.clone(), ..Probes::default() };
            target(&format!("pod-{n}"), 7, Some(netns), probes)
        };
        let targets = networks.iter().enumerate().map(target).collect();
        let mut probing = Probing::start(NoCommands, targets);
        let mut ready = 0;
        while ready < PODS {
            ready += usize::from(probing.any().await.1.ready);
        }
        let seen = || (descriptors(), memory(), processor_time());
        tokio::time::sleep(period * 10).await;
        let (begun, before) = (Instant::now(), seen());
        tokio::time::sleep(period * 60).await;
        let (elapsed, after) = (begun.elapsed(), seen());
        assert!(probing.is_quiet());
        assert!(elapsed < SOON, "{elapsed:?}");

        let rounds = elapsed.as_secs_f64() / period.as_secs_f64();
        let of_a_round = (after.2 - before.2).as_secs_f64() * 1000.0 / rounds;
        let of_a_minute = of_a_round * 12.0;
        println!("{PODS} pods over TCP every 5 s: {of_a_minute:.1} ms of processor time a minute");
        // Several times what it is, because the machine may be busy with something else.
        assert!(of_a_minute < 60.0, "{of_a_minute} ms");
        assert_eq!(after.0, before.0, "descriptors");
        assert!(after.1 <= before.1 + 64, "{} KiB, {} before", after.1, before.1);
        assert!(!threads().iter().any(|name| name.trim() == "probes"), "{:?}", threads());
        for listener in listeners {
            assert!(listener.accept().is_err(), "no program is woken");
        }
        probing.end().await;
    });
}
